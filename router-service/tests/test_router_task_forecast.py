"""Tasks as graphs: what is asked at each call's arrival, where the forecast goes, and what is told at the end."""

import asyncio
import contextlib

import grpc
import pytest

from paceline.common.v1 import attempt_pb2, estimate_pb2, slo_pb2
from paceline.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from paceline.router.v1 import router_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core import lengths
from paceline_core.slo import Slo, SloClass
from paceline_predictor.app import PredictorApp
from paceline_predictor.config import Config as PredictorConfig
from paceline_router.request import Arrival, LiveRequest
from paceline_router.states import State
from paceline_router.task_graph import MAX_CALLS, MIN_TOOL_MS, CallGraph

E2E_MS = 6_000_000.0
"""Budget of tasks: so long that what a busy machine takes for a call is nothing beside it."""


def forecast(**fields):
    good = {
        "remaining_stages": 2.0,
        "remaining_calls": 3.0,
        "quantiles": [0.5, 0.9],
        "remaining_tokens": [300.0, 900.0],
        "critical_path_tokens": [200.0, 600.0],
        "stage_shares": [0.5, 0.3, 0.2],
        "source": "pattern",
        "model_version": "t1",
    }
    return estimate_pb2.TaskForecast(**(good | fields))


class FakePredictor(predictor_pb2_grpc.PredictorServiceServicer):
    """Serves forecasts, or does not; writes down what it is asked and told."""

    def __init__(self):
        self.graphs, self.tasks, self.asked = [], [], 0
        self.code = None
        self.answer = forecast()

    async def PredictLength(self, request, context):
        estimate = estimate_pb2.LengthEstimate(probabilities=[1.0] * lengths.K, source="qrf")
        return predictor_pb2.PredictLengthResponse(estimates=[estimate] * len(request.queries))

    async def ForecastTask(self, request, context):
        self.asked += 1
        if self.code is not None:
            await context.abort(self.code, "no")
        self.graphs += request.tasks
        return predictor_pb2.ForecastTaskResponse(forecasts=[self.answer] * len(request.tasks))

    async def Observe(self, request_iterator, context):
        async for request in request_iterator:
            self.tasks += request.tasks
        return predictor_pb2.ObserveResponse()


@pytest.fixture
async def fake():
    server, predictor = grpc.aio.server(), FakePredictor()
    predictor_pb2_grpc.add_PredictorServiceServicer_to_server(predictor, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    predictor.address = f"127.0.0.1:{port}"
    yield predictor
    await server.stop(0)


async def make_router(line, fake, **fields):
    return await line.router(predictor=fake.address, **fields)


def task_slo(task_id="t", **fields):
    return slo_pb2.Slo(task=slo_pb2.TaskSlo(task_id=task_id, e2e_ms=E2E_MS, **fields))


def shape(graph):
    return [(c.request_id, tuple(c.parent_request_ids), c.stage, c.ended) for c in graph.calls]


async def test_each_call_asks_with_the_graph_so_far_and_the_end_is_told(line, spec, fake, monkeypatch):
    # A busy machine pauses between the calls, too.
    monkeypatch.setattr("paceline_router.task_graph.MIN_TOOL_MS", 1e9)
    await line.engine("e0")
    router = await make_router(line, fake)
    await router.stub.BeginTask(router_pb2.BeginTaskRequest(task_id="t", e2e_ms=E2E_MS))
    await router.generate(spec(tokens=9, slo=task_slo(stage="plan"), request_id="a", app="agent"))
    await line.until(lambda: len(fake.graphs) == 1)
    await router.generate(spec(tokens=5, slo=task_slo(), request_id="b"))
    await line.until(lambda: len(fake.graphs) == 2)
    await router.generate(spec(tokens=7, slo=task_slo(parent_request_ids=["a"]), request_id="c"))
    await line.until(lambda: len(fake.graphs) == 3)
    assert [shape(graph) for graph in fake.graphs] == [
        [("a", (), 0, False)],
        [("a", (), 0, True), ("b", ("a",), 1, False)],
        [("a", (), 0, True), ("b", ("a",), 1, True), ("c", ("a",), 1, False)],
    ]
    assert {graph.task_id for graph in fake.graphs} == {"t"}
    assert {graph.app for graph in fake.graphs} == {"agent"}
    end = await router.stub.EndTask(router_pb2.EndTaskRequest(task_id="t"))
    assert end.attained
    await line.until(lambda: len(fake.tasks) == 1)
    [told] = fake.tasks
    assert told.completed
    assert told.graph.app == "agent"
    assert [(c.actor, c.output_tokens) for c in told.graph.calls] == [("plan", 9), ("sim", 5), ("sim", 7)]
    assert all(c.ended and c.prompt_tokens for c in told.graph.calls)


async def test_the_forecast_travels_with_the_attempt_and_is_explained(line, endless, fake):
    executor = await line.executor("e0", time_scale=1.0)
    await line.scheduler("e0", executor.address)
    router = await make_router(line, fake)
    session = await router.session()
    # Another request competes, so that the call waits for its forecast before it is placed.
    other = await session.submit(endless())
    await session.until(lambda: other.count > 0)
    call = await session.submit(endless(slo=task_slo(), request_id="call"))
    await session.until(lambda: call.accepted is not None)
    contexts = [
        scheduler_pb2.AttemptContext.FromString(live.spec.context)
        for live in executor.engine.live_table()
        if live.spec.request_id == "call"
    ]
    assert contexts[0].submit.task_forecast == fake.answer
    said = await router.stub.ExplainRequest(router_pb2.ExplainRequestRequest(request_id="call"))
    [event] = [e for e in said.events if e.event == "forecast"]
    assert event.detail.startswith("pattern: 2.0 stages, 3.0 calls to come")
    assert "P90 600" in event.detail
    assert "50%" in event.detail
    await session.cancel(other)
    await session.cancel(call)
    await session.ended(other, call)


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL]
)
async def test_without_forecasts_lengths_are_still_asked(line, spec, endless, fake, code, monkeypatch):
    # A busy machine takes longer for three calls than the links rest for.
    monkeypatch.setattr("paceline_router.forecast_link.REST_MS", 600_000.0)
    monkeypatch.setattr("paceline_router.forecast_link.UNSERVED_REST_MS", 600_000.0)
    await line.engine("e0", time_scale=1.0)
    fake.code = code
    router = await make_router(line, fake)
    session = await router.session()
    other = await session.submit(endless())
    await session.until(lambda: other.count > 0)
    for number in range(3):
        answer = await router.generate(spec(tokens=3, slo=task_slo(), request_id=f"c{number}"))
        assert answer.accepted.estimate_source == "qrf"
        assert router.app.ledger.find(f"c{number}").forecast is None
    assert fake.asked == 1  # then it rested
    await session.cancel(other)
    await session.ended(other)


@pytest.mark.parametrize(
    "bad", [{"remaining_tokens": [1.0]}, {"remaining_calls": float("nan")}, {"stage_shares": [-1.0]}]
)
async def test_a_malformed_forecast_is_none(line, spec, fake, bad):
    await line.engine("e0")
    fake.answer = forecast(**bad)
    router = await make_router(line, fake)
    await router.generate(spec(slo=task_slo(), request_id="c"))
    await line.until(lambda: fake.asked == 1)
    assert router.app.ledger.find("c").forecast is None


async def test_tasks_that_were_given_up_or_forgotten_are_told_too(line, spec, endless, fake):
    await line.engine("e0", time_scale=1.0)
    router = await make_router(line, fake, task_idle_ttl_s=0.2)
    session = await router.session()
    call = await session.submit(endless(slo=task_slo("gone")))
    await session.until(lambda: call.accepted is not None)
    await router.stub.EndTask(router_pb2.EndTaskRequest(task_id="gone", cancelled=True))
    await session.ended(call)
    assert call.reason == attempt_pb2.FINISH_REASON_CANCELLED
    await router.generate(spec(tokens=3, slo=task_slo("idle")))
    await line.until(lambda: len(fake.tasks) == 2)
    told = {t.graph.task_id: t.completed for t in fake.tasks}
    assert told == {"gone": False, "idle": True}
    for task_id in told:
        with contextlib.suppress(grpc.RpcError):
            await router.stub.EndTask(router_pb2.EndTaskRequest(task_id=task_id))
    assert len(fake.tasks) == 2


async def test_another_tenants_task_is_not_shown(line, spec, fake):
    await line.engine("e0")
    tokens = [{"token": name, "tenant": name} for name in ("alice", "bob")]
    router = await make_router(line, fake, auth={"tokens": tokens})
    alice, bob = router.caller("alice"), router.caller("bob")
    await alice.generate(spec(slo=task_slo()))
    await line.until(lambda: fake.asked == 1)
    await bob.refused(spec(slo=task_slo()))
    assert len(fake.graphs) == 1


def call_of(spec, request_id, at_ms=0.0, tokens=4):
    slo = Slo(SloClass.TASK)
    request = LiveRequest(request_id, spec(request_id=request_id), slo, "", Arrival(at_ms, 0))
    request.output.append(bytes(4 * tokens), bytes(4 * tokens), b"")
    return request


def end(graph, request, at_ms, state=State.FINISHED):
    request.state = state
    graph.ended(request, at_ms)


def test_a_long_pause_is_a_tool_between_two_calls(spec):
    graph = CallGraph()
    first = call_of(spec, "a")
    graph.add(graph.place(first, (), "m"))
    end(graph, first, 100.0)
    quick = call_of(spec, "b", at_ms=100.0 + MIN_TOOL_MS / 2)
    graph.add(graph.place(quick, (), "m"))
    end(graph, quick, 1000.0)
    graph.add(graph.place(call_of(spec, "c", at_ms=1000.0 + 3 * MIN_TOOL_MS), (), "m"))
    message = graph.message("t", "app")
    assert [(c.request_id, tuple(c.parent_request_ids), c.stage, c.tool) for c in message.calls] == [
        ("a", (), 0, False),
        ("b", ("a",), 1, False),
        ("tool:c", ("b",), 2, True),
        ("c", ("tool:c",), 3, False),
    ]
    assert message.calls[2].duration_ms == 3 * MIN_TOOL_MS


def test_calls_side_by_side_share_a_stage_and_refused_ones_never_were(spec):
    graph = CallGraph()
    calls = [call_of(spec, name) for name in "abc"]
    for call in calls:
        graph.add(graph.place(call, (), "m"))
    assert {c.stage for c in graph.message("t", "").calls} == {0}
    end(graph, calls[0], 5.0, State.REJECTED)
    end(graph, calls[1], 6.0)
    assert graph.well
    assert graph.place(call_of(spec, "d", at_ms=7.0), ("unheard of",), "m").parents == ("b",)
    end(graph, calls[2], 7.0, State.CANCELLED)
    assert not graph.well
    assert len(graph) == 2


def test_a_task_of_too_many_calls_is_given_up(spec):
    graph = CallGraph()
    for number in range(MAX_CALLS + 1):
        assert graph.known
        graph.add(graph.place(call_of(spec, f"r{number}"), (), "m"))
    assert not graph.known
    assert len(graph) == 0


async def test_a_real_predictor_forecasts_and_hears_of_whole_tasks(line, spec, endless):
    await line.engine("e0", time_scale=1.0)
    sections = {"predictor": {"listen": "127.0.0.1:0"}, "store": {"url": ""}}
    async with PredictorApp(PredictorConfig.model_validate(sections)) as predictor:
        router = await make_router(line, predictor)
        session = await router.session()
        other = await session.submit(endless())  # so that calls wait for what they ask
        await session.until(lambda: other.count > 0)
        for task in range(3):
            for stage in range(2):
                request_id, final = f"t{task}-{stage}", stage == 1
                call = spec(
                    tokens=3, app="agent", slo=task_slo(f"t{task}", final=final), request_id=request_id
                )
                answer = await router.generate(call)
                assert answer.accepted.estimate_source not in ("", "fallback", "router")
                forecast = router.app.ledger.find(request_id).forecast
                assert forecast is not None
                assert forecast.model_version
                assert len(forecast.remaining_tokens) == len(forecast.quantiles) > 0
        stub = predictor_pb2_grpc.PredictorServiceStub(line.connect(predictor.address))

        async def observed():
            info = await stub.GetModelInfo(predictor_pb2.GetModelInfoRequest())
            return {model.kind: model.observed for model in info.models}

        async with asyncio.timeout(60):
            while (await observed()).get("tasks") != 3:  # noqa: ASYNC110  # another process could not be waited for either
                await asyncio.sleep(0.05)
        await session.cancel(other)
        await session.ended(other)


async def test_the_time_of_a_task_is_dealt_out_again_at_each_event(line, endless, fake):
    """Calls of a stage get its deadline, all of them at each arrival and each end."""
    scheduler = await line.engine("e0", time_scale=1.0)
    table = scheduler.loop.state.table
    router = await make_router(line, fake)
    session = await router.session()
    other = await session.submit(endless())  # so that calls wait for what they ask
    await session.until(lambda: other.count > 0)

    def row(request_id):
        return next(a.row for a in table if a.request_id == request_id)

    def share_left(request_id):
        """Of the task's time, what the call has."""
        now = scheduler.loop.state.now_ms()
        at = row(request_id)
        return (table.call_due_ms[at] - now) / (table.task_due_ms[at] - now)

    calls = {}
    fake.answer = forecast(stage_shares=[0.5, 0.5])
    for name in ("a", "b"):
        calls[name] = await session.submit(endless(slo=task_slo(), request_id=name))
        await session.until(lambda name=name: calls[name].accepted is not None)
    assert share_left("a") == pytest.approx(0.5, abs=0.1)
    assert share_left("b") == pytest.approx(0.5, abs=0.1)
    assert table.task_rest_tokens[row("a")] == pytest.approx(100)
    assert table.task_due_ms[row("a")] == pytest.approx(table.task_due_ms[row("b")], abs=0.05 * E2E_MS)
    fake.answer = forecast(stage_shares=[0.8, 0.2])
    calls["c"] = await session.submit(endless(slo=task_slo(), request_id="c"))
    await session.until(lambda: calls["c"].accepted is not None)
    await line.until(lambda: share_left("a") > 0.7)
    await line.until(lambda: share_left("b") > 0.7)
    fake.answer = forecast(stage_shares=[0.2, 0.8])
    await session.cancel(calls["c"])
    await line.until(lambda: share_left("a") < 0.3 and share_left("b") < 0.3)
    assert table.task_rest_tokens[row("a")] == pytest.approx(160)
    for answer in (other, calls["a"], calls["b"]):
        await session.cancel(answer)
    await session.ended(other, *calls.values())

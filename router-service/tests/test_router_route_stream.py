"""RouteStream: decisions in batches over real gRPC, and what the router remembers of them."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from paceline.common.v1 import estimate_pb2, slo_pb2
from paceline.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from paceline.router.v1 import router_pb2
from paceline_core import lengths
from paceline_router.route_stream import BATCH, SLICE
from paceline_runtime.errors import PacelineError, Reason
from paceline_runtime.status import from_rpc_error

WAIT_S = 60.0
"""Only a test that hangs ends by it."""


class Asker:
    """A back end with one stream of decisions."""

    def __init__(self, router: Any) -> None:
        self.call = router.stub.RouteStream()
        self._decisions: list[router_pb2.Decision] = []

    async def say(
        self, specs: Sequence[router_pb2.RouteSpec] = (), outcomes: Sequence[router_pb2.RouteOutcome] = ()
    ) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.call.write(router_pb2.RouteStreamRequest(specs=specs, outcomes=outcomes))

    async def hear(self, count: int) -> list[router_pb2.Decision]:
        """The next `count` decisions."""
        async with asyncio.timeout(WAIT_S):
            while len(self._decisions) < count:
                response = await self.call.read()
                assert response is not grpc.aio.EOF
                self._decisions += response.decisions
        heard, self._decisions = self._decisions[:count], self._decisions[count:]
        return heard

    async def ask(self, *specs: router_pb2.RouteSpec) -> list[router_pb2.Decision]:
        await self.say(specs)
        return await self.hear(len(specs))

    async def tell(self, *outcomes: router_pb2.RouteOutcome) -> None:
        await self.say(outcomes=outcomes)

    async def end(self) -> None:
        """Say no more, and hear that this was all."""
        async with asyncio.timeout(WAIT_S):
            await self.call.done_writing()
            assert await self.call.read() is grpc.aio.EOF
            assert await self.call.code() is grpc.StatusCode.OK


class FakePredictor(predictor_pb2_grpc.PredictorServiceServicer):
    """Says that every answer has 300 tokens, and writes down what it is asked and told."""

    def __init__(self) -> None:
        self.address = ""
        self.batches: list[int] = []
        self.told: list[predictor_pb2.LengthOutcome] = []
        self.down = False

    async def PredictLength(self, request: predictor_pb2.PredictLengthRequest, context: Any) -> Any:
        self.batches.append(len(request.queries))
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        estimates = [length_of(300)] * len(request.queries)
        return predictor_pb2.PredictLengthResponse(estimates=estimates)

    async def Observe(self, request_iterator: Any, context: Any) -> predictor_pb2.ObserveResponse:
        async for request in request_iterator:
            self.told += request.lengths
        return predictor_pb2.ObserveResponse()


@contextlib.asynccontextmanager
async def fake_predictor() -> AsyncIterator[FakePredictor]:
    server, fake = grpc.aio.server(), FakePredictor()
    predictor_pb2_grpc.add_PredictorServiceServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(0)


def length_of(tokens: int) -> estimate_pb2.LengthEstimate:
    """All mass in one bin."""
    mass = [0.0] * lengths.K
    mass[int(lengths.bin_of(tokens))] = 1.0
    return estimate_pb2.LengthEstimate(probabilities=mass, source="fake")


def spec(request_id: str, prompt_tokens: int = 100, **fields: Any) -> router_pb2.RouteSpec:
    return router_pb2.RouteSpec(request_id=request_id, prompt_tokens=prompt_tokens, **fields)


def outcome(request_id: str, **fields: Any) -> router_pb2.RouteOutcome:
    given = {"output_tokens": 50, "ttft_ms": 20.0, "ttlt_ms": 500.0} | fields
    return router_pb2.RouteOutcome(request_id=request_id, **given)


def names(decisions: Sequence[router_pb2.Decision]) -> list[str]:
    return [decision.request_id for decision in decisions]


def pending(router: Any) -> float:
    """Requests in the in-flight ledger, over all engines."""
    return float(router.app.fleet.view(0.0).pending_requests.sum())


async def test_decisions_come_in_order_and_nothing_runs(line):
    for name in ("e0", "e1"):
        await line.engine(name)
    router = await line.router()
    asker = Asker(router)
    decisions = await asker.ask(*(spec(f"r{i}") for i in range(10)))
    assert names(decisions) == [f"r{i}" for i in range(10)]
    for decision in decisions:
        assert decision.executor_endpoint == line.executors[decision.engine_id].address
        assert decision.predicted_e2e_ms > 0
        assert decision.reason.startswith("least-predicted: ")
        assert not decision.HasField("failure")
    assert router.app.ledger.live_count == 0
    await asker.end()


async def test_a_batch_larger_than_a_turn_is_answered_whole(line):
    await line.engine("e0")
    router = await line.router()
    asker = Asker(router)
    count = 2 * BATCH + SLICE + 1
    assert names(await asker.ask(*(spec(f"r{i}") for i in range(count)))) == [f"r{i}" for i in range(count)]
    await asker.end()


@pytest.mark.parametrize("policy", ["least-predicted", "margin", "round-robin"])
async def test_each_decision_of_a_batch_sees_those_before_it(line, policy):
    for name in ("e0", "e1", "e2"):
        await line.engine(name)
    router = await line.router(placement=policy)
    asker = Asker(router)
    decisions = await asker.ask(*(spec(f"r{i}", 1000) for i in range(30)))
    counts = Counter(decision.engine_id for decision in decisions)
    assert set(counts) == {"e0", "e1", "e2"}
    assert max(counts.values()) < 30 - 3
    await asker.end()


async def test_a_decision_counts_until_its_outcome(line):
    await line.engine("e0")
    router = await line.router()
    asker, opened = Asker(router), router.app.open_decisions
    await asker.ask(spec("a"), spec("b"), spec("c"))
    assert len(opened) == 3
    assert pending(router) == 3
    await asker.tell(outcome("a"), outcome("b", failed=True, output_tokens=0, ttft_ms=0, ttlt_ms=0))
    await router.until(lambda: len(opened) == 1)
    assert pending(router) == 1
    # Told twice, or of a request that nobody asked for: nothing happens.
    await asker.tell(outcome("a"), outcome("never"), outcome("c"))
    await router.until(lambda: len(opened) == 0)
    assert pending(router) == 0
    assert len(await asker.ask(spec("d"))) == 1
    await asker.end()


async def test_what_was_decided_for_one_stream_is_seen_by_another_and_by_route(line):
    for name in ("e0", "e1"):
        await line.engine(name)
    router = await line.router()
    first, second = Asker(router), Asker(router)
    await first.ask(*(spec(f"r{i}", 5000, exclude_engine_ids=["e1"]) for i in range(8)))
    assert (await second.ask(spec("r0")))[0].engine_id == "e1"
    unary = await router.stub.Route(router_pb2.RouteRequest(spec=spec("r0")))
    assert unary.decision.engine_id == "e1"
    assert len(router.app.open_decisions) == 9  # ids are a stream's own, and Route leaves nothing behind
    await first.end()
    await router.until(lambda: len(router.app.open_decisions) == 1)
    await second.end()


async def test_an_outcome_may_come_with_its_spec(line):
    await line.engine("e0")
    router = await line.router()
    asker = Asker(router)
    await asker.say([spec("a"), spec("b")], [outcome("a")])
    assert names(await asker.hear(2)) == ["a", "b"]
    await router.until(lambda: len(router.app.open_decisions) == 1)
    await asker.end()


async def test_asking_again_withdraws_the_decision_before(line):
    for name in ("e0", "e1"):
        await line.engine(name)
    router = await line.router()
    asker = Asker(router)
    (first,) = await asker.ask(spec("a"))
    (second,) = await asker.ask(spec("a", exclude_engine_ids=[first.engine_id]))
    assert {first.engine_id, second.engine_id} == {"e0", "e1"}
    assert len(router.app.open_decisions) == 1
    assert pending(router) == 1
    (none,) = await asker.ask(spec("a", exclude_engine_ids=["e0", "e1"]))
    assert none.failure.reason == Reason.NO_ENGINE
    assert none.failure.retryable
    assert not none.engine_id
    assert len(router.app.open_decisions) == 0
    await asker.end()


async def test_bad_specs_are_answered_one_by_one(line):
    await line.engine("e0")
    router = await line.router()
    asker = Asker(router)
    task = slo_pb2.Slo(deadline=slo_pb2.DeadlineSlo(e2e_ms=-1))
    short = estimate_pb2.LengthEstimate(probabilities=[1.0])
    nothing = estimate_pb2.LengthEstimate(probabilities=[0.0] * lengths.K)
    bad = {
        "prompt_tokens": (spec("p", 0), Reason.INVALID_ARGUMENT),
        "max_tokens": (spec("t", max_tokens=2**31), Reason.INVALID_ARGUMENT),
        "request_id": (spec("no spaces allowed"), Reason.INVALID_ARGUMENT),
        "model": (spec("m", model="nope"), Reason.UNKNOWN_MODEL),
        "slo": (spec("s", slo=task), Reason.INVALID_SLO),
        "48 bins": (spec("e", estimate=short), Reason.INVALID_ARGUMENT),
        "not all zero": (spec("z", estimate=nothing), Reason.INVALID_ARGUMENT),
        "prefix_hashes": (spec("h", prefix_hashes=[1] * 5000), Reason.INVALID_ARGUMENT),
        "app": (spec("a", app="x" * 100), Reason.INVALID_ARGUMENT),
    }
    good = spec("good", estimate=estimate_pb2.LengthEstimate(probabilities=[1.0] * lengths.K))
    decisions = await asker.ask(*(given for given, _ in bad.values()), good)
    for decision, (says, (given, reason)) in zip(decisions, bad.items(), strict=False):
        assert decision.request_id == given.request_id
        assert not decision.engine_id
        assert decision.failure.reason == reason
        assert says in decision.failure.message
    assert decisions[-1].engine_id == "e0"
    assert len(router.app.open_decisions) == 1
    await asker.end()


async def test_a_defect_in_one_decision_costs_that_one(line, monkeypatch):
    await line.engine("e0")
    router = await line.router()
    placer = router.app.dispatcher._placer
    choose = placer.choose

    def fails(view: Any, now_ms: float) -> Any:
        if view.request_id == "b":
            raise ZeroDivisionError("a defect")
        return choose(view, now_ms)

    monkeypatch.setattr(placer, "choose", fails)
    asker = Asker(router)
    a, b, c = await asker.ask(spec("a"), spec("b"), spec("c"))
    assert (a.engine_id, b.engine_id, c.engine_id) == ("e0", "", "e0")
    assert b.failure.reason == Reason.INTERNAL
    await asker.end()


async def test_estimates_given_and_learned_are_used(line):
    await line.engine("e0")
    router = await line.router()
    asker = Asker(router)

    brief, extensive = await asker.ask(
        spec("brief", estimate=length_of(10)), spec("extensive", max_tokens=8000, estimate=length_of(4000))
    )
    assert extensive.predicted_e2e_ms > 10 * brief.predicted_e2e_ms
    await asker.tell(outcome("brief"), outcome("extensive"))
    for i in range(40):
        await asker.say([spec(f"r{i}", app="short")], [outcome(f"r{i}", output_tokens=2, ttlt_ms=30.0)])
    await asker.hear(40)
    await router.until(lambda: len(router.app.open_decisions) == 0)
    short, other = await asker.ask(spec("x", app="short"), spec("y", app="other"))
    assert short.predicted_e2e_ms < other.predicted_e2e_ms
    await asker.end()


async def test_the_predictor_is_asked_once_for_a_batch_and_hears_the_outcomes(line):
    await line.engine("e0")
    async with fake_predictor() as fake:
        router = await line.router(predictor=fake.address)
        asker = Asker(router)
        own = spec("own", estimate=length_of(10))
        await asker.ask(*(spec(f"r{i}", app="chat") for i in range(50)), own)
        assert fake.batches == [50]
        await asker.tell(outcome("r0", output_tokens=40), outcome("r1", output_tokens=7, failed=True))
        await router.until(lambda: len(fake.told) == 2)
        ended, cut = fake.told
        assert (ended.output_tokens, ended.censored, ended.query.app) == (40, False, "chat")
        assert (cut.output_tokens, cut.censored) == (7, True)
        fake.down = True
        assert all(decision.engine_id for decision in await asker.ask(spec("x"), spec("y")))
        await asker.end()


async def test_too_many_without_an_outcome_are_refused_and_room_comes_back(line):
    await line.engine("e0")
    router = await line.router(max_open_decisions=3)
    asker = Asker(router)
    *taken, refused = await asker.ask(*(spec(f"r{i}") for i in range(4)))
    assert all(decision.engine_id for decision in taken)
    assert refused.failure.reason == Reason.QUEUE_FULL
    assert refused.failure.retry_after_ms > 0
    await asker.say([spec("r4")], [outcome("r0")])
    assert (await asker.hear(1))[0].engine_id == "e0"
    await asker.end()


async def test_a_decision_without_an_outcome_is_forgotten_in_time(line):
    await line.engine("e0")
    router = await line.router(open_decision_ttl_s=0.05)
    asker = Asker(router)
    await asker.ask(spec("a"))
    await router.until(lambda: len(router.app.open_decisions) == 0)
    assert pending(router) == 0
    await asker.end()


async def test_what_went_to_an_earlier_life_of_an_engine_is_forgotten(line):
    await line.engine("e0")
    await line.engine("e1")
    router = await line.router()
    asker = Asker(router)
    await asker.ask(spec("a", exclude_engine_ids=["e1"]), spec("b", exclude_engine_ids=["e0"]))
    before = router.app.fleet.get("e0").incarnation
    address = line.executors["e0"].address
    await line.kill_executor("e0")
    await line.executor("e0", listen=address)
    await router.until(lambda: router.app.fleet.get("e0").incarnation != before)
    await router.until(lambda: len(router.app.open_decisions) == 1)
    await router.until(lambda: router.app.fleet.get("e0").up)
    (again,) = await asker.ask(spec("a", exclude_engine_ids=["e1"]))
    assert again.engine_id == "e0"
    await asker.end()


async def test_a_stream_that_is_behind_is_not_read_and_loses_nothing(line, monkeypatch):
    await line.engine("e0")
    router = await line.router()
    most, batch, count = 64, 16, 1024
    monkeypatch.setattr("paceline_router.route_stream.MAX_WAITING", most)
    decisions, gate = router.app.route_streams._decisions, asyncio.Event()
    answer = decisions.length_cdfs

    async def held(questions: Any) -> Any:
        await gate.wait()
        return await answer(questions)

    monkeypatch.setattr(decisions, "length_cdfs", held)
    asker = Asker(router)

    async def write() -> None:
        for start in range(0, count, batch):
            await asker.say([spec(str(i)) for i in range(start, start + batch)])

    writer = asyncio.create_task(write())
    await router.until(lambda: any(i.waiting >= most for i in router.app.route_streams._inboxes))
    (inbox,) = router.app.route_streams._inboxes
    for _ in range(20):  # other calls are served meanwhile, on the same connection
        await router.engines()
        assert most <= inbox.waiting < most + batch
    gate.set()
    assert names(await asker.hear(count)) == [str(i) for i in range(count)]
    async with asyncio.timeout(WAIT_S):
        await writer
    assert inbox.waiting == 0
    await asker.end()


async def test_a_client_that_leaves_leaves_nothing(line):
    await line.engine("e0")
    router = await line.router()
    asker = Asker(router)
    await asker.ask(spec("a"), spec("b"))
    asker.call.cancel()
    await router.until(lambda: len(router.app.open_decisions) == 0)
    await router.until(lambda: not router.app.route_streams._inboxes)
    assert pending(router) == 0
    assert (await Asker(router).ask(spec("a")))[0].engine_id == "e0"


async def test_a_router_that_goes_ends_its_streams_and_says_so(line):
    await line.engine("e0")
    router = await line.router(server={"drain_grace_s": WAIT_S})
    asker = Asker(router)
    await asker.ask(spec("a"))
    await line.stop(router.app)
    with pytest.raises(grpc.RpcError) as caught:
        await asker.hear(1)
    assert from_rpc_error(caught.value).reason is Reason.DRAINING


async def test_without_engines_each_spec_hears_so(line):
    router = await line.router()
    asker = Asker(router)
    for decision in await asker.ask(spec("a"), spec("b")):
        assert decision.failure.reason == Reason.NO_ENGINE
        assert decision.failure.retryable
    await asker.end()


async def test_an_empty_stream_ends_well(line):
    router = await line.router()
    asker = Asker(router)
    await asker.say()
    await asker.end()


async def test_a_tenant_may_not_ask_for_another(line):
    await line.engine("e0")
    auth = {"tokens": [{"tenant": name, "token": f"secret-of-{name}"} for name in ("acme", "zeta")]}
    router = (await line.router(auth=auth)).caller("secret-of-acme")
    asker = Asker(router)
    own, other = await asker.ask(spec("a", tenant="acme"), spec("b", tenant="zeta"))
    assert own.engine_id == "e0"
    assert other.failure.reason == Reason.PERMISSION_DENIED
    with pytest.raises(grpc.RpcError) as caught:
        await router.stub.Route(router_pb2.RouteRequest(spec=spec("b", tenant="zeta")))
    error = from_rpc_error(caught.value)
    assert isinstance(error, PacelineError)
    assert error.reason is Reason.PERMISSION_DENIED
    await asker.end()

"""The predictor over real gRPC: answers, refusals, learning, restarts, many callers."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.common.v1 import estimate_pb2
from paceline.predictor.v1 import predictor_pb2 as pb
from paceline.predictor.v1 import predictor_pb2_grpc
from paceline_core.lengths import K, bin_of, cdf_at, cdf_from_probabilities, conditioned, quantile
from paceline_predictor.app import PredictorApp
from paceline_predictor.config import Config
from paceline_runtime.channel import ChannelConfig, channel
from paceline_runtime.config_docs import undocumented_keys
from paceline_runtime.errors import Reason
from paceline_runtime.status import from_rpc_error
from paceline_store import Store

WAIT_S = 200
BACK = pb.ReloadModelsRequest(saved_state=True)
PATIENT = ChannelConfig(unary_timeout_s=WAIT_S)
Stub = Any


def config(**predictor: Any) -> Config:
    own = {
        "listen": "127.0.0.1:0",
        "server": {"unary_timeout_s": WAIT_S},
        "state_interval_s": 3600,
        "length_model": "none",
        **predictor,
    }
    return Config.model_validate({"predictor": own, "store": {"url": own.pop("url", "")}})


@pytest.fixture
async def app() -> AsyncIterator[PredictorApp]:
    async with PredictorApp(config()) as running:
        yield running


@pytest.fixture
async def stub(app: PredictorApp) -> AsyncIterator[Stub]:
    async with channel(app.address, PATIENT) as opened:
        yield predictor_pb2_grpc.PredictorServiceStub(opened)


async def ask(stub: Stub, **query: Any) -> estimate_pb2.LengthEstimate:
    query.setdefault("model", "m")
    return (await stub.PredictLength(pb.PredictLengthRequest(queries=[pb.LengthQuery(**query)]))).estimates[0]


def outcome(tokens: int, model: str = "m", app: str = "chat", **more: Any) -> pb.LengthOutcome:
    censored, estimate = more.pop("censored", False), more.pop("estimate", None)
    query = pb.LengthQuery(model=model, app=app, **more)
    return pb.LengthOutcome(query=query, output_tokens=tokens, censored=censored, estimate=estimate)


async def tell(stub: Stub, outcomes: Iterable[pb.LengthOutcome]) -> pb.ObserveResponse:
    async def stream() -> AsyncIterator[pb.ObserveRequest]:
        for one in outcomes:
            yield pb.ObserveRequest(lengths=[one])

    return await stub.Observe(stream())


def p90(estimate: estimate_pb2.LengthEstimate, max_tokens: float = 1e9) -> float:
    cdf = cdf_from_probabilities(np.array(estimate.probabilities))
    generated = np.array([float(estimate.generated_tokens)])
    return float(quantile(cdf, 0.9, generated, np.array([max_tokens]))[0])


def lognormal(seed: int, n: int, median: float, sigma: float) -> list[int]:
    return [max(1, round(x)) for x in np.random.default_rng(seed).lognormal(np.log(median), sigma, n)]


async def refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_an_empty_predictor_answers_with_the_prior(stub: Stub) -> None:
    estimate = await ask(stub, app="chat")
    assert len(estimate.probabilities) == K
    assert sum(estimate.probabilities) == pytest.approx(1, abs=1e-5)
    assert (estimate.source, estimate.model_version, estimate.coverage_p90) == ("prior", "histogram-1", 0.0)
    assert not (await stub.PredictLength(pb.PredictLengthRequest())).estimates


async def test_it_learns_per_app_and_answers_in_order(stub: Stub) -> None:
    told = [outcome(20, app="short") for _ in range(100)] + [outcome(2_000, app="long") for _ in range(100)]
    response = await tell(stub, told)
    assert (response.accepted, response.rejected) == (200, 0)
    apps = ["long", "short", "long", "unknown", "short"]
    asked = pb.PredictLengthRequest(queries=[pb.LengthQuery(model="m", app=app) for app in apps])
    answers = (await stub.PredictLength(asked)).estimates
    assert [p90(one) > 1_000 for one in answers] == [True, False, True, True, False]
    assert p90(answers[1]) < 40
    assert {one.source for one in answers} == {"histogram"}
    assert (await ask(stub, model="unheard of")).source == "prior"


async def test_p90_of_a_lognormal_stream_covers_what_it_says(stub: Stub) -> None:
    hits = []
    for number, tokens in enumerate(lognormal(11, 700, 200, 0.9)):
        estimate = await ask(stub, app="chat", max_tokens=4096)
        if number >= 200:
            hits.append(tokens <= p90(estimate))
        await tell(
            stub, [outcome(min(tokens, 4096), censored=tokens > 4096, max_tokens=4096, estimate=estimate)]
        )
    assert np.mean(hits) == pytest.approx(0.9, abs=0.045)
    assert (await ask(stub, app="chat")).coverage_p90 == pytest.approx(np.mean(hits[-200:]), abs=0.08)
    info = (await stub.GetModelInfo(pb.GetModelInfoRequest())).models[0]
    assert (info.kind, info.observed, info.active, info.warning) == ("histogram", 700, True, "")
    assert info.coverage_p90 == pytest.approx(0.9, abs=0.08)


async def test_what_is_out_conditions_the_answer(stub: Stub) -> None:
    await tell(stub, [outcome(tokens) for tokens in lognormal(12, 400, 150, 0.8)])
    whole = await ask(stub, app="chat")
    rest = await ask(stub, app="chat", generated_tokens=200)
    expected = conditioned(np.array(whole.probabilities)[None], np.array([200]), np.array([1e9]))[0]
    # Not the same: what is out has a recalibration of its own.
    assert np.cumsum(rest.probabilities) == pytest.approx(np.cumsum(expected), abs=0.1)
    assert rest.generated_tokens == 200
    assert sum(rest.probabilities[: int(bin_of(201))]) == 0
    assert p90(rest) > p90(whole)
    past_everything = await ask(stub, app="chat", generated_tokens=4_000_000_000)
    assert sum(past_everything.probabilities) == pytest.approx(1, abs=1e-5)


async def test_max_tokens_takes_the_mass_beyond_it(stub: Stub) -> None:
    await tell(stub, [outcome(500) for _ in range(100)])
    estimate = await ask(stub, app="chat", max_tokens=64)
    last = int(bin_of(64))
    assert sum(estimate.probabilities[last + 1 :]) == 0
    assert estimate.probabilities[last] > 0.8
    done = await ask(stub, app="chat", max_tokens=64, generated_tokens=64)
    assert sum(done.probabilities) == pytest.approx(1, abs=1e-5)


async def test_cut_answers_are_read_as_longer(stub: Stub) -> None:
    await tell(stub, [outcome(tokens, app="free") for tokens in lognormal(13, 400, 600, 0.4)])
    await tell(stub, [outcome(100, app="capped", censored=True, max_tokens=100) for _ in range(300)])
    cdf = cdf_from_probabilities(np.array((await ask(stub, app="capped")).probabilities))
    assert cdf_at(cdf, np.array([100.0]))[0] < 0.1


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"model": ""}, "queries[1].model"),
        ({"model": "x" * 257}, "queries[1].model"),
        ({"model": "m", "app": "x" * 65}, "queries[1].app"),
        ({"model": "m", "tenant": "x" * 257}, "queries[1].tenant"),
        ({"model": "m", "temperature": float("nan")}, "queries[1].temperature"),
        ({"model": "m", "temperature": -1.0}, "queries[1].temperature"),
    ],
)
async def test_bad_questions_are_refused_by_name(stub: Stub, query: dict[str, Any], field: str) -> None:
    queries = [pb.LengthQuery(model="m"), pb.LengthQuery(**query)]
    error = await refused(stub.PredictLength(pb.PredictLengthRequest(queries=queries)))
    assert (error.reason, error.metadata["field"]) == (Reason.INVALID_ARGUMENT, field)


async def test_batches_are_bounded(stub: Stub) -> None:
    full = pb.PredictLengthRequest(queries=[pb.LengthQuery(model="m", app=f"a{i}") for i in range(1024)])
    assert len((await stub.PredictLength(full)).estimates) == 1024
    full.queries.add(model="m")
    assert (await refused(stub.PredictLength(full))).reason is Reason.INVALID_ARGUMENT
    long_text = "x" * 1_000_000
    assert (
        len(
            (
                await ask(stub, prompt_head=long_text, prompt_tail=long_text, output_tail=long_text)
            ).probabilities
        )
        == K
    )


async def test_garbage_bytes_do_no_harm(app: PredictorApp) -> None:
    async with channel(app.address, PATIENT) as opened:
        raw: Any = opened.unary_unary("/paceline.predictor.v1.PredictorService/PredictLength")
        with pytest.raises(grpc.aio.AioRpcError):
            await raw(b"\xff\xff\xff not a message")
        assert (await ask(predictor_pb2_grpc.PredictorServiceStub(opened))).source == "prior"


async def test_malformed_outcomes_are_counted_and_not_learned(stub: Stub) -> None:
    bins = [1.0] + [0.0] * (K - 1)
    bad = [
        outcome(5, model=""),
        outcome(5, app="x" * 65),
        outcome(1 << 25),
        outcome(5, temperature=float("inf")),
        outcome(5, estimate=estimate_pb2.LengthEstimate(probabilities=[1.0])),
        outcome(5, estimate=estimate_pb2.LengthEstimate(probabilities=[-1.0] * K)),
        outcome(5, estimate=estimate_pb2.LengthEstimate(probabilities=[float("nan")] * K)),
    ]
    good = [outcome(5), outcome(0), outcome(5, estimate=estimate_pb2.LengthEstimate(probabilities=bins))]
    response = await tell(stub, [*bad, outcome(0, censored=True), *good])
    assert (response.accepted, response.rejected) == (3, 7)
    assert (await stub.GetModelInfo(pb.GetModelInfoRequest())).models[0].observed == 3


async def test_a_stream_that_breaks_keeps_what_had_arrived(stub: Stub) -> None:
    call = stub.Observe()
    await call.write(pb.ObserveRequest(lengths=[outcome(5)] * 50))
    async with asyncio.timeout(WAIT_S):
        while (await stub.GetModelInfo(pb.GetModelInfoRequest())).models[0].observed < 50:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    call.cancel()
    assert (await ask(stub, app="chat")).source == "histogram"
    too_many = pb.ObserveRequest(lengths=[outcome(5)] * 4097)
    second = stub.Observe()
    await second.write(too_many)
    assert (await refused(second)).reason is Reason.INVALID_ARGUMENT


async def test_a_task_is_forecast_before_any_was_learned(stub: Stub) -> None:
    answer = await stub.ForecastTask(pb.ForecastTaskRequest(tasks=[pb.TaskGraph(task_id="t", app="new")]))
    assert answer.forecasts[0].source == "prior"
    assert answer.forecasts[0].remaining_calls > 0


async def test_many_callers_and_learners_at_once(stub: Stub) -> None:
    async def caller(number: int) -> None:
        for turn in range(10):
            apps = [f"app-{(number + turn + i) % 7}" for i in range(16)]
            asked = pb.PredictLengthRequest(
                queries=[pb.LengthQuery(model=f"m{number % 3}", app=a) for a in apps]
            )
            answers = (await stub.PredictLength(asked)).estimates
            assert all(sum(one.probabilities) == pytest.approx(1, abs=1e-4) for one in answers)

    async def learner(number: int) -> None:
        response = await tell(
            stub, [outcome(10 + i, model=f"m{number % 3}", app=f"app-{i % 7}") for i in range(40)]
        )
        assert response.accepted == 40

    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        for number in range(24):
            group.create_task(caller(number))
        for number in range(8):
            group.create_task(learner(number))
    assert (await stub.GetModelInfo(pb.GetModelInfoRequest())).models[0].observed == 320


async def test_it_is_ready_and_reflects(app: PredictorApp) -> None:
    async with channel(app.address, PATIENT) as opened:
        for name in ("liveness", "readiness", "paceline.predictor.v1.PredictorService"):
            answer = await health_pb2_grpc.HealthStub(opened).Check(
                health_pb2.HealthCheckRequest(service=name)
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


Home = Callable[[Path], dict[str, Any]]
HOMES = {
    "file": lambda folder: {"state_path": str(folder / "sub" / "state.bin")},
    "store": lambda folder: {"url": f"sqlite:///{folder / 'ledger.db'}"},
}


@pytest.fixture(params=list(HOMES))
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    return dict(HOMES[request.param](tmp_path))


async def test_what_was_learned_survives_a_restart(kept: dict[str, Any]) -> None:
    async with PredictorApp(config(**kept)) as first, channel(first.address, PATIENT) as opened:
        stub = predictor_pb2_grpc.PredictorServiceStub(opened)
        await tell(stub, [outcome(tokens) for tokens in lognormal(14, 300, 900, 0.3)])
        before = await ask(stub, app="chat")
    async with PredictorApp(config(**kept)) as second, channel(second.address, PATIENT) as opened:
        stub = predictor_pb2_grpc.PredictorServiceStub(opened)
        assert await ask(stub, app="chat") == before
        assert (await stub.GetModelInfo(pb.GetModelInfoRequest())).models[0].observed == 300


async def test_reload_goes_back_to_what_was_saved(kept: dict[str, Any]) -> None:
    async with PredictorApp(config(**kept)) as app, channel(app.address, PATIENT) as opened:
        stub = predictor_pb2_grpc.PredictorServiceStub(opened)
        await stub.ReloadModels(BACK)
        await tell(stub, [outcome(10)] * 30)
        assert await app.keeper.save()
        await tell(stub, [outcome(10)] * 5)
        info = (await stub.ReloadModels(BACK)).models[0]
        assert info.observed == 30


async def test_a_damaged_state_is_reported_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "state.bin"
    path.write_bytes(b"PLH1 but no more")
    kept = {"state_path": str(path)}
    async with PredictorApp(config(**kept)) as app, channel(app.address, PATIENT) as opened:
        stub = predictor_pb2_grpc.PredictorServiceStub(opened)
        assert "cannot be used" in (await stub.GetModelInfo(pb.GetModelInfoRequest())).models[0].warning
        assert (await refused(stub.ReloadModels(BACK))).reason is Reason.STATE_INCOMPATIBLE
        await tell(stub, [outcome(10)] * 30)
        assert await app.keeper.save()
        assert (await stub.GetModelInfo(pb.GetModelInfoRequest())).models[0].warning == ""


async def test_a_store_that_comes_later_loses_nothing_of_either_life(tmp_path: Path) -> None:
    folder = tmp_path / "not there yet"
    kept = {"url": f"sqlite:///{folder / 'ledger.db'}"}
    earlier = config(url=f"sqlite:///{tmp_path / 'elsewhere.db'}")
    async with PredictorApp(earlier) as app, channel(app.address, PATIENT) as opened:
        await tell(predictor_pb2_grpc.PredictorServiceStub(opened), [outcome(10)] * 20)
    async with PredictorApp(config(**kept)) as app, channel(app.address, PATIENT) as opened:
        stub = predictor_pb2_grpc.PredictorServiceStub(opened)
        await tell(stub, [outcome(10)] * 7)
        assert not await app.keeper.save()
        assert "could not be loaded" in (await stub.GetModelInfo(pb.GetModelInfoRequest())).models[0].warning
        assert (await refused(stub.ReloadModels(BACK))).reason is Reason.UNAVAILABLE
        folder.mkdir()
        saved = await Store.open(earlier.store.url)
        state = await saved.load_state(earlier.predictor.state_name)
        await saved.close()
        assert state is not None
        new = await Store.open(f"sqlite:///{folder / 'ledger.db'}")
        await new.save_state(earlier.predictor.state_name, state)
        await new.close()
        assert await app.keeper.save()
        info = (await stub.GetModelInfo(pb.GetModelInfoRequest())).models[0]
        assert (info.observed, info.warning) == (27, "")


async def test_the_process_starts_from_the_command_line_and_saves_at_the_end(tmp_path: Path) -> None:
    address_file, state = tmp_path / "address", tmp_path / "state.bin"
    settings = {
        "predictor.listen": "127.0.0.1:0",
        "predictor.server.address_file": address_file,
        "predictor.state_path": state,
        "predictor.length_model": "none",
        "store.url": '""',
    }
    sets = [f"--set={key}={value}" for key, value in settings.items()]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "paceline_predictor", *sets)
    try:
        async with asyncio.timeout(60):
            while not address_file.exists():
                assert process.returncode is None
                await asyncio.sleep(0.02)
            async with channel(address_file.read_text(), PATIENT) as opened:
                response = await tell(predictor_pb2_grpc.PredictorServiceStub(opened), [outcome(9)] * 3)
                assert response.accepted == 3
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert state.stat().st_size > 0


def test_every_key_is_documented() -> None:
    assert undocumented_keys(Config) == []

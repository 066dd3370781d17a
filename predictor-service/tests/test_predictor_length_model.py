"""The predictor with a length model file, over real gRPC: answers, corrections, reloads under load, garbage."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tiny_length_model import tiny_length_model

from paceline.common.v1 import estimate_pb2
from paceline.predictor.v1 import predictor_pb2 as pb
from paceline.predictor.v1 import predictor_pb2_grpc
from paceline_core.histogram import LengthHistograms
from paceline_core.lengths import K, cdf_from_probabilities, quantile
from paceline_predictor.app import PredictorApp
from paceline_predictor.config import Config
from paceline_runtime.channel import ChannelConfig, channel
from paceline_runtime.errors import Reason
from paceline_runtime.status import from_rpc_error
from paceline_runtime.telemetry.config import TelemetryConfig
from paceline_runtime.telemetry.setup import Telemetry

WAIT_S = 200
PATIENT = ChannelConfig(unary_timeout_s=WAIT_S)
Stub = Any


def config(**predictor: Any) -> Config:
    own = {
        "listen": "127.0.0.1:0",
        "server": {"unary_timeout_s": WAIT_S},
        "state_interval_s": 3600,
        **predictor,
    }
    return Config.model_validate({"predictor": own, "store": {"url": ""}})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tiny_length_model(tmp_path / "length.onnx", broken_above_temperature=1.9)


@pytest.fixture
async def app(file: Path) -> AsyncIterator[PredictorApp]:
    telemetry = Telemetry(TelemetryConfig(), "predictor", scrape=True)
    async with PredictorApp(config(length_model=str(file)), telemetry=telemetry) as running:
        running.telemetry = telemetry  # type: ignore[attr-defined]
        yield running


@pytest.fixture
async def stub(app: PredictorApp) -> AsyncIterator[Stub]:
    async with channel(app.address, PATIENT) as opened:
        yield predictor_pb2_grpc.PredictorServiceStub(opened)


def query(text: str = "Tell me a story about a lighthouse.", **more: Any) -> pb.LengthQuery:
    return pb.LengthQuery(**{"model": "m", "app": "chat", "prompt_head": text, **more})


async def ask(stub: Stub, *queries: pb.LengthQuery) -> list[estimate_pb2.LengthEstimate]:
    return list((await stub.PredictLength(pb.PredictLengthRequest(queries=queries))).estimates)


async def tell(stub: Stub, outcomes: Iterable[pb.LengthOutcome]) -> pb.ObserveResponse:
    async def stream() -> AsyncIterator[pb.ObserveRequest]:
        yield pb.ObserveRequest(lengths=outcomes)

    return await stub.Observe(stream())


async def info(stub: Stub) -> pb.ModelInfo:
    return (await stub.GetModelInfo(pb.GetModelInfoRequest())).models[0]


def at(estimate: estimate_pb2.LengthEstimate, level: float) -> float:
    cdf = cdf_from_probabilities(np.array(estimate.probabilities))
    return float(quantile(cdf, level, np.array([float(estimate.generated_tokens)]), np.array([1e9]))[0])


def lognormal(seed: int, n: int, median: float, sigma: float) -> list[int]:
    return [max(1, round(x)) for x in np.random.default_rng(seed).lognormal(np.log(median), sigma, n)]


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


async def test_answers_come_from_the_file_and_say_so(stub: Stub) -> None:
    first, second = await ask(stub, query(), query("x" * 50, prompt_tokens=500))
    assert (first.source, first.model_version) == ("qrf", "tiny-1")
    assert first.probabilities != second.probabilities
    told = await info(stub)
    assert (told.kind, told.version, told.warning, told.active) == ("qrf", "tiny-1", "", True)
    assert told.file_bytes > 1000


async def test_it_learns_how_far_an_unknown_model_is_off(stub: Stub) -> None:
    """The file says some 180 tokens; this model writes 900."""
    before = at((await ask(stub, query()))[0], 0.5)
    lengths = lognormal(1, 150, 900, 0.4)
    hits = []
    for begin in range(0, 150, 10):
        estimate = (await ask(stub, query()))[0]
        part = lengths[begin : begin + 10]
        if begin >= 50:
            hits += [length <= at(estimate, 0.9) for length in part]
        response = await tell(
            stub, [pb.LengthOutcome(query=query(), output_tokens=one, estimate=estimate) for one in part]
        )
        assert (response.accepted, response.rejected) == (10, 0)
    after = at((await ask(stub, query()))[0], 0.5)
    assert before < 350
    assert after == pytest.approx(900, rel=0.2)
    assert np.mean(hits) == pytest.approx(0.9, abs=0.08)
    told = await info(stub)
    rows = {(row.model, row.app, row.whole_model): row for row in told.coverage}
    assert set(rows) == {("m", "chat", False), ("m", "", True)}
    assert rows["m", "chat", False].observed == told.observed == 150
    assert told.coverage_p90 == pytest.approx(np.mean(hits), abs=0.1)
    assert 0 < told.coverage_p50 < told.coverage_p90 <= told.coverage_p95


async def test_a_corrupt_file_leaves_the_histograms_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "length.onnx"
    path.write_bytes(b"\x08\x0a garbage")
    telemetry = Telemetry(TelemetryConfig(), "predictor", scrape=True)
    settings = config(length_model=str(path))
    async with PredictorApp(settings, telemetry=telemetry) as app, channel(app.address, PATIENT) as opened:
        stub = predictor_pb2_grpc.PredictorServiceStub(opened)
        (estimate,) = await ask(stub, query())
        assert (estimate.source, estimate.model_version) == ("prior", "histogram-1")
        await tell(stub, [pb.LengthOutcome(query=query(), output_tokens=20)] * 80)
        (estimate,) = await ask(stub, query())
        assert estimate.source == "histogram"
        assert at(estimate, 0.9) < 40
        assert str(path) in (await info(stub)).warning
        page = telemetry.prometheus_text().decode()
        assert 'paceline_degraded{reason="length_model"} 1' in page
        assert 'paceline_degraded{reason="learned_state"} 0' in page
        tiny_length_model(path)
        await stub.ReloadModels(pb.ReloadModelsRequest())
        (estimate,) = await ask(stub, query())
        assert estimate.model_version == "tiny-1"
        assert (await info(stub)).warning == ""


async def test_a_reload_under_load_drops_no_call(stub: Stub, file: Path) -> None:
    seen: list[str] = []
    answered, ending = asyncio.Event(), asyncio.Event()

    async def caller(number: int) -> None:
        while not ending.is_set():
            answers = await ask(stub, *[query(f"question {number} {i}") for i in range(1 + number * 20)])
            assert all(sum(one.probabilities) == pytest.approx(1, abs=1e-4) for one in answers)
            seen.extend(one.model_version for one in answers)
            answered.set()

    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(caller(number))
        await answered.wait()
        tiny_length_model(file, version="tiny-2", kind="mixture")
        assert (await stub.ReloadModels(pb.ReloadModelsRequest())).models[0].version == "tiny-2"
        (now,) = await ask(stub, query())
        assert (now.model_version, now.source) == ("tiny-2", "mixture")
        damage(file)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ReloadModels(pb.ReloadModelsRequest())
        error = from_rpc_error(caught.value)
        assert error.reason is Reason.FAILED_PRECONDITION
        assert "no ONNX graph" in error.message
        (still,) = await ask(stub, query())
        assert still.model_version == "tiny-2"
        ending.set()
    assert set(seen) <= {"tiny-1", "tiny-2"}
    assert "tiny-1" in seen


async def test_another_file_begins_without_the_corrections_of_the_last(stub: Stub, file: Path) -> None:
    await tell(stub, [pb.LengthOutcome(query=query(), output_tokens=n) for n in lognormal(2, 100, 30, 0.3)])
    tiny_length_model(file, version="tiny-2", median_tokens=30)
    await stub.ReloadModels(pb.ReloadModelsRequest())
    (estimate,) = await ask(stub, query())
    # The old correction, some -1.8 in the logarithm, on top of the new file would say 10.
    assert at(estimate, 0.5) > 15
    assert (await info(stub)).observed == 100


async def test_what_was_learned_survives_a_restart_with_the_same_file(tmp_path: Path, file: Path) -> None:
    settings = config(length_model=str(file), state_path=str(tmp_path / "state.bin"))
    async with PredictorApp(settings) as first, channel(first.address, PATIENT) as opened:
        stub = predictor_pb2_grpc.PredictorServiceStub(opened)
        await tell(
            stub, [pb.LengthOutcome(query=query(), output_tokens=n) for n in lognormal(3, 120, 900, 0.3)]
        )
        before = await ask(stub, query(), query("other", app="code"))
    async with PredictorApp(settings) as second, channel(second.address, PATIENT) as opened:
        stub = predictor_pb2_grpc.PredictorServiceStub(opened)
        assert await ask(stub, query(), query("other", app="code")) == before
        assert (await info(stub)).observed == 120


async def test_a_state_of_histograms_alone_is_refused_and_the_warning_says_so(
    tmp_path: Path, file: Path
) -> None:
    state = tmp_path / "state.bin"
    histograms = LengthHistograms()
    histograms.observe("m", "chat", 50)
    state.write_bytes(histograms.to_bytes())
    settings = config(length_model=str(file), state_path=str(state))
    async with PredictorApp(settings) as app, channel(app.address, PATIENT) as opened:
        stub = predictor_pb2_grpc.PredictorServiceStub(opened)
        assert "learned histograms alone" in (await info(stub)).warning
        assert (await ask(stub, query()))[0].source == "qrf"


GARBAGE = [
    query(""),
    query("x" * 1_000_000, prompt_tail="y" * 1_000_000, output_tail="z" * 1_000_000),
    query("\x00\x01\x7f\u202e\ufffd" * 800, prompt_tail="\U0010ffff" * 4096),
    query("字" * 4096, app="no such app \u202e"),
    query("a", model="never heard of", app="", tenant="?"),
    query("a", max_tokens=1 << 31, prompt_tokens=(1 << 32) - 1, turn_index=(1 << 32) - 1),
    query("a", generated_tokens=(1 << 32) - 1, max_tokens=3, task_stage=(1 << 32) - 1),
    query("a", generated_tokens=4000, max_tokens=100, output_tail="```" * 341),
    query("a", temperature=3.4e38),
    query("a", temperature=1.95),  # for it the graph answers NaN
    query("{[(<|im_start|>" * 270, prompt_tail="1. " * 1365, wants_json=True, has_tools=True),
]


async def test_garbage_gets_answers_and_changes_none(app: PredictorApp, stub: Stub) -> None:
    await tell(stub, [pb.LengthOutcome(query=query(), output_tokens=n) for n in lognormal(4, 60, 300, 0.5)])
    asked = query("What is the capital of France?", prompt_tokens=9, max_tokens=512)
    (alone,) = await ask(stub, asked)
    amid = await ask(stub, *GARBAGE[:5], asked, *GARBAGE[5:])
    assert amid[5].probabilities == pytest.approx(alone.probabilities, abs=1e-6)
    assert (amid[5].source, amid[5].model_version) == (alone.source, alone.model_version)
    for estimate in amid:
        assert len(estimate.probabilities) == K
        assert np.isfinite(estimate.probabilities).all()
        assert min(estimate.probabilities) >= 0
        assert sum(estimate.probabilities) == pytest.approx(1, abs=1e-4)
    at_nan = amid[1 + GARBAGE.index(query("a", temperature=1.95))]
    assert at_nan.source == "histogram"
    metrics = app.telemetry.prometheus_text().decode()  # type: ignore[attr-defined]
    # The absurd temperature is read as the highest one, so it is past the bound, too.
    assert 'paceline_predictions_invalid_total{kind="qrf"} 2' in metrics


async def test_the_most_and_longest_questions_fit_into_a_call(stub: Stub) -> None:
    text = "Why does the sky look blue? " * 300
    queries = [
        query(text[:4096], prompt_tail=f"{i} " + text[:4000], app=f"app-{i % 50}") for i in range(1024)
    ]
    async with asyncio.timeout(WAIT_S):
        large = asyncio.create_task(ask(stub, *queries))
        (small,) = await ask(stub, queries[77])
        answers = await large
    assert len(answers) == 1024
    assert answers[77].probabilities == pytest.approx(small.probabilities, abs=1e-6)


async def test_absurd_outcomes_are_refused_or_learned_and_do_no_harm(stub: Stub) -> None:
    good = pb.LengthOutcome(query=query(), output_tokens=200)
    response = await tell(
        stub,
        [
            pb.LengthOutcome(query=query(), output_tokens=(1 << 32) - 1),
            pb.LengthOutcome(query=query("", temperature=float("nan")), output_tokens=5),
            pb.LengthOutcome(query=query(generated_tokens=500), output_tokens=200),
            pb.LengthOutcome(query=query(generated_tokens=(1 << 32) - 1), output_tokens=1 << 24),
            pb.LengthOutcome(query=query(max_tokens=1), output_tokens=1 << 24, censored=True),
            pb.LengthOutcome(query=query(temperature=1.95), output_tokens=300),
            *[good] * 40,
        ],
    )
    assert (response.accepted, response.rejected) == (42, 2)
    (estimate,) = await ask(stub, query())
    assert 100 < at(estimate, 0.5) < 400

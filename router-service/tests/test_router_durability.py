"""Durability, and what is left when the store or the predictor is down."""

import asyncio

import numpy as np

from paceline.common.v1 import attempt_pb2, estimate_pb2
from paceline.predictor.v1 import predictor_pb2
from paceline.router.v1 import generation_pb2, router_pb2
from paceline_core import lengths
from paceline_router.clock import SystemClock
from paceline_router.durability import Durability
from paceline_router.fallback_lengths import FallbackHistograms
from paceline_router.predictor_link import PredictorLink
from paceline_router.states import State
from paceline_runtime.errors import PacelineError, Reason
from paceline_runtime.telemetry.config import TelemetryConfig
from paceline_runtime.telemetry.setup import Telemetry
from paceline_store.errors import StoreUnavailable
from paceline_store.rows import CheckpointRow, RequestChange, RequestRow
from paceline_store.store import Store

NONE, ASYNC, SYNC = (
    generation_pb2.DURABILITY_NONE,
    generation_pb2.DURABILITY_ASYNC,
    generation_pb2.DURABILITY_SYNC,
)


async def test_the_store_has_what_each_durability_promises(line, spec):
    await line.engine("e0")
    router = await line.router(store=True)
    kept = {ASYNC: "async", SYNC: "sync"}
    answers = {}
    for durability, name in {NONE: "none", **kept}.items():
        answers[name] = await router.generate(spec(tokens=30, request_id=name, durability=durability))
        assert answers[name].accepted.durability == durability
        assert answers[name].count == 30
    await line.stop(router.app)
    store = await Store.open(f"sqlite+aiosqlite:///{line.folder / 'router.db'}")
    try:
        assert await store.get_request("none") is None
        for name in kept.values():
            stored = await store.get_request(name)
            assert stored.tokens.count == 30
            assert np.frombuffer(stored.tokens.token_ids, "<i4").tolist() == answers[name].ids
            assert stored.tokens.text.decode() == answers[name].text
            assert stored.request.state == State.FINISHED
            finished = generation_pb2.Finished.FromString(stored.request.finished)
            assert finished == answers[name].finished
            spec_kept = generation_pb2.GenerationSpec.FromString(stored.request.spec)
            assert spec_kept.text == "hello"
    finally:
        await store.close()


async def test_without_a_store_sync_is_refused_and_the_rest_says_what_it_is(line, spec):
    await line.engine("e0")
    router = await line.router()
    error = await router.refused(spec(durability=SYNC))
    assert error.reason is Reason.STORE_UNAVAILABLE
    answer = await router.generate(spec(durability=ASYNC))
    assert answer.accepted.durability == NONE


class FakeWriter:
    """A write-behind whose store can be switched off; keeps what was committed."""

    def __init__(self):
        self.down = False
        self.rows = []

    @property
    def degraded(self):
        return self.down

    def put(self, row):
        if self.down:
            return False
        self.rows.append(row)
        return True

    async def commit(self, rows):
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailable("switched off")
        self.rows += rows


async def test_a_store_that_is_down_refuses_sync_and_nothing_else(line, spec):
    await line.engine("e0")
    router = await line.router(store=True)
    writer = FakeWriter()
    router.app.durability._writer = writer
    writer.down = True
    error = await router.refused(spec(durability=SYNC))
    assert error.reason is Reason.STORE_UNAVAILABLE
    assert error.retryable
    assert (await router.generate(spec(durability=ASYNC))).count == 16
    assert router.app.durability.degraded
    assert router.app.durability.rows_refused > 0
    writer.down = False
    assert (await router.generate(spec(durability=SYNC))).count == 16


async def test_sync_tokens_are_not_released_before_their_commit(line, spec):
    await line.engine("e0", time_scale=0.3)
    router = await line.router(store=True)
    writer = FakeWriter()
    router.app.durability._writer = writer
    session = await router.session()
    answer = await session.submit(spec(tokens=60, request_id="s", durability=SYNC), token_limit=30)
    await session.until(lambda: answer.count > 3)
    writer.down = True
    await session.credit(answer, 60)
    request = router.app.ledger.find("s")
    await line.until(lambda: request.output.count == 60 and request.ended)
    committed = sum(row.count for row in writer.rows if isinstance(row, CheckpointRow))
    assert answer.count <= request.released == committed < 60
    assert answer.finished is None
    writer.down = False
    await session.ended(answer)
    assert answer.count == 60
    assert sum(row.count for row in writer.rows if isinstance(row, CheckpointRow)) == 60
    assert isinstance(writer.rows[0], RequestRow)
    assert any(isinstance(row, RequestChange) and row.finished for row in writer.rows)


async def test_a_sync_request_that_cannot_be_committed_in_time_fails(line, endless):
    await line.engine("e0", time_scale=1.0)
    # It commits in one turn of the loop or not at all: no stall of the machine uses this time up.
    router = await line.router(store=True, sync_timeout_s=0.2)
    writer = FakeWriter()
    router.app.durability._writer = writer
    session = await router.session()
    answer = await session.submit(endless(durability=SYNC))
    await session.until(lambda: answer.count > 3)
    writer.down = True
    await session.ended(answer)
    assert answer.finished.failure.reason == Reason.STORE_UNAVAILABLE
    committed = sum(row.count for row in writer.rows if isinstance(row, CheckpointRow))
    assert answer.count == answer.finished.output_tokens == committed
    await line.until(lambda: not line.executors["e0"].engine.live_table())


async def test_a_sync_answer_whose_end_cannot_be_committed_is_no_success(line, spec):
    await line.engine("e0", time_scale=0.3)
    router = await line.router(store=True, sync_timeout_s=0.2)
    writer = FakeWriter()
    router.app.durability._writer = writer
    session = await router.session()
    answer = await session.submit(spec(tokens=20, request_id="s", durability=SYNC), token_limit=10)
    await session.until(lambda: answer.count > 3)
    writer.down = True
    await session.credit(answer, 20)
    request = router.app.ledger.find("s")
    await line.until(lambda: request.ended)
    await session.ended(answer)
    assert answer.reason == attempt_pb2.FINISH_REASON_FAILED
    assert answer.finished.failure.reason == Reason.STORE_UNAVAILABLE
    committed = sum(row.count for row in writer.rows if isinstance(row, CheckpointRow))
    assert answer.count == answer.finished.output_tokens == committed < 20


class FakeStub:
    """A predictor that answers, is silent, or answers nonsense."""

    def __init__(self):
        self.mode = "fine"
        self.batches = []

    async def PredictLength(self, request, timeout):
        self.batches.append(len(request.queries))
        if self.mode == "silent":
            await asyncio.sleep(0)
            raise unavailable()
        bins = [0.0] * (lengths.K if self.mode == "fine" else 3)
        bins[2] = 1.0
        estimate = estimate_pb2.LengthEstimate(probabilities=bins, source="histogram", model_version="1")
        return predictor_pb2.PredictLengthResponse(estimates=[estimate] * len(request.queries))


def unavailable():
    import grpc

    metadata = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, metadata, metadata, "gone")


async def test_predictions_are_asked_in_batches_and_fall_back_without_delay(monkeypatch):
    monkeypatch.setattr("paceline_router.predictor_link.REST_MS", 600_000.0)
    stub, clock = FakeStub(), SystemClock()
    link = PredictorLink(
        stub, FallbackHistograms(), Telemetry(TelemetryConfig(), "t").instruments, clock, 50.0
    )
    query = predictor_pb2.LengthQuery(model="m", app="a", max_tokens=100)
    got = await asyncio.gather(*(link.estimate(query) for _ in range(5)))
    assert {e.source for e in got} == {"histogram"}
    assert stub.batches == [5]
    stub.mode = "nonsense"
    assert (await link.estimate(query)).source == "fallback"
    stub.mode = "silent"
    assert (await link.estimate(query)).source == "fallback"
    assert link.degraded
    asked = len(stub.batches)
    assert (await link.estimate(query)).source == "fallback"
    assert len(stub.batches) == asked  # it is left alone for a while


def test_the_fallback_learns_lengths_by_app():
    fallback = FallbackHistograms()
    for _ in range(50):
        fallback.learn("m", "short", 5, False)
        fallback.learn("m", "long", 900, False)

    def median(app):
        cdf = lengths.cdf_from_probabilities(np.array(fallback.estimate("m", app).probabilities))
        return lengths.quantile(cdf, 0.5, np.zeros(1), np.array([1e6]))[0]

    assert median("short") < 10
    assert median("long") > 500
    assert 5 < median("unheard of") < 1000


async def test_a_real_predictor_answers_and_learns(line, spec, endless):
    from paceline_predictor.app import PredictorApp
    from paceline_predictor.config import Config as PredictorConfig

    await line.engine("e0", time_scale=1.0)
    sections = {"predictor": {"listen": "127.0.0.1:0"}, "store": {"url": ""}}
    config = PredictorConfig.model_validate(sections)
    async with PredictorApp(config) as predictor:
        router = await line.router(predictor=predictor.server.address)
        session = await router.session()
        alone = await session.submit(endless())
        await session.until(lambda: alone.accepted is not None)
        assert alone.accepted.estimate_source != "fallback"
        beside = await router.generate(spec())
        assert beside.accepted.estimate_source not in ("", "fallback", "router")
    # It is gone: the next estimate is the router's own.
    assert (await router.generate(spec())).accepted.estimate_source == "fallback"


async def test_background_writes_never_block_serving(line, spec):
    clock = SystemClock()
    durability = Durability(None, "r", clock, 10.0, 1.0)
    assert not durability.degraded
    assert not durability.enabled
    await line.engine("e0")
    router = await line.router(store=True)
    await router.generate(spec())
    got = await router.stub.GetRequest(router_pb2.GetRequestRequest(request_id=await newest(router)))
    assert got.request.durability == ASYNC


async def newest(router):
    page = await router.stub.ListRequests(router_pb2.ListRequestsRequest(limit=1))
    return page.requests[0].request_id


def test_errors_of_the_store_are_the_projects_own():
    assert issubclass(StoreUnavailable, PacelineError)

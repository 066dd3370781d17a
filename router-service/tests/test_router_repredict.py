"""Estimates of running requests: made anew every so many tokens, and told as outcomes at the end."""

import asyncio
import contextlib

import grpc
import numpy as np
import pytest

from paceline.common.v1 import estimate_pb2
from paceline.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from paceline.router.v1 import router_pb2
from paceline_core import lengths
from paceline_core.slo import Slo, SloClass
from paceline_predictor.app import PredictorApp
from paceline_predictor.config import Config as PredictorConfig
from paceline_router.clock import SystemClock
from paceline_router.estimate import Estimate
from paceline_router.fallback_lengths import FallbackHistograms
from paceline_router.ledger import Ledger, Retention
from paceline_router.outcomes import checkpoint_outcome, length_query
from paceline_router.output import Output
from paceline_router.predictor_link import PredictorLink
from paceline_router.repredict import MAX_BATCH, MAX_DUE, Repredictor
from paceline_router.request import Arrival, LiveRequest
from paceline_runtime.telemetry.config import TelemetryConfig
from paceline_runtime.telemetry.setup import Telemetry


@contextlib.asynccontextmanager
async def real_predictor():
    sections = {"predictor": {"listen": "127.0.0.1:0"}, "store": {"url": ""}}
    async with PredictorApp(PredictorConfig.model_validate(sections)) as app:
        yield app


class FakePredictor(predictor_pb2_grpc.PredictorServiceServicer):
    """Writes down what it is asked and told; says that every answer has 300 tokens."""

    def __init__(self):
        self.queries, self.lengths, self.batches = [], [], []
        self.down = False

    async def PredictLength(self, request, context):
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        self.queries += request.queries
        self.batches.append(len(request.queries))
        return predictor_pb2.PredictLengthResponse(
            estimates=[said(q.generated_tokens) for q in request.queries]
        )

    async def Observe(self, request_iterator, context):
        async for request in request_iterator:
            self.lengths += request.lengths
        return predictor_pb2.ObserveResponse()


def said(generated):
    bins = np.zeros(lengths.K)
    bins[lengths.bin_of(300)] = 1.0
    return estimate_pb2.LengthEstimate(probabilities=bins, source="qrf", generated_tokens=generated)


@contextlib.asynccontextmanager
async def fake_predictor():
    server, fake = grpc.aio.server(), FakePredictor()
    predictor_pb2_grpc.add_PredictorServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    fake.address = f"127.0.0.1:{port}"
    try:
        yield fake
    finally:
        await server.stop(0)


async def test_a_running_request_is_predicted_anew_and_its_scheduler_hears_of_it(line, endless):
    scheduler = await line.engine("e0", time_scale=0.5)
    async with real_predictor() as predictor:
        router = await line.router(predictor=predictor.address)
        session = await router.session()
        answer = await session.submit(endless(request_id="long"))
        request = None

        def revised_twice():
            nonlocal request
            request = router.app.ledger.find("long")
            return request is not None and request.repredicted >= 2 and request.revised is not None

        await line.until(revised_twice)
        first = request.estimate
        assert first is not None
        assert first.message.generated_tokens == 0
        assert request.revised.message.generated_tokens >= 50
        assert request.latest_estimate is request.revised
        assert request.revised.p50 > request.revised.message.generated_tokens
        state = scheduler.loop.state
        rows = np.array([state.table.get(request.attempt.key).row])

        def at_most_40_tokens():
            view = state.table.view(state.engine.capacity, state.fitter.model, rows)
            return lengths.cdf_at(view.length_cdf(), np.array([40.0]))[0]

        # What its scheduler plans with knows that 50 tokens are out.
        await line.until(lambda: at_most_40_tokens() < 0.01)
        explained = await router.stub.ExplainRequest(router_pb2.ExplainRequestRequest(request_id="long"))
        events = [e for e in explained.events if e.event == "reestimated"]
        assert events
        assert "P90" in events[-1].detail
        await session.cancel(answer)
        await session.ended(answer)


async def test_the_text_so_far_is_asked_about_and_the_last_row_is_told(line, spec):
    await line.engine("e0", time_scale=0.3)
    async with fake_predictor() as fake:
        router = await line.router(predictor=fake.address)
        session = await router.session()
        answer = await session.submit(spec(tokens=180, request_id="r"), token_limit=60)
        await line.until(lambda: any(q.generated_tokens for q in fake.queries))
        await session.credit(answer, 180)
        await session.ended(answer)
        await line.until(lambda: len(fake.lengths) == 2)
        request = router.app.ledger.find("r")
        again = [q for q in fake.queries if q.generated_tokens]
        assert again
        for query in again:
            out = request.output.text_before(query.generated_tokens, 10**6).decode()
            assert query.output_tail == out[-1024:]
            assert query.prompt_head == "hello"
            assert query.generated_tokens >= 50
        assert len({q.generated_tokens // 50 for q in again}) == len(again) <= 3
        arrival, checkpoint = fake.lengths
        assert not arrival.query.generated_tokens
        assert arrival.estimate.generated_tokens == 0
        assert checkpoint.query.generated_tokens == 50
        assert checkpoint.query.output_tail == answer.text[: len(checkpoint.query.output_tail)]
        assert not checkpoint.HasField("estimate")
        assert {row.output_tokens for row in fake.lengths} == {180}
        assert all(row.censored for row in fake.lengths)  # it ended at its limit


async def test_without_revisions_and_with_a_failing_predictor_serving_goes_on(line, spec):
    await line.engine("e0", time_scale=0.1)
    async with fake_predictor() as fake:
        router = await line.router(predictor=fake.address, repredict_every_tokens=0)
        await router.generate(spec(tokens=200))
        assert not [q for q in fake.queries if q.generated_tokens]
        failing = await line.router(predictor=fake.address, router_id="other", wait=False)
        await failing.until(lambda: sum(e.up for e in failing.app.fleet) == 1)
        fake.down = True
        answer = await failing.generate(spec(tokens=200, request_id="x"))
        assert answer.finished.output_tokens == 200
        assert failing.app.ledger.find("x").revised is None


def make_link(stub):
    telemetry = Telemetry(TelemetryConfig(), "t")
    return PredictorLink(stub, FallbackHistograms(), telemetry.instruments, SystemClock(), 50.0), telemetry


class FakeLink:
    """Takes what a scheduler would be sent."""

    def __init__(self):
        self.reestimates = {}

    def reestimate(self, key, estimate=None, forecast=None):
        self.reestimates[key] = estimate


class FakeEngine:
    def __init__(self):
        self.link = FakeLink()


class FakeAttempt:
    def __init__(self, key, engine):
        self.key, self.engine = key, engine


class FakeStub:
    """Answers, or fails."""

    def __init__(self):
        self.batches, self.fails, self.bins = [], False, None

    async def PredictLength(self, request, timeout):
        self.batches.append(len(request.queries))
        await asyncio.sleep(0)
        if self.fails:
            metadata = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, metadata, metadata)
        answers = [self.bins or said(q.generated_tokens) for q in request.queries]
        return predictor_pb2.PredictLengthResponse(estimates=answers)


def live(ledger, engine, spec, number, tokens):
    given = spec(request_id=f"r{number}", model="m")
    request = LiveRequest(given.request_id, given, Slo(SloClass.BEST_EFFORT), "", Arrival(0.0, 0))
    request.output.append(bytes(4 * tokens), np.ones(tokens, "<u4").tobytes(), b"a" * tokens)
    request.attempt = FakeAttempt(number, engine)
    request.max_tokens = 1000
    ledger.add(request)
    return request


async def test_a_round_is_bounded_and_every_request_gets_its_turn(spec):
    stub, engine = FakeStub(), FakeEngine()
    link, telemetry = make_link(stub)
    ledger = Ledger(10_000, Retention(0, 0, 0.0), 1.0)
    due = [live(ledger, engine, spec, n, 60) for n in range(600)]
    early = live(ledger, engine, spec, 900, 49)
    repredictor = Repredictor(ledger, link, telemetry.instruments, SystemClock(), 50)
    for _ in range(6):
        before = len(engine.link.reestimates)
        assert await repredictor.revise()
        assert len(engine.link.reestimates) - before <= MAX_DUE
    assert max(stub.batches) <= MAX_BATCH
    assert all(r.revised is not None and r.repredicted == 1 for r in due)
    assert sum(stub.batches) == len(due)  # each once, until 50 more are out
    assert early.revised is None
    assert set(engine.link.reestimates) == {r.attempt.key for r in due}


@pytest.mark.parametrize("trouble", ["fails", "nonsense"])
async def test_a_failed_round_leaves_arrivals_to_the_predictor(spec, trouble):
    stub, engine = FakeStub(), FakeEngine()
    link, telemetry = make_link(stub)
    ledger = Ledger(10, Retention(0, 0, 0.0), 1.0)
    request = live(ledger, engine, spec, 1, 60)
    stub.fails = trouble == "fails"
    stub.bins = estimate_pb2.LengthEstimate(probabilities=[1.0]) if trouble == "nonsense" else None
    repredictor = Repredictor(ledger, link, telemetry.instruments, SystemClock(), 50)
    await repredictor.revise()  # the first look takes the list of live requests
    assert not await repredictor.revise()
    assert request.revised is None
    assert not link.degraded
    stub.fails, stub.bins = False, None
    assert (await link.estimate(length_query(request))).source == "qrf"


def test_the_text_before_a_token_is_the_text_that_was_out():
    output = Output()
    pieces = ["Hé", "", "llo", " wörld"]
    for piece in pieces:
        raw = piece.encode()
        output.append(bytes(4), len(raw).to_bytes(4, "little"), raw)
    assert output.text_before(3, 100).decode() == "Héllo"
    assert output.text_before(9, 100).decode() == "Héllo wörld"
    assert output.text_before(3, 2) == b"lo"
    assert output.text_before(0, 100) == b""


def test_a_checkpoint_is_drawn_by_the_id_among_those_passed(spec):
    ledger, engine = Ledger(1000, Retention(0, 0, 0.0), 1.0), FakeEngine()
    assert checkpoint_outcome(live(ledger, engine, spec, 0, 50), censored=False) is None
    drawn = {
        checkpoint_outcome(live(ledger, engine, spec, n, 900), censored=False).query.generated_tokens
        for n in range(1, 40)
    }
    assert drawn == {50, 200, 800}


def test_many_estimates_are_those_made_one_by_one():
    rng = np.random.default_rng(3)
    messages = [
        estimate_pb2.LengthEstimate(probabilities=row, generated_tokens=generated)
        for generated, row in enumerate(rng.dirichlet(np.ones(lengths.K), 5))
    ]
    limits = [10, 100, 1000, 10_000, 100]
    many = Estimate.many(messages, limits)
    ones = [Estimate.of(m, limit) for m, limit in zip(messages, limits, strict=True)]
    assert [e.p50 for e in many] == pytest.approx([e.p50 for e in ones])
    assert [e.p90 for e in many] == pytest.approx([e.p90 for e in ones])
    assert Estimate.many([estimate_pb2.LengthEstimate()], [10]) is None

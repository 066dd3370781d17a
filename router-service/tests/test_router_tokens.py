"""Each token once, in order, whatever the line repeats, mixes up or leaves out."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2
from paceline_core.slo import Slo, SloClass
from paceline_router.attempt import Attempt, Explained
from paceline_router.clock import SystemClock
from paceline_router.durability import Durability
from paceline_router.edge import EdgeTimeline
from paceline_router.ledger import Ledger, Retention
from paceline_router.output import Output
from paceline_router.request import Arrival, LiveRequest
from paceline_router.states import State
from paceline_router.token_intake import TokenIntake

PIECES = ["", "a", "é", "日本", " word", "\n", "🙂"]


class FakeLink:
    """Notes what the router asks again."""

    def __init__(self):
        self.asked = []

    def republish(self, key, index):
        self.asked.append((key, index))


def token(key, index):
    """What the engine says at an index: a function of attempt's request and index alone."""
    return (key * 31 + index * 7) % 1000, PIECES[(key + index) % len(PIECES)].encode()


def batch(rows):
    """A TokenBatch of rows (key, first, count), as the engine would publish them."""
    tokens = [token(key, i) for key, first, count in rows for i in range(first, first + count)]
    payload = attempt_pb2.TokenPayload(
        token_ids=np.array([t for t, _ in tokens], "<i4").tobytes(),
        text_lengths=np.array([len(p) for _, p in tokens], "<u4").tobytes(),
        text=b"".join(p for _, p in tokens),
    )
    return attempt_pb2.TokenBatch(
        attempt_keys=[r[0] for r in rows],
        first_indices=[r[1] for r in rows],
        counts=[r[2] for r in rows],
        payload=payload.SerializeToString(),
    )


def setup(keys):
    clock = SystemClock()
    ledger = Ledger(100, Retention(10, 1000, 1.0), 1.0)
    intake = TokenIntake(ledger, Durability(None, "r", clock, 1000.0, 1.0), clock)
    link = FakeLink()
    requests = {}
    for key in keys:
        request = LiveRequest(
            f"r{key}",
            generation_pb2.GenerationSpec(),
            Slo(SloClass.BEST_EFFORT),
            "",
            Arrival(clock.now_ms(), 0),
        )
        request.state = State.QUEUED
        explained = Explained("test", "e", "", (), -1.0)
        attempt = Attempt(key, 1, request, SimpleNamespace(link=link), 1, 0, 0, 0.0, 0, explained)
        request.attempt = attempt
        ledger.attempts[key] = attempt
        requests[key] = request
    return intake, link, requests


def check(request, key):
    output = request.output
    want = [token(key, i) for i in range(output.count)]
    assert np.frombuffer(bytes(output.ids), "<i4").tolist() == [t for t, _ in want]
    assert bytes(output.text) == b"".join(p for _, p in want)
    assert np.frombuffer(bytes(output.lengths), "<u4").tolist() == [len(p) for _, p in want]
    assert request.timeline.tokens == output.count


rows = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 30), st.integers(1, 8)), min_size=1, max_size=6)


@settings(max_examples=200)
@given(st.lists(rows, max_size=12))
def test_any_rows_give_a_prefix_of_what_the_engine_said_and_gaps_are_asked_for(batches):
    intake, link, requests = setup([1, 2, 3])  # 4 is a stranger
    for batch_rows in batches:
        before = {key: r.output.count for key, r in requests.items()}
        intake.take(batch(batch_rows))
        for key, request in requests.items():
            check(request, key)
            assert request.output.count >= before[key]
    for key, index in link.asked:
        assert index <= requests[key].output.count
    # The engine answers what was asked last: everything is there in the end.
    for key, request in requests.items():
        intake.take(batch([(key, request.output.count, 40)]))
        assert request.output.count >= 40
        check(request, key)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20), st.randoms())
def test_every_loss_is_repaired_by_what_is_asked(sizes, random):
    """An engine that loses batches on the way, and republishes when asked."""
    intake, link, requests = setup([1])
    request, at = requests[1], 0
    for size in sizes:
        if random.random() < 0.6:
            intake.take(batch([(1, at, size)]))
        at += size
    intake.take(batch([(1, at, 1)]))
    at += 1
    while link.asked:
        key, index = link.asked.pop(0)
        intake.take(batch([(key, index, at - index)]))
    assert request.output.count == at
    check(request, 1)


def test_a_gap_is_asked_for_once():
    intake, link, _ = setup([1])
    for first in (5, 6, 7):
        intake.take(batch([(1, first, 1)]))
    assert link.asked == [(1, 0)]


def test_only_the_current_attempt_publishes():
    intake, _, requests = setup([1])
    old = requests[1].attempt
    requests[1].attempt = None
    intake.take(batch([(1, 0, 5)]))
    assert requests[1].output.count == 0
    assert intake.stray_tokens == 5
    requests[1].attempt = old
    intake.take(batch([(1, 0, 5)]))
    assert requests[1].output.count == 5


def test_a_malformed_batch_is_refused_whole():
    intake, _, requests = setup([1])
    bad = batch([(1, 0, 3)])
    bad.counts[0] = 4
    with pytest.raises(ValueError, match="token batch"):
        intake.take(bad)
    assert requests[1].output.count == 0


@given(st.lists(st.sampled_from(PIECES), max_size=40), st.data())
def test_output_spans_join_to_the_whole(pieces, data):
    output = Output()
    for i, piece in enumerate(pieces):
        size = len(piece.encode())
        output.append(i.to_bytes(4, "little"), size.to_bytes(4, "little"), piece.encode())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(pieces)), max_size=5)))
    marks = [0, *cuts, len(pieces)]
    spans = [output.span(a, b, output.text_offset(a)) for a, b in pairwise(marks) if b > a]
    assert b"".join(ids for ids, _, _ in spans) == bytes(output.ids)
    assert b"".join(text for _, _, text in spans) == "".join(pieces).encode()


@given(
    st.lists(st.tuples(st.integers(1, 5), st.floats(0, 100)), min_size=1, max_size=30),
    st.floats(1, 500),
    st.floats(1, 50),
)
def test_tokens_in_time_are_counted_as_if_one_by_one(arrivals, ttft_ms, tbt_ms):
    slo = Slo(SloClass.LATENCY, ttft_ms=ttft_ms, tbt_ms=tbt_ms)
    timeline, index, now_ms, in_time = EdgeTimeline(), 0, 0.0, 0
    for count, gap_ms in arrivals:
        now_ms += gap_ms
        timeline.take(slo, index, count, now_ms)
        in_time += sum(slo.token_due_ms(i) >= now_ms for i in range(index, index + count))
        index += count
    assert abs(timeline.in_time - in_time) <= 1  # a token due at the very instant may round either way
    outcome = timeline.outcome(slo, True, now_ms, 0.0)
    assert outcome.tokens == index
    assert outcome.attained == (timeline.in_time == index)

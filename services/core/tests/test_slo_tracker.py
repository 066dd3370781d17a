"""The tracker against a plain reading of the rules, token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core.slo import Slo, SloClass
from paceline_core.tracker import WINDOW_S, Attainment, SloTracker

SLOS = [
    Slo(SloClass.LATENCY, ttft_ms=100.0, tbt_ms=10.0),
    Slo(SloClass.LATENCY, ttft_ms=30.0, tbt_ms=0.1),
    Slo(SloClass.DEADLINE, e2e_ms=250.0),
    Slo(SloClass.TASK, e2e_ms=400.0, task_id="t"),
    Slo(SloClass.BEST_EFFORT),
]

steps = st.lists(
    st.tuples(st.floats(0, 60) | st.integers(0, 6).map(lambda n: n * 10.0), st.integers(1, 4)), max_size=40
)


@given(lives=st.lists(st.tuples(st.sampled_from(SLOS), st.floats(-500, 500), steps), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_counts_exactly_the_tokens_in_time(lives):
    tracker = SloTracker(2)
    tracker.grow(len(lives))
    clock = [arrival for _, arrival, _ in lives]
    seen: list[list[float]] = [[] for _ in lives]
    for slot, (slo, arrival, _) in enumerate(lives):
        tracker.begin(slot, slo, arrival)
    for turn in range(max(len(life[2]) for life in lives)):
        for slot, (_, arrival, life) in enumerate(lives):
            if turn < len(life):
                wait, count = life[turn]
                clock[slot] += wait
                first = len(seen[slot])
                fresh = tracker.tokens(
                    np.asarray([slot]), np.asarray([first]), np.asarray([count]), clock[slot]
                )
                assert fresh.tolist() == ([slot] if first == 0 else [])
                seen[slot] += [clock[slot] - arrival] * count
    for slot, (slo, _, _) in enumerate(lives):
        outcome = tracker.end(slot, clock[slot], completed=True)
        times = seen[slot]
        in_time = [t <= slo.token_due_ms(i) for i, t in enumerate(times)]
        if slo.slo_class in (SloClass.DEADLINE, SloClass.TASK):
            whole = not times or times[-1] <= slo.e2e_ms
            in_time = [whole] * len(times)
        assert outcome.tokens == len(times)
        assert outcome.tokens_in_time == sum(in_time)
        if times:
            assert outcome.attained == all(in_time)
            assert outcome.first_token_ms == times[0]
            assert outcome.last_token_ms == times[-1]


def test_many_slots_at_once_equal_one_by_one():
    rng = np.random.default_rng(3)
    together, apart = SloTracker(16), SloTracker(16)
    for slot in range(16):
        for tracker in (together, apart):
            tracker.begin(slot, SLOS[slot % len(SLOS)], -10.0 * slot)
    slots, first, now = np.arange(16), np.zeros(16, dtype=np.int64), 0.0
    for _ in range(50):
        now += float(rng.integers(1, 30))
        counts = rng.integers(1, 4, 16)
        together.tokens(slots, first, counts, now)
        for slot in range(16):
            apart.tokens(slots[slot : slot + 1], first[slot : slot + 1], counts[slot : slot + 1], now)
        first = first + counts
    for slot in range(16):
        assert together.end(slot, now, completed=True) == apart.end(slot, now, completed=True)


def test_unfinished_or_silent_requests_do_not_attain():
    tracker = SloTracker(4)
    for slot in range(2):
        tracker.begin(slot, SLOS[slot * 2], 0.0)
        tracker.tokens(np.asarray([slot]), np.asarray([0]), np.asarray([1]), 1.0)
        assert not tracker.end(slot, 2.0, completed=False).attained
    tracker.begin(2, SLOS[2], 0.0)
    assert not tracker.end(2, 9_999.0, completed=True).attained  # no token, and the deadline is past
    tracker.begin(3, SLOS[2], 0.0)
    assert tracker.end(3, 10.0, completed=True).attained


def test_a_slot_is_clean_when_used_again():
    tracker = SloTracker(1)
    tracker.begin(0, SLOS[0], 0.0)
    tracker.tokens(np.asarray([0]), np.asarray([0]), np.asarray([3]), 500.0)
    tracker.end(0, 500.0, completed=True)
    tracker.begin(0, SLOS[0], 1_000.0)
    tracker.tokens(np.asarray([0]), np.asarray([0]), np.asarray([1]), 1_010.0)
    outcome = tracker.end(0, 1_010.0, completed=True)
    assert (outcome.tokens, outcome.tokens_in_time, outcome.first_token_ms) == (1, 1, 10.0)
    assert outcome.longest_gap_ms == 0.0


def test_attainment_covers_a_window_and_forgets():
    tracker = SloTracker(1)
    start_ms = 1_000_000.0
    for second in range(5):
        for late in (False, True):
            now = start_ms + second * 1_000
            tracker.begin(0, SLOS[2], now - (300.0 if late else 100.0))
            tracker.tokens(np.asarray([0]), np.asarray([0]), np.asarray([1]), now)
            tracker.end(0, now, completed=True)
    tracker.begin(0, SLOS[4], start_ms)
    tracker.end(0, start_ms + 4_000, completed=True, counted=False)
    assert tracker.attainment(start_ms + 5_000) == {SloClass.DEADLINE: Attainment(10, 5)}
    half = tracker.attainment(start_ms + 2_000 + WINDOW_S * 1_000)
    assert half == {SloClass.DEADLINE: Attainment(4, 2)}
    assert tracker.attainment(start_ms + 10 * WINDOW_S * 1_000) == {}


@pytest.mark.parametrize("index", [0, 1, 7, 1000])
def test_the_due_instant_itself_is_in_time(index):
    slo = Slo(SloClass.LATENCY, ttft_ms=33.3, tbt_ms=0.7)
    tracker = SloTracker(1)
    for after, expected in ((0.0, 1), (1e-9 * 33.3, 0)):
        tracker.begin(0, slo, 0.0)
        due = slo.token_due_ms(index) + after
        tracker.tokens(
            np.asarray([0]), np.asarray([index]), np.asarray([1]), due * (1 + 1e-12 if after else 1)
        )
        assert tracker.end(0, due, completed=True).tokens_in_time == expected

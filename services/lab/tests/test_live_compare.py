"""Comparing policies: who runs when, and what counts as a difference."""

import math

import pytest

from paceline_lab.live.compare import Comparison, Turn, turns
from paceline_lab.paired import interval, paired


def test_every_policy_has_every_seed_and_none_is_always_first():
    order = list(turns(["a", "b", "c"], [7, 8, 9]))
    assert sorted(order) == [(seed, policy) for seed in (7, 8, 9) for policy in "abc"]
    assert [order[i][1] for i in (0, 3, 6)] == ["a", "b", "c"]


def test_a_steady_gain_is_seen_through_seeds_that_differ_more():
    theirs = [10.0, 50.0, 90.0, 20.0, 70.0]
    ours = [value + gain for value, gain in zip(theirs, (1.0, 1.2, 0.8, 1.1, 0.9), strict=True)]
    gain = paired(ours, theirs)
    assert gain.mean == pytest.approx(1.0)
    assert gain.half == pytest.approx(2.776 * math.sqrt(0.025) / math.sqrt(5), rel=1e-3)
    assert gain.above_zero
    assert not gain.below_zero
    assert not interval([a - b for a, b in zip(ours, reversed(theirs), strict=True)]).above_zero
    one = interval([1.0])
    assert math.isnan(one.half)
    assert not one.above_zero
    assert not one.below_zero


def test_differences_are_paired_by_seed_whatever_the_order_of_running():
    def turn(policy, seed, goodput):
        metrics = dict.fromkeys(("request_goodput", "token_goodput_1_1", "token_goodput_1_8"), goodput)
        metrics |= {"attainment": 0.5, "output_tokens_per_s": 1.0, "ttft_p99_ms": math.inf}
        return Turn(policy, seed, metrics, {"latency": 0.5}, 10, {})

    made = (turn("b", 2, 5.0), turn("a", 1, 2.0), turn("b", 1, 3.0), turn("a", 2, 4.0))
    result = Comparison(made, {})
    assert result.against("b", "a", "request_goodput").mean == pytest.approx(1.0)
    assert result.against("b", "a", "request_goodput").half == pytest.approx(0.0)
    document = result.as_dict()
    assert [row["policy"] for row in document["rows"]] == ["b", "a"]

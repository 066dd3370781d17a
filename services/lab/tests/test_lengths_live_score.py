"""Coverage of declared bounds: what counts, what does not."""

import math

import pytest

from paceline_lab.lengths.live.score import Answered, coverage


def row(p90: float, output: int, *, cut: bool = False, limit: int = 100, source: str = "qrf") -> Answered:
    return Answered("chat", limit, p90 / 2, p90, source, output, cut)


def test_bounds_at_the_limit_are_not_scored() -> None:
    got = coverage([row(50, 40), row(50, 60), row(50, 50), row(100, 100, cut=True), row(100, 20)])
    assert (got.requests, got.scored, got.clipped, got.cut) == (5, 3, 2, 1)
    assert got.coverage_p90 == pytest.approx(2 / 3)
    assert got.coverage_p90_with_clipped == pytest.approx(4 / 5)
    assert got.standard_error == pytest.approx(math.sqrt(2 / 9 / 3))
    assert got.width == pytest.approx(2.0)


def test_an_answer_cut_at_its_limit_is_past_a_lower_bound() -> None:
    got = coverage([row(99, 100, cut=True), row(99, 99)])
    assert got.coverage_p90 == 0.5


def test_without_scored_requests_nothing_is_claimed() -> None:
    got = coverage([row(100, 100, cut=True, source="prior")]).as_dict()
    assert got["coverage_p90"] is None
    assert got["width"] is None
    assert got["sources"] == {"prior": 1}
    assert coverage([]).requests == 0

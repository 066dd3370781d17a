"""Coverage of declared bounds: what counts, what does not."""

import numpy as np
import pytest

from paceline_lab.lengths.live.score import Answered, coverage


def row(p90: float, output: int, *, cut: bool = False, p_cut: float = 0.0, limit: int = 100) -> Answered:
    return Answered("chat", limit, p90 / 2, p90, p_cut, "qrf", output, cut)


def test_an_answer_is_within_its_bound_or_past_it() -> None:
    got = coverage([row(50, 40), row(50, 60), row(50, 50), row(100, 20)])
    assert (got.requests, got.open, got.cut) == (4, 3, 0)
    assert got.coverage_p90 == pytest.approx(3 / 4)
    assert got.coverage_p90_open == pytest.approx(2 / 3)
    assert got.width == pytest.approx(2.0)


def test_an_answer_cut_at_its_limit_is_past_a_lower_bound() -> None:
    assert coverage([row(99, 100, cut=True, p_cut=0.05), row(99, 99)]).coverage_p90 == 0.5


def test_a_bound_at_the_limit_is_kept_as_far_as_cuts_were_foretold() -> None:
    """Half of the answers are cut: foretold so, P90 covers 90 %; foretold a tenth as often, it covers a half."""
    for p_cut, expected in ((0.5, 0.9), (0.1, 0.5), (1.0, 0.95)):
        rows = [row(100, 100, cut=True, p_cut=p_cut), row(100, 70, p_cut=p_cut)]
        assert coverage(rows).coverage_p90 == pytest.approx(expected)


def test_calibrated_forecasts_cover_what_they_say_whatever_the_limit() -> None:
    rng = np.random.default_rng(1)
    for limit in (50, 150, 400):
        rows = []
        for median, length in zip(rng.lognormal(4.5, 1, 4_000), rng.normal(0, 0.5, 4_000), strict=True):
            output = median * np.exp(length)
            draws = np.sort(median * np.exp(0.5 * np.random.default_rng(2).normal(size=2_000)))
            p90, p_cut = min(draws[1_800], limit), float((draws > limit).mean())
            cut = output > limit
            rows.append(Answered("chat", limit, 1, p90, p_cut, "x", limit if cut else int(output), bool(cut)))
        assert coverage(rows).coverage_p90 == pytest.approx(0.9, abs=0.02)


def test_without_requests_nothing_is_claimed() -> None:
    got = coverage([]).as_dict()
    assert got["coverage_p90"] is None
    assert got["width"] is None

"""What is still to come, read from a table row: the same as from the whole distribution."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core import lengths
from paceline_core.lengths import K, cdf_from_probabilities
from paceline_core.survival import LengthTable


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """CDFs from flat to one spike, tokens out, limits, and tokens asked for."""
    rng = np.random.default_rng(seed)
    n = 30
    cdf = cdf_from_probabilities(rng.gamma(rng.choice([0.02, 0.3, 5.0], (n, 1)), size=(n, K)) + 1e-300)
    out = rng.integers(0, rng.choice([3, 300, 60_000], n))
    return cdf, out, out + rng.integers(1, 70_000, n), rng.integers(0, 70_000, n)


def table_of(cdf: np.ndarray, limits: np.ndarray) -> LengthTable:
    """With its rows in another order than they were put in, and grown in between."""
    table = LengthTable(1)
    table.grow(2 * len(cdf))
    rows = np.arange(len(cdf))[::-1].copy()
    table.put(rows, cdf[rows], limits[rows])
    return table


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_it_agrees_with_the_whole_distribution(seed: int) -> None:
    cdf, out, limits, more = drawn(seed)
    table, rows = table_of(cdf, limits), np.arange(len(cdf))
    g, m = out.astype(np.float64), limits.astype(np.float64)

    mean = lengths.mean(cdf, g, np.minimum(m, lengths.OPEN_EDGE)) - g
    # Rows are float32: where a millionth of the mass is left, a mean is good to some percent.
    np.testing.assert_allclose(table.remaining_mean(rows, out), np.maximum(mean, 1.0), rtol=5e-2, atol=0.1)
    before, after = lengths.cdf_at(cdf, g), lengths.cdf_at(cdf, g + more)
    np.testing.assert_allclose(
        table.p_within(rows, out, more), (after - before) / np.maximum(1 - before, 1e-9), atol=2e-3
    )
    for level in (0.05, 0.5, 0.9, 0.99):
        found = table.quantile(rows, out, limits, level)
        reached = lengths.cdf_at(cdf, found)
        target = before + level * (1 - before)
        free = (found < limits) & (found > out + 1)
        np.testing.assert_allclose(reached[free], target[free], atol=1e-4)
        clipped = (found >= limits) & (found > out + 1)
        assert (reached[clipped] <= target[clipped] + 1e-4).all()
        assert (found >= np.minimum(out + 1, limits)).all()
        assert (found <= limits).all()


def test_a_row_that_is_put_again_forgets_its_past() -> None:
    short, long = np.zeros((1, K)), np.zeros((1, K))
    short[0, 5], long[0, 40] = 1, 1
    table, row, none = LengthTable(1), np.array([0]), np.array([0])
    table.put(row, cdf_from_probabilities(long), np.array([30_000]))
    first = table.remaining_mean(row, none)[0]
    table.put(row, cdf_from_probabilities(short), np.array([30_000]))
    assert table.remaining_mean(row, none)[0] < first / 10
    table.put(row, cdf_from_probabilities(long), np.array([64]))
    assert 60 < table.remaining_mean(row, none)[0] <= 64


def test_one_token_is_left_at_the_limit() -> None:
    table, row = LengthTable(1), np.array([0])
    table.put(row, cdf_from_probabilities(np.ones((1, K))), np.array([500]))
    left = [float(table.remaining_mean(row, np.array([g]))[0]) for g in (0, 100, 400, 499, 500, 70_000)]
    assert left[-3:] == [1.0, 1.0, 1.0]

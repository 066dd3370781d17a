"""Length estimates of live requests are taken in late and many at once; what is read is as if each had been at once."""

import numpy as np

from paceline_core import lengths
from paceline_core.batch.estimates import LengthEstimates
from paceline_core.placement.residents import ResidentTable
from paceline_core.placement.view import RequestView


def test_estimates_taken_in_late_are_those_taken_in_at_once():
    rng = np.random.default_rng(3)
    table, rows, now = ResidentTable(rows=4), {}, {}
    for key in range(700):
        cdf = lengths.cdf_from_probabilities(rng.random(lengths.K))[0]
        limit = int(rng.integers(10, 5000))
        table.add(key, key % 7, RequestView("m", 100, limit, cdf), 0.0)
        rows[key], now[key] = table.row_of(key), (cdf, limit)
        if key % 3 == 0:  # ended before anybody read it: its row goes to the next one
            table.remove(key)
            del rows[key], now[key]
        elif key % 50 == 1:
            revised = lengths.cdf_from_probabilities(rng.random(lengths.K))[0]
            table.reestimated(key, revised)
            now[key] = (revised, limit)
    at_once = LengthEstimates(1024)
    for key, row in rows.items():
        cdf, limit = now[key]
        at_once.put(np.array([row]), cdf[None, :], np.array([limit]))
    live = table.view(7).lengths
    at = np.array(list(rows.values()))
    out, more = rng.integers(0, 9, len(at)), rng.integers(1, 400, len(at))
    np.testing.assert_array_equal(live.p_within(at, out, more), at_once.p_within(at, out, more))
    np.testing.assert_array_equal(live.mean_left(at, out), at_once.mean_left(at, out))
    np.testing.assert_array_equal(live.upper_left(at, out), at_once.upper_left(at, out))
    np.testing.assert_array_equal(live.cdf[at], at_once.cdf[at])

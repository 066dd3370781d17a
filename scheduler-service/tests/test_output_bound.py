"""How long an answer is expected to be, as engines are told that reserve memory for it."""

import numpy as np
import pytest

from paceline.common.v1 import attempt_pb2, estimate_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core import lengths
from paceline_scheduler.wire import output_bound_tokens


def submit(probabilities, *, max_tokens=4096, out=0):
    spec = attempt_pb2.AttemptSpec(max_tokens=max_tokens, forced_ids=bytes(4 * out))
    return scheduler_pb2.Submit(
        spec=spec, estimate=estimate_pb2.LengthEstimate(probabilities=np.asarray(probabilities).tolist())
    )


def spread_about(median):
    masses = np.exp(-((np.log(lengths.EDGES) - np.log(median)) ** 2) / 0.5)
    return masses / masses.sum()


def test_the_bound_is_an_upper_quantile_given_what_is_out():
    masses = spread_about(200)
    reached = np.cumsum(masses)
    for place in (0, 20, 28):
        out, passed = int(lengths.EDGES[place]), reached[place]
        expected = lengths.EDGES[(reached - passed) / (1 - passed) >= 0.9][0]
        assert output_bound_tokens(submit(masses, out=out)) == expected > out


def test_in_the_middle_of_a_bin_its_rest_is_to_come():
    masses = np.zeros(lengths.K)
    masses[[30, 31]] = 0.5
    middle = int(lengths.EDGES[30] + lengths.EDGES[29]) // 2
    # A third of what is left is in this bin.
    assert output_bound_tokens(submit(masses, out=middle)) == lengths.EDGES[31]


def test_the_bound_is_never_past_what_was_asked_for():
    assert output_bound_tokens(submit(spread_about(2000), max_tokens=300)) == 300


@pytest.mark.parametrize(
    "masses",
    [[], [1.0, 2.0], np.full(lengths.K, np.nan), np.zeros(lengths.K)],
    ids=["none", "few", "nan", "zero"],
)
def test_without_a_sound_estimate_there_is_no_bound(masses):
    assert output_bound_tokens(submit(masses)) == 0


async def test_the_engine_is_told(bench):
    executor, _scheduler, router = await bench.pair()
    asked = bench.submit(1, tokens=40)
    asked.estimate.probabilities.extend(spread_about(20).tolist())
    await router.run_all(asked)
    (row,) = executor.engine.live_table()
    assert 0 < row.spec.output_bound_tokens <= 40

"""Arrivals and workloads: the statistics they claim, and the same jobs for the same seed."""

import numpy as np
import pytest

from paceline_core.slo import SloClass
from paceline_lab.live.arrivals import Arrivals, arrival_times_s
from paceline_lab.live.workload import WorkloadSpec, jobs_of, parse_mix
from paceline_lab.prompts.library import load_library


@pytest.mark.parametrize(
    ("kind", "cv", "expected_cv"),
    [(Arrivals.POISSON, 5.0, 1.0), (Arrivals.GAMMA, 0.5, 0.5), (Arrivals.GAMMA, 3.0, 3.0)],
)
def test_gaps_have_the_stated_mean_and_variation(kind: Arrivals, cv: float, expected_cv: float) -> None:
    times = arrival_times_s(kind, 4.0, 50_000.0, np.random.default_rng(3), cv=cv)
    gaps = np.diff(times)
    # Standard errors at 200,000 gaps: below 1 % for the mean, a few percent for the CV of a heavy-tailed Gamma.
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(expected_cv, rel=0.05)
    assert np.all(gaps >= 0)
    assert times[0] >= 0
    assert times[-1] < 50_000.0


def test_poisson_counts_have_variance_equal_to_their_mean() -> None:
    times = arrival_times_s(Arrivals.POISSON, 2.0, 40_000.0, np.random.default_rng(8))
    counts = np.bincount((times // 10).astype(int), minlength=4000)
    assert counts.mean() == pytest.approx(20.0, rel=0.03)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)


def test_a_longer_run_begins_with_the_arrivals_of_a_shorter_one() -> None:
    short = arrival_times_s(Arrivals.GAMMA, 3.0, 50.0, np.random.default_rng(1), cv=2.0)
    long = arrival_times_s(Arrivals.GAMMA, 3.0, 500.0, np.random.default_rng(1), cv=2.0)
    np.testing.assert_array_equal(long[: len(short)], short)


@pytest.mark.parametrize("bad", [{"rate": 0.0}, {"duration": 0.0}, {"cv": 0.0}])
def test_nonsense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        arrival_times_s(
            Arrivals.GAMMA,
            bad.get("rate", 1.0),
            bad.get("duration", 1.0),
            np.random.default_rng(0),
            cv=bad.get("cv", 1.0),
        )


def test_equal_seeds_give_equal_jobs_and_others_do_not() -> None:
    library = load_library()
    spec = WorkloadSpec(2.0, 100.0, seed=5)
    first, again = jobs_of(spec, library), jobs_of(spec, library)
    assert first == again
    assert jobs_of(WorkloadSpec(2.0, 100.0, seed=6), library) != first


def test_mix_and_rounds_of_prompts() -> None:
    library = load_library()
    jobs = jobs_of(WorkloadSpec(10.0, 400.0, seed=2, mix=parse_mix("latency=2,deadline=1,task=1")), library)
    share = {c: sum(job.slo_class is c for job in jobs) / len(jobs) for c in SloClass}
    assert share[SloClass.LATENCY] == pytest.approx(0.5, abs=0.05)
    assert share[SloClass.TASK] == pytest.approx(0.25, abs=0.05)
    assert share[SloClass.BEST_EFFORT] == 0
    latency = [job.work for job in jobs if job.slo_class is SloClass.LATENCY]
    one_round = len(library.of_class(SloClass.LATENCY))
    assert len(set(latency[:one_round])) == one_round  # nothing repeats before all had their turn
    assert all(work.slo_class is SloClass.LATENCY for work in latency)


@pytest.mark.parametrize("bad", ["chat=1", "latency=x", "latency=-1", "latency=0"])
def test_bad_mixes_are_refused(bad: str) -> None:
    with pytest.raises(ValueError):
        parse_mix(bad)

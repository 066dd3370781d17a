"""Estimates in the simulator: calibrated, as good as they say, and honest about what is known."""

import numpy as np
import pytest

from paceline_core import lengths
from paceline_core.batch.policy import EstimateUse
from paceline_core.slo import SloClass
from paceline_lab.sim.estimates import LengthSpec, Source, estimates_for
from paceline_lab.sim.knowledge import learn, true_outlooks
from paceline_lab.workloads.registry import make_workload

TRAINING = make_workload("jitserve-mix", rate_per_s=1, duration_s=1_500, seed=99)
KNOWLEDGE = learn(TRAINING)
WORKLOAD = make_workload("jitserve-mix", rate_per_s=1, duration_s=1_500, seed=3)
TRUTH = np.array([call.output_tokens for job in WORKLOAD.jobs for call in job.calls])
APPS = np.array([job.app for job in WORKLOAD.jobs for _ in job.calls])


def estimates(text, use=EstimateUse.PREDICTED):
    return estimates_for(WORKLOAD, KNOWLEDGE, LengthSpec.parse(text), use, 1)


def pit(cdf, truth=TRUTH):
    """Where the truth falls in each distribution, spread within the token."""
    rng = np.random.default_rng(1)
    below = lengths.cdf_at(cdf, truth - 1.0)
    return below + rng.random(len(truth)) * (lengths.cdf_at(cdf, truth.astype(float)) - below)


@pytest.mark.parametrize("text", ["predictor", "predictor:0.7", "noisy:0.4", "noisy:0.8"])
def test_estimates_are_calibrated(text):
    places = pit(estimates(text).initial.astype(float))
    for level in (0.1, 0.5, 0.9):
        assert (places <= level).mean() == pytest.approx(level, abs=0.04)


def test_refinements_stay_calibrated_and_tell_more():
    made = estimates("predictor")
    keys = np.arange(len(TRUTH))
    last = made.refined(keys, np.full(len(keys), made.refinements))
    for level in (0.1, 0.5, 0.9):
        assert (pit(last) <= level).mean() == pytest.approx(level, abs=0.04)
    spread = [(c * (1 - c)).sum(axis=1).mean() for c in (made.initial.astype(float), last)]
    assert spread[1] < spread[0]


def test_the_predictor_explains_the_share_that_it_states():
    cdf = estimates("predictor:0.5").initial.astype(float)
    none, most = np.zeros(len(TRUTH)), np.full(len(TRUTH), 32_768.0)
    median = np.log(lengths.quantile(cdf, 0.5, none, most))
    for app in np.unique(APPS):
        mine = app == APPS
        # Rank correlation of the median with the truth: that of two normals with correlation sqrt(R2).
        ranks = [np.argsort(np.argsort(x[mine])) for x in (median, TRUTH)]
        correlation = np.corrcoef(*ranks)[0, 1]
        assert correlation == pytest.approx(6 / np.pi * np.arcsin(np.sqrt(0.5) / 2), abs=0.12)


def test_bias_moves_the_centre_and_shuffling_loses_it():
    none, most = np.zeros(len(TRUTH)), np.full(len(TRUTH), 32_768.0)

    def median(text):
        return lengths.quantile(estimates(text).initial.astype(float), 0.5, none, most)

    assert np.median(median("noisy:0.1:0.7") / TRUTH) == pytest.approx(0.7, rel=0.1)
    chat = APPS == "chat"
    assert abs(np.corrcoef(np.log(median("shuffled"))[chat], np.log(TRUTH)[chat])[0, 1]) < 0.15
    assert np.corrcoef(np.log(median("predictor"))[chat], np.log(TRUTH)[chat])[0, 1] > 0.4


def test_only_an_oracle_knows_the_length():
    true = estimates("predictor", EstimateUse.TRUE)
    assert (true.limit == TRUTH).all()
    seen = estimates("predictor")
    assert (seen.limit >= TRUTH).all()
    assert len(np.unique(seen.limit)) < 16
    prior = estimates("noisy:0.1", EstimateUse.PRIOR)
    assert len(np.unique(prior.initial, axis=0)) <= len(SloClass)


def test_outlooks_of_stages_share_the_work_that_is_left():
    for job in TRAINING.jobs[:50]:
        if job.slo.slo_class is not SloClass.TASK:
            continue
        outlooks = true_outlooks(job)
        assert outlooks[-1].share == pytest.approx(1.0)
        assert outlooks[-1].rest_tokens == 0
        assert all(0 <= outlook.share <= 1 for outlook in outlooks)
    known = KNOWLEDGE.outlook("research-task", 0)
    assert 0 < known.share < 1
    assert known.rest_tokens > KNOWLEDGE.outlook("research-task", 2).rest_tokens
    assert KNOWLEDGE.outlook("never seen", 0).share == 1.0


@pytest.mark.parametrize("text", ["noisy", "noisy:-1", "predictor:1.5", "class:1", "psychic", "noisy:0.2:0"])
def test_what_is_no_source_is_refused(text):
    with pytest.raises(ValueError, match="write predictor"):
        LengthSpec.parse(text)
    assert LengthSpec.parse("noisy:0.2:1.3") == LengthSpec(Source.NOISY, sigma=0.2, bias=1.3)

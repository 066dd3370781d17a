"""What evaluation scores, and that no answer knows its own outcome; the mixture of two graphs."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="training needs `make setup-train`")

from paceline_core.calibration.online import CalibrationParams, OnlineLengths
from paceline_core.lengths import UPPER, K
from paceline_lab.lengths.graph import GraphBuilder, answer, check, normalised, quantile_nodes, session
from paceline_lab.lengths.mixture import Hedge, Part, mixture_graph
from paceline_lab.lengths.online_evaluation import (
    Outcomes,
    Stream,
    bounds,
    hits,
    prequential,
    recovery,
    windows,
)
from paceline_lab.lengths.targets import targets
from paceline_predictor.features import NUMERIC


def learner(worlds: int) -> OnlineLengths:
    return OnlineLengths(CalibrationParams(max_worlds=worlds))


def stream(rows: int, factor: float = 1.0, seed: int = 0) -> Stream:
    """Log-normal answers around known centres; `factor` times as long as the base says."""
    random = np.random.default_rng(seed)
    centre = random.normal(4.5, 0.7, rows)
    lengths = np.maximum(1, np.exp(centre + random.normal(0, 0.4, rows)) * factor).astype(np.int64)
    z = (np.log(UPPER)[None, :] - centre[:, None]) / 0.4
    cdf = 1 / (1 + np.exp(-1.702 * z))
    cdf[:, -1] = 1
    base = np.diff(cdf, axis=1, prepend=0.0)
    keys = tuple(("model", "app") for _ in range(rows))
    outcomes = Outcomes(lengths, np.zeros(rows, dtype=bool), np.zeros(rows), np.arange(rows))
    return Stream(base, keys, outcomes)


def test_only_bounds_that_say_something_are_scored() -> None:
    masses = np.repeat(stream(1).base, 4, axis=0)
    p50, p90, p95 = bounds(masses)[0]
    lengths = np.array([1, 100_000, int(p90) + 1, 2])
    censored = np.array([False, False, True, True])
    limits = np.array([0, 0, 0, p90 - 1])
    found = hits(masses, Outcomes(lengths, censored, limits, np.arange(4)))
    assert found[0].tolist() == [1, 1, 1]
    assert found[1].tolist() == [0, 0, 0]
    # Cut past P90: it was longer than P50 and P90; whether it would have passed P95 nobody knows.
    assert found[2, :2].tolist() == [0, 0]
    assert np.isnan(found[2, 2])
    # Bounds at or past max_tokens cover whatever happens.
    assert np.isnan(found[3, 1:]).all()
    assert p50 < p90 < p95


def test_no_answer_knows_its_own_outcome() -> None:
    told = stream(40)
    lengths = told.outcomes.lengths.copy()
    lengths[24] = 30_000
    other = Stream(
        told.base,
        told.keys,
        Outcomes(lengths, told.outcomes.censored, told.outcomes.limits, told.outcomes.prompts),
    )
    first, second = prequential(learner(1), told), prequential(learner(1), other)
    assert np.array_equal(first[:25], second[:25])
    assert not np.array_equal(first[39], second[39])


def test_an_unseen_model_is_covered_better_with_more_outcomes() -> None:
    found = recovery(learner, stream(420, factor=2.5, seed=3), orders=6, seed=1, after=(5, 200))

    def gap(after: str) -> float:
        return abs(found[after]["frozen"]["p50"]["mean"] - 0.5)

    assert found["after_200"]["scored"] == 220
    assert gap("after_200") < 0.08
    assert gap("after_200") < gap("after_5")


def test_windows_count_what_stays_near_the_declared_level() -> None:
    random = np.random.default_rng(0)
    right = (random.random((2, 800, 3)) < np.array([0.5, 0.9, 0.95])).astype(float)
    assert windows(right)["p90"]["good_windows"] == 1
    assert windows(np.zeros((1, 800, 3)))["p90"]["good_windows"] == 0
    assert windows(right[:, :400]) == {"windows": 0}


def constant_graph(bin_: int) -> GraphBuilder:
    graph = GraphBuilder()
    masses = np.full((1, K), 1e-4, dtype=np.float32)
    masses[0, bin_] = 1
    zero = graph.node(
        "Mul", graph.node("ReduceSum", "numeric", graph.integers(1), keepdims=1), graph.scalar(0.0)
    )
    graph.result = normalised(graph, graph.node("Add", zero, graph.constant("masses", masses)))  # type: ignore[attr-defined]
    return graph


def test_a_mixture_answers_the_weighted_mean_sharper_for_known_apps_and_broader_for_others() -> None:
    models = []
    for bin_ in (5, 30):
        graph = constant_graph(bin_)
        masses = graph.result  # type: ignore[attr-defined]
        models.append(graph.model(masses, quantile_nodes(graph, masses), 8, len(NUMERIC)))
    parts = [Part(models[0], 0.25, 1.0), Part(models[1], 0.75, 0.0)]
    broad = np.full(K, 1 / K)
    mixed = mixture_graph(parts, apps=[2, 6], sharpening=2.0, hedge=Hedge(broad, 0.4))
    check(mixed)
    # A known app, the same while it answers, another app, none.
    text, numeric = np.zeros((4, 8), dtype=np.float32), np.zeros((4, len(NUMERIC)), dtype=np.float32)
    text[:2, 6] = text[2, 5] = 1.0
    numeric[1, NUMERIC.index("has_output")] = 1.0
    alone = [answer(session(model), text, numeric)[0] for model in models]
    found, quantiles = answer(session(mixed), text, numeric)
    squared = (0.25 * alone[0][0] + 0.75 * alone[1][0]) ** 2
    assert np.allclose(found[0], squared / squared.sum(), atol=1e-6)
    assert np.allclose(found[1], alone[0][1], atol=1e-6)
    assert np.allclose(found[2:], 0.6 * alone[0][2:] + 0.4 * broad, atol=1e-6)
    assert quantiles[0, 0] > UPPER[5] >= quantiles[1, 0]
    with pytest.raises(ValueError, match="shares"):
        mixture_graph([Part(models[0], 0.25, 1.0), Part(models[1], 0.5, 0.0)])


def test_a_figure_past_its_line_is_a_miss() -> None:
    def split(gain: float, p50: float) -> dict[str, object]:
        over = {"value": gain, "low": gain - 0.01, "high": gain + 0.01}
        scores = {"coverage": {"p50": p50, "p90": 0.9, "p95": 0.95}, "log_width_80": 1.0}
        return {"scored": 3000, "learners": {"qrf": scores}, "gain": {"per-app histogram": over}}

    def met(gain: float, p50: float) -> list[bool]:
        document = {
            "candidate": "qrf",
            "rivals": ["per-app histogram"],
            "online": {"prompt": split(gain, p50)},
        }
        return [row["met"] for row in targets(document)]

    assert met(0.12, 0.51) == [True, True, True]
    assert met(0.05, 0.51) == [True, True, False]
    assert met(-0.01, 0.53) == [False, False, False]

"""Learns the matcher's parameters: how well does a mixture of finished tasks explain what then still came?

The loss of a partial task is minus the log likelihood of what still came (critical-path tokens in log, and the number
of stages) under the mixture, the task's own group left out. How much history of the same application there is, is
drawn for each partial task, from none to all, so that costs of strangers are learned for cold and for warm starts.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from paceline_core.tasks.matching import NO_MATCH, distance_parts
from paceline_core.tasks.params import CARRY_AFTER_STAGES, MAX_SHIFT, MatcherParams
from paceline_core.tasks.pattern import A, PatternTable, partials, pattern_of, table_of
from paceline_lab.tasks.checkpoints import Checkpoint, checkpoints
from paceline_lab.tasks.dataset import SOURCES, TaskExample
from paceline_lab.tasks.export import matcher
from paceline_predictor.tasks.library import LibraryParams, PatternLibrary

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

_STAGE_SPREAD = 0.25
_BACKGROUND_STAGE_SPREAD = 0.8
_RECENCIES = (1.0, 0.8)
_HISTORIES = (0, 1, 3, 10, 30, 10_000)
_FLOOR = 1e-12
_SHIPPED = 72
"""Patterns in the file at most, about."""
_SHIPPED_FROM = 400
"""Tasks that they are medoids of."""
_SHIPPED_WEIGHT = 10.0
"""Tasks that the patterns of one family stand for."""


@dataclass(frozen=True, slots=True)
class _Problem:
    """Q partial tasks against M patterns, all that does not depend on the parameters."""

    parts: NDArray[np.float32]
    """float32[A + 1, Q, M]."""
    effective: Floats
    usable: NDArray[np.bool_]
    """bool[Q, M]."""
    own: NDArray[np.bool_]
    over: NDArray[np.bool_]
    log_rest: Floats
    """float64[Q, M]: log(1 + critical tokens to come) of the pattern."""
    log_shift: Floats
    stage_log: Floats
    """float64[Q, M]: log kernel of the stages to come."""
    truth: Floats
    """float64[Q]: log(1 + critical tokens to come) of the task."""
    done: NDArray[np.bool_]
    background_log: Floats
    """float64[Q]: log likelihood under the background."""
    weight: Floats


def fit(
    examples: Sequence[TaskExample],
    *,
    queries: int = 900,
    patterns: int = 700,
    seed: int = 0,
    start: MatcherParams | None = None,
    iterations: int = 40,
    progress: Progress | None = None,
) -> MatcherParams:
    """Parameters for these tasks, each family of equal weight. Raises ValueError without tasks."""
    if not examples:
        raise ValueError("no task to learn from")
    random = np.random.default_rng(seed)
    sampled = _balanced(examples, patterns, random)
    cuts = _cuts(sampled, queries, random)
    base = _background(sampled, cuts, start or MatcherParams())
    best, best_loss = base, math.inf
    for turn, recency in enumerate(_RECENCIES):
        params = replace(base, recency=recency)
        problem = _problem(sampled, cuts, params, np.random.default_rng(seed))

        def told(_: Floats, turn: int = turn, count: list[int] = [0]) -> None:  # noqa: B006
            count[0] += 1
            if progress is not None:
                progress("fit", turn * iterations + min(count[0], iterations), len(_RECENCIES) * iterations)

        found = minimize(
            lambda theta, problem=problem, params=params: _loss(_unpack(theta, params), problem),
            _pack(params),
            jac=True,
            method="L-BFGS-B",
            bounds=_BOUNDS,
            options={"maxiter": iterations},
            callback=told,
        )
        if found.fun < best_loss:
            best, best_loss = _unpack(found.x, params), float(found.fun)
    return best


def build(
    examples: Sequence[TaskExample],
    *,
    seed: int = 0,
    queries: int = 900,
    patterns: int = 700,
    card: dict[str, object] | None = None,
    progress: Progress | None = None,
) -> bytes:
    """A matcher file from these tasks: parameters and shipped patterns. Raises ValueError without tasks."""
    params = fit(examples, queries=queries, patterns=patterns, seed=seed, progress=progress)
    return matcher(params, shipped_patterns(examples, seed), {**(card or {}), "data": data_card(examples)})


def data_card(examples: Sequence[TaskExample]) -> dict[str, dict[str, object]]:
    """Of each set that was trained on: its licence, how many tasks and of which families."""
    licences = {source.folder: source.licence for source in SOURCES}
    card: dict[str, dict[str, object]] = {}
    for name in sorted({example.source for example in examples}):
        mine = [example for example in examples if example.source == name]
        card[name] = {
            "licence": licences.get(name, "not known"),
            "tasks": len(mine),
            "families": sorted({example.family for example in mine}),
        }
    return card


def shipped_patterns(examples: Sequence[TaskExample], seed: int = 0) -> PatternTable:
    """Medoids of all families alike; what each stands for adds up to the same for every family."""
    chosen = _balanced(examples, _SHIPPED_FROM, np.random.default_rng(seed))
    by_family: dict[str, list[TaskExample]] = {}
    for example in chosen:
        by_family.setdefault(example.family, []).append(example)
    tables = []
    for family in sorted(by_family):
        library = PatternLibrary(LibraryParams(capacity=max(_SHIPPED // len(by_family), 2)))
        for example in by_family[family]:
            library.add(pattern_of(example.app, example.stages), 1.0)
        table, _ = library.table()
        share = _SHIPPED_WEIGHT / table.weights.sum()
        tables.append(PatternTable(table.cells, table.stages, table.apps, table.weights * share))
    return PatternTable(*(np.concatenate([getattr(t, x) for t in tables]) for x in PatternTable.__slots__))


def _balanced(examples: Sequence[TaskExample], count: int, random: np.random.Generator) -> list[TaskExample]:
    """At most `count` tasks, as even over families as they allow."""
    by_family: dict[str, list[TaskExample]] = {}
    for i in random.permutation(len(examples)):
        by_family.setdefault(examples[i].family, []).append(examples[i])
    chosen: list[TaskExample] = []
    for left, family in zip(range(len(by_family), 0, -1), sorted(by_family.values(), key=len), strict=True):
        chosen.extend(islice(family, (count - len(chosen)) // left))
    return chosen


def _cuts(examples: Sequence[TaskExample], count: int, random: np.random.Generator) -> list[Checkpoint]:
    cuts = [cut for i, example in enumerate(examples) for cut in checkpoints(example, i)]
    sizes = Counter(examples[cut.example].family for cut in cuts)
    chance = np.array([1.0 / sizes[examples[cut.example].family] for cut in cuts])
    n = min(count, len(cuts))
    chosen = random.choice(len(cuts), n, replace=False, p=chance / chance.sum())
    return [cuts[i] for i in chosen]


def _background(
    examples: Sequence[TaskExample], cuts: Sequence[Checkpoint], params: MatcherParams
) -> MatcherParams:
    """What comes in general, by least squares over all families alike."""
    weight = np.sqrt(_weights(examples, cuts))
    seen = np.log1p([cut.seen for cut in cuts])
    done = np.log1p(
        [cut.stages.critical_tokens[: cut.seen - int(cut.running)].sum() for cut in cuts],
    )
    over = np.array([cut.stages_left == 0 for cut in cuts])
    rest = np.log1p([cut.critical_tokens for cut in cuts])
    fanout = np.log1p([cut.tokens for cut in cuts]) - rest
    left = np.log([max(cut.stages_left, 1) for cut in cuts])
    x = np.stack([np.ones(len(cuts)), done, seen], axis=1)[~over] * weight[~over, None]
    a, *_ = np.linalg.lstsq(x, rest[~over] * weight[~over], rcond=None)
    s, *_ = np.linalg.lstsq(x[:, [0, 2]], left[~over] * weight[~over], rcond=None)
    error = rest[~over] * weight[~over] - x @ a
    after = np.array([not cut.running for cut in cuts])
    return replace(
        params,
        background_log=(float(a[0]), float(a[1]), float(a[2])),
        background_spread=float(np.clip(np.sqrt((error**2).sum() / (weight[~over] ** 2).sum()), 0.5, 3.0)),
        background_fanout_log=float(np.average(fanout[~over], weights=weight[~over] ** 2)),
        background_stages=(float(s[0]), float(s[1])),
        background_end=float(np.clip(np.average(over[after], weights=weight[after] ** 2), 0.02, 0.5)),
    )


def _weights(examples: Sequence[TaskExample], cuts: Sequence[Checkpoint]) -> Floats:
    sizes = Counter(examples[cut.example].family for cut in cuts)
    weight = np.array([1.0 / sizes[examples[cut.example].family] for cut in cuts])
    return np.asarray(weight / weight.sum())


def _problem(
    examples: Sequence[TaskExample],
    cuts: Sequence[Checkpoint],
    params: MatcherParams,
    random: np.random.Generator,
) -> _Problem:
    table = table_of([pattern_of(e.app, e.stages) for e in examples])
    batch = partials([(examples[cut.example].app, cut.stages) for cut in cuts])
    parts, effective = distance_parts(batch, table, params.recency)
    groups = np.array([e.group for e in examples])
    apps = np.array([e.app for e in examples])
    mine = np.array([cut.example for cut in cuts])
    own = apps[mine][:, None] == apps[None, :]
    usable = (groups[mine][:, None] != groups[None, :]) & (table.stages >= batch.stages[:, None])
    for q, size in enumerate(random.choice(_HISTORIES, len(cuts))):
        here = np.flatnonzero(own[q] & (groups != groups[mine[q]]))
        usable[q, random.permutation(here)[size:]] = False

    truth = np.log1p([cut.critical_tokens for cut in cuts])
    left = np.array([cut.stages_left for cut in cuts], dtype=np.float64)
    seen = np.array([cut.seen for cut in cuts], dtype=np.float64)
    ended = seen - np.array([cut.running for cut in cuts])
    tokens = np.array([e.stages.critical_tokens.sum() for e in examples])
    before = _critical_before(table, examples, ended)
    rest = np.maximum(tokens - before, 0.0)
    pattern_left = table.stages - ended[:, None]
    gap = np.log1p(np.maximum(pattern_left, 0)) - np.log1p(left)[:, None]
    shift = np.log1p(batch.done_critical)[:, None] - np.log1p(before)
    done = left == 0
    running = np.array([cut.running for cut in cuts])
    expected = params.background_stages[0] + params.background_stages[1] * np.log1p(seen)
    a, b, c = params.background_log
    middle = a + b * np.log1p(batch.done_critical) + c * np.log1p(seen)
    normal = _log_normal(truth - middle, params.background_spread)
    normal += _log_normal(np.log(np.maximum(left, 1)) - expected, _BACKGROUND_STAGE_SPREAD)
    end = np.where(running, 0.0, params.background_end)
    background = np.where(done, np.log(np.maximum(end, _FLOOR)), np.log1p(-end) + normal)
    return _Problem(
        parts,
        np.maximum(effective, 1e-6),
        usable,
        own,
        pattern_left <= 0,
        np.log1p(rest),
        np.clip(shift, -MAX_SHIFT, MAX_SHIFT) * (ended / (ended + CARRY_AFTER_STAGES))[:, None],
        _log_normal(gap, _STAGE_SPREAD),
        truth,
        done,
        background,
        _weights(examples, cuts),
    )


def _critical_before(table: PatternTable, examples: Sequence[TaskExample], ended: Floats) -> Floats:
    """Critical tokens of the first `ended` [Q] stages of each task: float64[Q, M]."""
    sums = [np.concatenate([[0.0], np.cumsum(e.stages.critical_tokens)]) for e in examples]
    return np.stack([s[np.minimum(ended.astype(int), len(s) - 1)] for s in sums], axis=1)


def _loss(params: MatcherParams, problem: _Problem) -> tuple[float, Floats]:
    """The loss and its gradient along `_pack`."""
    scales = np.array([*params.weights, params.actor_weight], dtype=np.float32)
    grown = -0.5 * problem.effective[:, None] ** (params.growth - 1.0)
    matched = np.tensordot(scales, problem.parts, axes=1) * grown
    groups = [problem.usable & side for side in (problem.own, ~problem.own)]
    nearest = [np.where(group, -matched, np.inf).argmin(axis=1) for group in groups]
    rows = np.arange(len(matched))
    least = np.where(problem.own, matched[rows, nearest[0]][:, None], matched[rows, nearest[1]][:, None])
    kept = 1.0 - params.unlikeness
    strangers = np.log(np.maximum((~problem.own).sum(axis=1), 1))[:, None]
    logits = matched - kept * least - np.where(problem.own, 0.0, params.other_app_cost + strangers)
    logits = np.where(problem.usable, logits, NO_MATCH)
    background = np.full(len(problem.truth), -params.background_cost)
    spread = np.where(problem.own, params.spread, params.other_spread)
    error = problem.truth[:, None] - problem.log_rest - params.scale_carry * problem.log_shift
    alike = ~problem.over & ~problem.done[:, None]
    density = _log_normal(error, spread) + problem.stage_log
    explained = np.where(
        alike, density, np.where(problem.over & problem.done[:, None], 0.0, math.log(_FLOOR))
    )
    joint, joint_background = logits + explained, background + problem.background_log
    prior, prior_background, norm = _mixture(logits, background)
    post, post_background, evidence = _mixture(joint, joint_background)

    w = problem.weight
    more = w[:, None] * (post - prior)
    slope = (more * grown).astype(np.float32)
    by_group = [np.where(group, slope, 0.0).sum(axis=1) for group in groups]
    by_scale = scales * np.array(
        [
            np.vdot(part, slope)
            - kept * sum(float(part[rows, at] @ by) for at, by in zip(nearest, by_group, strict=True))
            for part in problem.parts
        ],
        dtype=np.float64,
    )
    from_least = np.where(problem.usable, matched - kept * least, 0.0)
    z = np.where(alike, error / spread, 0.0)
    tighter = w[:, None] * post * np.where(alike, z * z - 1.0, 0.0)
    gain = np.array(
        [
            *by_scale,
            (more * from_least * np.log(problem.effective)[:, None]).sum(),
            (more * np.where(problem.usable, least, 0.0)).sum(),
            -more[~problem.own].sum(),
            -(w * (post_background - prior_background)).sum(),
            tighter[problem.own].sum(),
            tighter[~problem.own].sum(),
            (w[:, None] * post * z / spread * problem.log_shift).sum(),
        ]
    )
    # Nearly flat directions are held near their start.
    away = np.log(scales.astype(np.float64)) + 0.7
    gain[: A + 1] -= 2e-3 * away
    return float(1e-3 * (away**2).sum() - (w * (evidence - norm)).sum()), -gain


def _mixture(logits: Floats, background: Floats) -> tuple[Floats, Floats, Floats]:
    """Shares of the components [Q, M] and of the background [Q], and the log of their sum [Q]."""
    top = np.maximum(logits.max(axis=1), background)
    share, rest = np.exp(logits - top[:, None]), np.exp(background - top)
    total = share.sum(axis=1) + rest
    return share / total[:, None], rest / total, top + np.log(total)


def _log_normal(error: Floats, spread: Floats | float) -> Floats:
    z = error / spread
    return np.asarray(-0.5 * z * z - np.log(spread) - 0.5 * math.log(2 * math.pi))


_BOUNDS = [
    *[(math.log(1e-3), math.log(60.0))] * A,
    (math.log(1e-2), math.log(20.0)),
    (0.0, 1.0),
    (0.0, 0.5),
    # A tag is trusted: all strangers together are worth one task of the application at most.
    (0.0, 8.0),
    (0.0, 12.0),
    (math.log(0.1), math.log(2.0)),
    (math.log(0.3), math.log(2.5)),
    (0.0, 0.7),
]


def _pack(p: MatcherParams) -> Floats:
    logs = [math.log(w) for w in (*p.weights, p.actor_weight)]
    spreads = [math.log(p.spread), math.log(p.other_spread)]
    return np.array(
        [*logs, p.growth, p.unlikeness, p.other_app_cost, p.background_cost, *spreads, p.scale_carry]
    )


def _unpack(theta: Floats, like: MatcherParams) -> MatcherParams:
    weights = tuple(float(math.exp(x)) for x in theta[:A])
    growth, unlikeness, other, background = (float(x) for x in theta[A + 1 : A + 5])
    return replace(
        like,
        weights=weights,
        actor_weight=float(math.exp(theta[A])),
        growth=growth,
        unlikeness=unlikeness,
        other_app_cost=other,
        background_cost=background,
        spread=float(math.exp(theta[A + 5])),
        other_spread=float(math.exp(theta[A + 6])),
        scale_carry=float(theta[A + 7]),
    )

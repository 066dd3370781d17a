"""Scores task forecasts on held-out tasks, against the paper's and simple rivals."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np

from paceline_core.tasks.shapes import Shape, begins_with, shape_of
from paceline_lab.machine import describe_machine
from paceline_lab.tasks.budget import run_budget
from paceline_lab.tasks.checkpoints import Checkpoint, checkpoint
from paceline_lab.tasks.dataset import TaskExample, fold_of, load
from paceline_lab.tasks.ours import Ours, model_of
from paceline_lab.tasks.rivals import RivalAnswer, rivals
from paceline_lab.tasks.timing import timing
from paceline_lab.tasks.training import build
from paceline_predictor.tasks.desk import SHIPPED

Progress = Callable[[str, int, int], None]
Row = dict[str, Any]

HISTORY_A_FAMILY: Final = 120
TESTS_A_FAMILY: Final = 25
MOST_STAGES: Final = 30
"""Longer tasks are scored up to this stage, and not in the budget test."""
TOP_SPEED: Final = 4.0
COLD_SIZES: Final = (0, 1, 2, 5, 10, 20)
COLD_ORDERS: Final = 3
OURS: Final = "paceline"
SCORED_FOLDS: Final = 3
"""Folds that are scored at most: tasks are plenty, and every fold learns anew."""
KNOWABLE: Final = 0.8
"""A family has repeated shapes when history alone foretells so many of its held-out tasks' shapes from half of their
stages: the commonest completion of that half among the tasks of the application in the other folds.

That a shape occurred before is not enough: chains of a handful of tools have few shapes, all of which occur, and
nothing in the first half says which comes. All families are reported beside this share.
"""
OCCURRED: Final = 0.9
"""The wider sense, reported too: so many of the held-out tasks have a shape that some task of history had."""


def evaluate_tasks(
    data: Path,
    out: Path | None = None,
    progress: Progress | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """All tables, as JSON writes them; `out` also gets tasks.json, tables, plots and
    the card of the file that ships. Raises ValueError without any
    task.

    `folds`-fold by task group, of which the first SCORED_FOLDS are scored. In each fold the parameters are learned from
    the permissive tasks of the other folds, and one predictor with 500 patterns sees the other folds of all families:
    at most HISTORY_A_FAMILY tasks of each, drawn by the seed; TESTS_A_FAMILY tasks of each are scored.
    """
    corpus = load(data)
    if not corpus.examples:
        raise ValueError("no task set can be read: " + "; ".join(corpus.missing))
    told = progress or (lambda stage, done, total: None)
    rows: list[Row] = []
    cold: list[Row] = []
    speed: dict[str, Any] = {}
    scored = min(folds, SCORED_FOLDS)
    for fold in range(scored):
        told("fold", fold, scored)
        history = [e for e in corpus.examples if fold_of(e.group, folds, seed) != fold]
        tests = [e for e in corpus.examples if fold_of(e.group, folds, seed) == fold]
        model_file = build([e for e in history if e.permissive], seed=seed, queries=600, patterns=500)
        history = _capped(history, HISTORY_A_FAMILY, seed + fold)
        ours = Ours(model_of(model_file))
        ours.learn(history)
        rows.extend(_score(ours, history, _capped(tests, TESTS_A_FAMILY, seed + fold), fold))
        if fold == 0:
            cold = _cold_start(model_file, history, _capped(tests, TESTS_A_FAMILY, seed))
            speed = timing(ours.model)
    told("fold", scored, scored)
    result = summary(rows, cold) | {
        "speed": speed,
        "missing": list(corpus.missing),
        "folds": folds,
        "scored_folds": scored,
        "history_a_family": HISTORY_A_FAMILY,
        "tests_a_family": TESTS_A_FAMILY,
        "knowable": KNOWABLE,
        "seed": seed,
        "machine": describe_machine(),
    }
    if out is not None:
        from paceline_lab.tasks.card import card_of
        from paceline_lab.tasks.report import write_report  # matplotlib is slow to import

        out.mkdir(parents=True, exist_ok=True)
        (out / "tasks.json").write_text(json.dumps(result, indent=1))
        write_report(result, out)
        (out / "tasks-card.md").write_text(card_of(SHIPPED.read_bytes(), result))
    return result


def _capped(examples: Iterable[TaskExample], most: int, seed: int) -> list[TaskExample]:
    """At most `most` tasks a family, all families shuffled together."""
    examples = list(examples)
    random = np.random.default_rng(seed)
    counts: dict[str, int] = defaultdict(int)
    chosen = []
    for i in random.permutation(len(examples)):
        example = examples[i]
        if counts[example.family] < most:
            counts[example.family] += 1
            chosen.append(example)
    return chosen


def _score(ours: Ours, history: Sequence[TaskExample], tests: Sequence[TaskExample], fold: int) -> list[Row]:
    """One row a task, method and cut, plus one a task and method for what is scored over the whole task."""
    by_app: dict[str, list[TaskExample]] = defaultdict(list)
    for example in history:
        by_app[example.app].append(example)
    fitted = {}
    for app, examples in by_app.items():
        fitted[app] = rivals()
        for rival in fitted[app]:
            rival.fit(examples)
    known: dict[str, Counter[Shape]] = defaultdict(Counter)
    for example in history:
        known[example.app][shape_of(example.stages)] += 1

    rows: list[Row] = []
    for number, test in enumerate(tests):
        n = len(test.stages)
        most = min(n, MOST_STAGES)
        after = [checkpoint(test, number, s, running=False) for s in range(1, most + 1)]
        begun = [checkpoint(test, number, s, running=True) for s in range(1, most + 1)]
        cuts = [*after, *begun]
        shape = shape_of(test.stages)
        base = {"family": test.family, "fold": fold, "stages": n, "task": (fold, number)}
        repeated = shape in known[test.app]
        answers: dict[str, list[RivalAnswer]] = {OURS: ours.answers(test.app, cuts)}
        for rival in fitted.get(test.app, []):
            answers[rival.name] = [rival.answer(cut) for cut in cuts]
        middle = after[min(math.ceil(n / 2), most) - 1]
        for method, given in answers.items():
            rows.extend(_cut_rows(base | {"method": method}, cuts, given))
            if method == OURS:
                guess = ours.shape(test.app, middle)
            else:
                match = given[middle.seen - 1].match
                guess = shape_of(match.stages) if match else None
            if method == OURS or guess is not None:
                rows.append(
                    base
                    | {
                        "method": method,
                        "kind": "shape",
                        "hit": guess == shape,
                        "repeated": repeated,
                        "knowable": _commonest_in(known[test.app], shape_of(middle.stages)) == shape,
                        "shape": shape,
                        "prefix": shape_of(middle.stages),
                    }
                )
            if n <= MOST_STAGES and test.stages.critical_tokens.sum() > 0:
                mine = given[most:]
                met, pressure, _ = run_budget(
                    test.stages.critical_tokens.tolist(),
                    [a.share for a in mine],
                    [a.phi for a in mine],
                    TOP_SPEED,
                )
                rows.append(base | {"method": method, "kind": "budget", "met": met, "pressure": pressure})
    return rows


def _cut_rows(base: Row, cuts: Sequence[Checkpoint], answers: Sequence[RivalAnswer]) -> Iterable[Row]:
    for cut, answer in zip(cuts, answers, strict=True):
        if cut.running:
            yield base | {
                "kind": "begun",
                "seen": cut.seen,
                "p50_held": cut.critical_tokens <= answer.critical_tokens,
                "p90_held": cut.critical_tokens <= answer.critical_p90,
                "width_log": math.log1p(answer.critical_p90) - math.log1p(answer.critical_tokens),
                "share_error": abs(cut.share - answer.share) if cut.share == cut.share else None,
                "last": cut.stages_left == 1,
                "last_probability": answer.last_probability,
            }
        elif cut.stages_left:
            done = float(cut.stages.critical_tokens.sum())
            truth, guess = cut.critical_tokens, answer.critical_tokens
            yield base | {
                "kind": "after",
                "seen": cut.seen,
                "log_error": abs(math.log1p(guess) - math.log1p(truth)),
                "total_log_error": abs(math.log1p(done + guess) - math.log1p(done + truth)),
                "relative_error": abs(guess - truth) / max(done + truth, 1.0),
            }


def _cold_start(model_file: bytes, history: Sequence[TaskExample], tests: Sequence[TaskExample]) -> list[Row]:
    """Error half-way with so many tasks of the application learned, nothing else but the shipped patterns.

    Means over COLD_ORDERS orders of the history: which task comes first is luck.
    """
    by_family: dict[str, list[Checkpoint]] = defaultdict(list)
    by_app: dict[str, set[str]] = defaultdict(set)
    for number, test in enumerate(tests):
        seen = min(math.ceil(len(test.stages) / 2), MOST_STAGES)
        if seen < len(test.stages):
            by_family[test.family].append(checkpoint(test, number, seen, running=False))
            by_app[test.family].add(test.app)
    rows = []
    for family, cuts in by_family.items():
        errors: dict[int, list[float]] = defaultdict(list)
        mine = [e for e in history if e.app in by_app[family]]
        for order in range(COLD_ORDERS):
            shuffled = [mine[i] for i in np.random.default_rng(order).permutation(len(mine))]
            ours = Ours(model_of(model_file))
            known = 0
            for size in (size for size in COLD_SIZES if size <= len(mine)):
                ours.learn(shuffled[known:size])
                known = size
                for app in by_app[family]:
                    asked = [cut for cut in cuts if tests[cut.example].app == app]
                    for cut, answer in zip(asked, ours.answers(app, asked), strict=True):
                        gap = math.log1p(answer.critical_tokens) - math.log1p(cut.critical_tokens)
                        errors[size].append(abs(gap))
        rows += [
            {"family": family, "learned": size, "log_error": fmean(gaps)} for size, gaps in errors.items()
        ]
    return rows


def summary(rows: Sequence[Row], cold: Sequence[Row]) -> dict[str, Any]:
    """Tables by family and method, from the rows of all folds."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["family"], row["method"], row["kind"]].append(row)
    families: dict[str, Any] = {}
    for (family, method, kind), group in groups.items():
        table = families.setdefault(family, {}).setdefault(method, {})
        if kind == "after":
            table["log_error"] = fmean(r["log_error"] for r in group)
            table["total_log_error"] = fmean(r["total_log_error"] for r in group)
            table["relative_error"] = fmean(r["relative_error"] for r in group)
            for name in ("log_error", "total_log_error", "relative_error"):
                table[f"{name}_by_stage"] = _by_stage(group, name)
                table[f"{name}_by_progress"] = _by_progress(group, name)
                table[f"{name}_same_tasks"] = _same_tasks(group, name)
        elif kind == "begun":
            shares = [r["share_error"] for r in group if r["share_error"] is not None]
            table["share_error"] = fmean(shares) if shares else None
            table["coverage_p50"] = fmean(r["p50_held"] for r in group)
            table["coverage_p90"] = fmean(r["p90_held"] for r in group)
            table["width_log_p50_p90"] = fmean(r["width_log"] for r in group)
            table["last_stage_brier"] = fmean((r["last_probability"] - r["last"]) ** 2 for r in group)
            table["cuts"] = len(group)
        elif kind == "budget":
            table["budget_met"] = fmean(r["met"] for r in group)
            table["pressure"] = fmean(r["pressure"] for r in group)
            table["tasks"] = len(group)
        else:
            seen = [r for r in group if r["repeated"]]
            table["shape_match"] = fmean(r["hit"] for r in group)
            table["shape_repeated"] = len(seen) / len(group)
            table["shape_knowable"] = fmean(r["knowable"] for r in group)
            table["shape_hindsight"] = _commonest(group)
            table["shape_match_of_repeated"] = fmean(r["hit"] for r in seen) if seen else None
    return {"families": families, "cold_start": list(cold), "overall": _overall(families)}


def _overall(families: dict[str, Any]) -> dict[str, Any]:
    """Means over families, each of equal weight."""
    names = (
        "log_error",
        "total_log_error",
        "relative_error",
        "share_error",
        "coverage_p50",
        "coverage_p90",
        "width_log_p50_p90",
        "budget_met",
        "pressure",
        "last_stage_brier",
    )
    methods = {method for table in families.values() for method in table}
    overall: dict[str, Any] = {}
    for method in sorted(methods):
        found = [table[method] for table in families.values() if method in table]
        overall[method] = {
            name: fmean(values)
            for name in names
            if (values := [f[name] for f in found if f.get(name) is not None])
        }
    shapes = [t[OURS] for t in families.values() if "shape_match" in t.get(OURS, {})]
    for name, group in (
        ("shape_match_repeated_families", [t for t in shapes if t["shape_knowable"] >= KNOWABLE]),
        ("shape_match_occurred_families", [t for t in shapes if t["shape_repeated"] >= OCCURRED]),
        ("shape_match_all_families", shapes),
    ):
        if group:
            overall[OURS][name] = fmean(t["shape_match"] for t in group)
    if shapes:
        overall[OURS]["shape_knowable_all_families"] = fmean(t["shape_knowable"] for t in shapes)
    return overall


def _commonest_in(history: Counter[Shape], seen: Shape) -> Shape | None:
    """The commonest shape of history that begins with what was seen; None: none does."""
    possible = {shape: n for shape, n in history.items() if begins_with(shape, seen, running=False)}
    return max(possible, key=lambda shape: possible[shape]) if possible else None


def _commonest(group: Sequence[Row]) -> float:
    """How often the commonest completion of the first half of a shape is right, known in hindsight.

    An upper bound: that half of a task was seen tells how long it is, which nobody knows at the time.
    """
    completions: dict[Shape, Counter[Shape]] = defaultdict(Counter)
    for row in group:
        completions[row["prefix"]][row["shape"]] += 1
    return sum(max(counts.values()) for counts in completions.values()) / len(group)


def _by_stage(group: Sequence[Row], name: str) -> dict[str, float]:
    """Mean after each of the first 10 stages, of tasks that have more."""
    values: dict[int, list[float]] = defaultdict(list)
    for row in group:
        if row["seen"] <= 10:
            values[row["seen"]].append(row[name])
    return {str(seen): fmean(values[seen]) for seen in sorted(values)}


def _same_tasks(group: Sequence[Row], name: str) -> dict[str, float]:
    """Mean after each of the first stages, of one and the same tasks: those with more stages than the last told.

    Half of the family's tasks are that long, however long they become; points at parts of a task would pick the tasks
    by a length that nobody knows yet.
    """
    lengths = {row["task"]: row["stages"] for row in group}
    last = min(int(np.median(list(lengths.values()))) - 1, 10)
    return _by_stage([row for row in group if row["stages"] > last >= row["seen"]], name)


def _by_progress(group: Sequence[Row], name: str) -> dict[str, float]:
    """Mean after the first stage and after about a quarter, half and three quarters of the stages, of tasks with at
    least four: the same tasks at each point."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in group:
        n, seen = row["stages"], row["seen"]
        if not 4 <= n <= MOST_STAGES:
            continue
        for point, at in (
            ("first", 1),
            ("25", -(-n // 4)),
            ("50", -(-n // 2)),
            ("75", min(-(-3 * n // 4), n - 1)),
        ):
            if seen == at:
                values[point].append(row[name])
    return {point: fmean(values[point]) for point in ("first", "25", "50", "75") if point in values}

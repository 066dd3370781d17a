"""Scores task forecasts on held-out tasks, against the paper's and simple rivals."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np

from paceline_lab.machine import describe_machine
from paceline_lab.tasks.budget import run_budget
from paceline_lab.tasks.checkpoints import Checkpoint, checkpoint
from paceline_lab.tasks.dataset import TaskExample, fold_of, load
from paceline_lab.tasks.ours import Ours, model_of
from paceline_lab.tasks.rivals import RivalAnswer, rivals
from paceline_lab.tasks.shapes import Shape, shape_of
from paceline_lab.tasks.timing import timing
from paceline_lab.tasks.training import build

Progress = Callable[[str, int, int], None]
Row = dict[str, Any]

HISTORY_A_FAMILY: Final = 200
TESTS_A_FAMILY: Final = 25
MOST_STAGES: Final = 30
"""Longer tasks are scored up to this stage, and not in the budget test."""
TOP_SPEED: Final = 4.0
COLD_SIZES: Final = (0, 1, 2, 5, 10, 20, 50)
OURS: Final = "paceline"
REPEATED: Final = 0.9
"""A family has repeated shapes when so many of its held-out tasks have a shape that history knows."""


def evaluate_tasks(
    data: Path, out: Path | None = None, progress: Progress | None = None, *, folds: int = 5, seed: int = 0
) -> dict[str, Any]:
    """All tables, as JSON writes them; `out` also gets tasks.json, tables and plots. Raises ValueError without any
    task.

    `folds`-fold by task group. In each fold the parameters are learned from the permissive tasks of the other folds,
    and one predictor with 500 patterns sees the other folds of all families.
    """
    corpus = load(data)
    if not corpus.examples:
        raise ValueError("no task set can be read: " + "; ".join(corpus.missing))
    told = progress or (lambda stage, done, total: None)
    rows: list[Row] = []
    cold: list[Row] = []
    speed: dict[str, Any] = {}
    for fold in range(folds):
        told("fold", fold, folds)
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
    told("fold", folds, folds)
    result = summary(rows, cold) | {
        "speed": speed,
        "missing": list(corpus.missing),
        "folds": folds,
        "seed": seed,
        "machine": describe_machine(),
    }
    if out is not None:
        from paceline_lab.tasks.report import write_report  # matplotlib is slow to import

        out.mkdir(parents=True, exist_ok=True)
        (out / "tasks.json").write_text(json.dumps(result, indent=1))
        write_report(result, out)
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
    known: dict[str, set[Shape]] = defaultdict(set)
    for example in history:
        known[example.app].add(shape_of(example.stages))

    rows: list[Row] = []
    for number, test in enumerate(tests):
        n = len(test.stages)
        most = min(n, MOST_STAGES)
        after = [checkpoint(test, number, s, running=False) for s in range(1, most + 1)]
        begun = [checkpoint(test, number, s, running=True) for s in range(1, most + 1)]
        cuts = [*after, *begun]
        shape = shape_of(test.stages)
        base = {"family": test.family, "fold": fold, "stages": n}
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
            }


def _cold_start(model_file: bytes, history: Sequence[TaskExample], tests: Sequence[TaskExample]) -> list[Row]:
    """Error half-way with so many tasks of the application learned, nothing else but the shipped patterns."""
    by_family: dict[str, list[TaskExample]] = defaultdict(list)
    for example in tests:
        if len(example.stages) > 1:
            by_family[example.family].append(example)
    rows = []
    for family, examples in by_family.items():
        apps = {e.app for e in examples}
        mine = [e for e in history if e.app in apps]
        for size in COLD_SIZES:
            if size > len(mine):
                break
            ours = Ours(model_of(model_file))
            ours.learn(mine[:size])
            errors = []
            for number, test in enumerate(examples):
                cut = checkpoint(
                    test, number, min(math.ceil(len(test.stages) / 2), MOST_STAGES), running=False
                )
                if cut.stages_left:
                    answer = ours.answers(test.app, [cut])[0]
                    errors.append(abs(math.log1p(answer.critical_tokens) - math.log1p(cut.critical_tokens)))
            if errors:
                rows.append({"family": family, "learned": size, "log_error": fmean(errors)})
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
            table["log_error_by_stage"] = _by_stage(group, "log_error")
            table["total_log_error_by_stage"] = _by_stage(group, "total_log_error")
            table["log_error_by_progress"] = _by_progress(group, "log_error")
            table["total_log_error_by_progress"] = _by_progress(group, "total_log_error")
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
            table["shape_commonest"] = _commonest(group)
            table["shape_match_of_repeated"] = fmean(r["hit"] for r in seen) if seen else None
    return {"families": families, "cold_start": list(cold), "overall": _overall(families)}


def _overall(families: dict[str, Any]) -> dict[str, Any]:
    """Means over families, each of equal weight."""
    names = ("log_error", "total_log_error", "share_error", "coverage_p50", "coverage_p90", "width_log_p50_p90",
             "budget_met", "pressure", "last_stage_brier")  # fmt: skip
    methods = {method for table in families.values() for method in table}
    overall: dict[str, Any] = {}
    for method in sorted(methods):
        found = [table[method] for table in families.values() if method in table]
        overall[method] = {
            name: fmean(values)
            for name in names
            if (values := [f[name] for f in found if f.get(name) is not None])
        }
    ours = [t[OURS] for t in families.values() if t.get(OURS, {}).get("shape_repeated", 0.0) >= REPEATED]
    if ours:
        overall[OURS]["shape_match_repeated_families"] = fmean(t["shape_match"] for t in ours)
    return overall


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

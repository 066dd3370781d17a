"""`paceline eval length`: every learner on the same held-out data, frozen and as it serves.

The document has these keys: kind, candidate, rivals, seed, quick, seconds, machine, corpus, static, online,
unseen_models, mix_change, refinement, noise_floor, by_family, reliability, targets. docs/prediction.md describes them.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paceline_core.lengths import OPEN_EDGE, FloatArray, cdf_from_probabilities, quantile
from paceline_lab.lengths.candidates import CANDIDATES
from paceline_lab.lengths.dataset import Corpus, Example, load
from paceline_lab.lengths.heldout import (
    MEASURED,
    Answers,
    JobPlan,
    Report,
    keys_of,
    outcomes_of,
    plan_jobs,
    run_jobs,
)
from paceline_lab.lengths.loaders import MEASURING, TRAINING
from paceline_lab.lengths.measure import split_table, summary_figures
from paceline_lab.lengths.noise import noise_floor
from paceline_lab.lengths.online_evaluation import IntArray, Stream, change_windows
from paceline_lab.lengths.online_tables import served
from paceline_lab.lengths.refinement import refined_rows, refinement
from paceline_lab.lengths.scoring import by_group, score
from paceline_lab.lengths.targets import targets
from paceline_lab.machine import describe_machine

LEAST_EXAMPLES = 200
RELIABILITY_LEVELS = (0.05, *(round(0.1 * i, 1) for i in range(1, 10)), 0.95)

Document = dict[str, Any]


class TooLittleDataError(ValueError):
    """Not enough examples to say anything."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What to evaluate."""

    data: Path
    collected: Path | None
    kinds: tuple[str, ...] = ("prompt", "family", "source")
    seed: int = 1
    quick: bool = False
    processes: int = 2
    candidate: str = "auto"

    def jobs(self) -> JobPlan:
        """How much of it."""
        if self.quick:
            return JobPlan(self.kinds, folds_run=1, most_left_out=2, orders=40, seed=self.seed)
        return JobPlan(self.kinds, seed=self.seed)


@dataclass(frozen=True)
class Pooled:
    """Answers of all folds of a split, one row per scored example."""

    examples: list[Example]
    static: dict[str, FloatArray]
    online: dict[str, FloatArray]


def evaluate(plan: EvaluationPlan, report: Report) -> Document:
    """The whole evaluation as a document for JSON. Raises TooLittleDataError."""
    started = time.monotonic()
    report("read data", 0, 1)
    corpus = load(plan.data, sets=[*TRAINING, *MEASURING], collected=plan.collected)
    report("read data", 1, 1)
    examples = corpus.examples
    if sum(example.permissive for example in examples) < LEAST_EXAMPLES:
        raise TooLittleDataError("; ".join(["too few examples to evaluate on", *corpus.missing]))
    jobs = plan_jobs(examples, plan.jobs())
    answers = run_jobs(examples, jobs, plan.processes, report)
    splits = pooled(examples, answers)
    candidate = choice(splits)[0] if plan.candidate == "auto" else plan.candidate
    document: Document = {
        "kind": "paceline eval length",
        "candidate": candidate,
        "rivals": [name for name in next(iter(splits.values())).static if name not in CANDIDATES],
        "seed": plan.seed,
        "quick": plan.quick,
        "machine": describe_machine(),
        "corpus": corpus_figures(corpus),
    }
    steps = len(splits) * 2 + 4
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        report("score", done, steps)

    for mode in ("static", "online"):
        document[mode] = {}
        for name, split in splits.items():
            masses = split.static if mode == "static" else split.online
            if masses:
                document[mode][name] = split_table(masses, split.examples, candidate, plan.seed)
            step()
    document["unseen_models"] = _unseen(answers, plan.jobs().orders)
    step()
    document["mix_change"] = _mix_changes(splits, candidate, plan)
    step()
    if prompt := splits.get("prompt"):
        document["refinement"] = _refinement(examples, answers, candidate)
        document["by_family"] = _by_family(prompt)
        document["reliability"] = _reliability(prompt, candidate)
        document["noise_floor"] = noise_floor(prompt.examples, prompt.static[candidate])
    step()
    document["seconds"] = round(time.monotonic() - started, 1)
    document["targets"] = targets(document)
    step()
    cleaned: Document = finite(document)
    return cleaned


def pooled(examples: Sequence[Example], answers: Sequence[Answers]) -> dict[str, Pooled]:
    """Splits by name, in the order of the jobs."""
    parts: dict[str, list[tuple[Answers, IntArray]]] = {}
    for answer in answers:
        sources = np.array([examples[i].source for i in answer.job.test.tolist()])
        if answer.job.group == MEASURED:
            for source in np.unique(sources):
                parts[f"source: {source}"] = [(answer, np.flatnonzero(sources == source))]
        else:
            parts.setdefault(answer.job.group, []).append((answer, np.arange(len(sources))))
    return {
        name: Pooled(
            [examples[i] for answer, rows in found for i in answer.job.test[rows].tolist()],
            _joined([(answer.static, rows) for answer, rows in found]),
            _joined([(answer.online, rows) for answer, rows in found]),
        )
        for name, found in parts.items()
    }


def choice(splits: Mapping[str, Pooled]) -> tuple[str, dict[str, float]]:
    """The kind with the lowest frozen CRPS on average over splits that anything was trained for, and each's average."""
    means = {kind: _mean_crps(splits, kind) for kind in CANDIDATES}
    return min(means, key=lambda kind: means[kind]), means


def corpus_figures(corpus: Corpus) -> Document:
    """What the figures are computed from."""
    sources: Document = {}
    for name in corpus.rows_by_source():
        rows = [example for example in corpus.examples if example.source == name]
        sources[name] = {
            "examples": len(rows),
            "prompts": len({example.prompt_id for example in rows}),
            "models": len({example.question.model for example in rows}),
            "censored": sum(example.censored for example in rows),
            "permissive": all(example.permissive for example in rows),
        }
    return {"examples": len(corpus.examples), "sources": sources, "missing": list(corpus.missing)}


def finite(value: Any) -> Any:
    """The same with null for every figure that is not a number, as JSON has none."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 5) if math.isfinite(value) else None
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    return value


def _mean_crps(splits: Mapping[str, Pooled], kind: str) -> float:
    losses = []
    for split in splits.values():
        if kind in split.static and all(example.permissive for example in split.examples):
            scored = score(split.static[kind], split.examples)
            losses.append(float(np.average(scored.crps, weights=scored.weight)))
    return float(np.mean(losses)) if losses else math.inf


def _joined(parts: Sequence[tuple[Mapping[str, Any], IntArray]]) -> dict[str, FloatArray]:
    return {
        name: np.concatenate([masses[name][rows] for masses, rows in parts]).astype(np.float64)
        for name in parts[0][0]
    }


def _unseen(answers: Sequence[Answers], orders: int) -> Document:
    """By family, and the means over families with enough outcomes, apart for permissive and measured sets."""
    families: Document = {}
    pools: dict[str, list[Document]] = {}
    for answer in answers:
        for name, found in answer.unseen.items():
            families[name] = found
            workload = "known workloads" if answer.job.kind == "family" else "unseen workload"
            pools.setdefault(workload, []).append(found)
    if not families:
        return {}
    return {
        "orders": orders,
        "families": families,
        "pooled": {name: _mean(rows) for name, rows in pools.items()},
    }


def _mean(rows: Sequence[Document]) -> Document:
    """Mean coverage over families whose figure is scored on 1,000 outcomes or more."""
    result: Document = {}
    for after in ("after_20", "after_200"):
        scored = [row[after] for row in rows if after in row and row[after]["scored"] >= 1000]
        if scored:
            result[after] = {
                "families": len(scored),
                "log_width_80": float(np.mean([point["log_width_80"] for point in scored])),
                **{
                    mode: {
                        level: {"mean": float(np.mean([point[mode][level]["mean"] for point in scored]))}
                        for level in scored[0][mode]
                    }
                    for mode in ("frozen", "learning")
                },
            }
    return result


_CHANGES = (
    ("chat to maths and code", ("chat", "instruction"), ("maths", "code")),
    ("maths and code to agents and tools", ("maths", "code"), ("agent", "tools")),
    ("agents and tools to chat", ("agent", "tools"), ("chat", "instruction")),
)
_LEAST_AFTER = 700
_MOST_AFTER = 1500
_MOST_BEFORE = 1000


def _mix_changes(splits: Mapping[str, Pooled], candidate: str, plan: EvaluationPlan) -> Document:
    """Changes between families of tasks, under their app tags and under one tag for all."""
    if not (prompt := splits.get("prompt")) or not prompt.online:
        return {}
    # Offsets are in these masses already, so that folds may be joined: nothing is known of a model beforehand.
    stream = Stream(prompt.static[candidate], keys_of(prompt.examples), outcomes_of(prompt.examples))
    family = np.array([example.family for example in prompt.examples])
    generator = np.random.default_rng(plan.seed)
    found: Document = {}
    for name, before, after in _CHANGES:
        first = generator.permutation(np.flatnonzero(np.isin(family, before)))[:_MOST_BEFORE]
        then = generator.permutation(np.flatnonzero(np.isin(family, after)))[:_MOST_AFTER]
        if len(first) < _LEAST_AFTER or len(then) < _LEAST_AFTER:
            continue
        for label, one in ((name, stream), (f"{name}, one app tag", stream.tagged("app"))):
            found[label] = change_windows(
                lambda worlds: served({}, worlds),
                one.take(first),
                one.take(then),
                4 if plan.quick else 20,
                plan.seed,
            )
    return found


def _refinement(examples: Sequence[Example], answers: Sequence[Answers], candidate: str) -> Document:
    arrivals, lengths = [], []
    later: dict[float, list[FloatArray]] = {}
    for answer in answers:
        if not answer.job.refine:
            continue
        test = [examples[i] for i in answer.job.test.tolist()]
        rows = refined_rows(test)
        arrivals.append(answer.static[candidate][rows].astype(np.float64))
        lengths.append(np.array([test[i].output_tokens for i in rows], dtype=np.float64))
        for share, masses in answer.later[candidate].items():
            later.setdefault(share, []).append(masses.astype(np.float64))
    if not arrivals or not sum(map(len, lengths)):
        return {}
    return refinement(
        np.concatenate(arrivals),
        {share: np.concatenate(parts) for share, parts in later.items()},
        np.concatenate(lengths),
    )


def _by_family(prompt: Pooled) -> Document:
    families = [example.family for example in prompt.examples]
    by_learner = {
        name: by_group(score(masses, prompt.examples), families) for name, masses in prompt.static.items()
    }
    return {
        family: {
            "scored": families.count(family),
            "learners": {name: summary_figures(groups[family]) for name, groups in by_learner.items()},
        }
        for family in sorted(set(families))
    }


def _reliability(prompt: Pooled, candidate: str) -> Document:
    curves = {"frozen": prompt.static[candidate]}
    if prompt.online:
        curves["learning online"] = prompt.online[candidate]
    outcomes = outcomes_of(prompt.examples)
    limits = np.where(outcomes.limits > 0, outcomes.limits, OPEN_EDGE)
    none, open_ = np.zeros(len(outcomes)), np.full(len(outcomes), OPEN_EDGE)
    result: Document = {}
    for name, masses in curves.items():
        cdf = cdf_from_probabilities(masses)
        realised = []
        for level in RELIABILITY_LEVELS:
            bound = quantile(cdf, level, none, open_)
            known = (bound < limits) & ~(
                outcomes.censored & (outcomes.lengths < bound) & (outcomes.limits <= 0)
            )
            realised.append(float(np.mean((outcomes.lengths + outcomes.censored <= bound)[known])))
        result[name] = {"declared": list(RELIABILITY_LEVELS), "realised": realised}
    return result

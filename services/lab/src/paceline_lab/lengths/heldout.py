"""Answers of every learner to rows it was not trained on: what all figures are computed from.

Each split is fitted in a process of its own, so that two cores work at once; splits are small data, models large.
"""

import dataclasses
import logging
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from paceline_core.lengths import FloatArray
from paceline_lab.lengths.candidates import CANDIDATES, fit_candidates
from paceline_lab.lengths.dataset import Example, questions
from paceline_lab.lengths.offsets import Offsets
from paceline_lab.lengths.online_evaluation import IntArray, Outcomes, Stream, recovery
from paceline_lab.lengths.online_tables import online_answers, served
from paceline_lab.lengths.refinement import asked_again
from paceline_lab.lengths.rivals import all_rivals
from paceline_lab.lengths.splits import (
    LEAST_ROWS,
    Split,
    by_prompt,
    leave_out_model_family,
    leave_out_source,
    model_family,
)
from paceline_predictor.model import LengthQuestion

Float32 = NDArray[np.float32]
MEASURED = "measured"
"""Group of the job of sets that nothing is trained on; reports show a split for each of its sources."""
LEAST_STREAM = 1020
"""Outcomes of a family in a set that is only measured from which its recovery is looked at."""

log = logging.getLogger(__name__)


class Report(Protocol):
    """How work says how far it is."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of a stage are over."""


@dataclass(frozen=True)
class Job:
    """One fit of all learners: rows of the corpus to train on and to score."""

    group: str
    """Name of the split that reports show; the folds of one split share it."""
    kind: str
    """prompt, family or source."""
    train: IntArray
    test: IntArray
    seed: int
    rivals: bool = True
    """Fit the rivals too."""
    online: bool = True
    """Also answer the test rows while learning them."""
    refine: bool = False
    """Also ask again in the middle of answers."""
    unseen: tuple[tuple[str, IntArray], ...] = ()
    """Streams of models that training has not seen, by name, as positions among the test rows."""
    orders: int = 0
    """Random orders of each such stream."""


@dataclass(frozen=True)
class Answers:
    """What the learners said to the test rows of a job; float32 masses [N, K] by learner."""

    job: Job
    static: dict[str, Float32]
    """With the offsets of known models, by candidates and rivals."""
    base: dict[str, Float32]
    """Before offsets, by candidates."""
    offsets: Offsets
    later: dict[str, dict[float, Float32]] = field(default_factory=dict)
    """By candidate and share of tokens out: answers asked again every 50 tokens, for `refinement`."""
    online: dict[str, Float32] = field(default_factory=dict)
    """By learner: answers [N, K] in one random order, each before its outcome was learned."""
    unseen: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By stream: how coverage recovers, of the candidate that is named last."""


@dataclass(frozen=True)
class JobPlan:
    """Which splits are made of a corpus."""

    kinds: tuple[str, ...] = ("prompt", "family", "source")
    folds: int = 5
    folds_run: int = 5
    """Folds of the split by prompt that are really fitted."""
    most_left_out: int | None = None
    """Families, and sources, that are left out at most, the largest first; None: each in turn."""
    most_scored: int = 8000
    """Rows of a set that is only measured on which are scored at most, drawn at random."""
    orders: int = 200
    """Random orders of the outcomes of each unseen model family; 0: none."""
    rivals: bool = True
    online: bool = True
    refine: bool = True
    seed: int = 1


def plan_jobs(examples: Sequence[Example], plan: JobPlan) -> list[Job]:
    """The splits of a corpus. Only permissive rows are trained on; sets that are not are scored as unseen ones."""
    rows = np.flatnonzero([example.permissive for example in examples])
    trainable = [examples[i] for i in rows.tolist()]
    common: dict[str, Any] = {"seed": plan.seed, "rivals": plan.rivals, "online": plan.online}
    jobs: list[Job] = []
    if "prompt" in plan.kinds:
        jobs += [
            Job("prompt", "prompt", rows[split.train], rows[split.test], refine=plan.refine, **common)
            for split in by_prompt(trainable, plan.folds, plan.seed)[: plan.folds_run]
        ]
    if "family" in plan.kinds:
        for split in _largest(leave_out_model_family(trainable), plan.most_left_out):
            everything = ((split.name.partition(" ")[2], np.arange(len(split.test))),)
            jobs.append(
                Job(
                    _group(split),
                    "family",
                    rows[split.train],
                    rows[split.test],
                    unseen=everything if plan.orders else (),
                    orders=plan.orders,
                    **common,
                )
            )
    if "source" in plan.kinds:
        known = {
            job.test.tobytes() for job in jobs
        }  # a source with models of its own is a family that is done already
        jobs += [
            Job(_group(split), "source", rows[split.train], rows[split.test], **common)
            for split in _largest(leave_out_source(trainable), plan.most_left_out)
            if rows[split.test].tobytes() not in known
        ]
        jobs += _measured(examples, rows, plan, common)
    return jobs


def run_jobs(
    examples: Sequence[Example], jobs: Sequence[Job], processes: int, report: Report
) -> list[Answers]:
    """Answers of every job, in order; the largest are begun first."""
    stage = "splits: fit, answer, learn"
    report(stage, 0, len(jobs))
    if processes == 1 or len(jobs) == 1:
        found = []
        for done, job in enumerate(jobs, start=1):
            found.append(answer_job(examples, job))
            report(stage, done, len(jobs))
        return found
    context = multiprocessing.get_context("spawn")  # threads of the runtime do not survive a fork
    by_number: dict[int, Answers] = {}
    order = sorted(
        range(len(jobs)), key=lambda n: -(len(jobs[n].unseen) * jobs[n].orders + len(jobs[n].test))
    )
    with ProcessPoolExecutor(processes, context, _take_corpus, (tuple(examples),)) as pool:
        waiting = {pool.submit(_answer_in_process, jobs[n]): n for n in order}
        for done, future in enumerate(as_completed(waiting), start=1):
            by_number[waiting[future]] = future.result()
            report(stage, done, len(jobs))
    return [by_number[n] for n in range(len(jobs))]


def answer_job(examples: Sequence[Example], job: Job) -> Answers:
    """Fit every learner on the job's training rows and ask it about the test rows."""
    train = [examples[i] for i in job.train]
    test = [examples[i] for i in job.test]
    asked = questions(test)
    candidates = fit_candidates(train, job.seed)
    offsets = candidates[CANDIDATES[0]].offsets
    base = {name: _distinct(candidate.base, asked) for name, candidate in candidates.items()}
    static = {name: candidate.with_offsets(base[name], asked) for name, candidate in candidates.items()}
    if job.rivals:
        for rival in all_rivals():
            rival.fit(train)
            static[rival.name] = np.maximum(rival.predict(asked), 0.0)  # differences of CDFs may be -1e-17
    scored = np.arange(len(test))
    generator = np.random.default_rng(job.seed)
    stream = Stream(base[CANDIDATES[-1]], keys_of(test), outcomes_of(test))
    online = {}
    if job.online:
        order = generator.permutation(len(test))
        rivals = {name: masses[order] for name, masses in static.items() if name not in base}
        answered = online_answers(
            {name: masses[order] for name, masses in base.items()}, rivals, offsets, stream.take(order), train
        )
        back = np.argsort(order)
        online = {name: masses[back] for name, masses in answered.items()}
    unseen = {
        name: recovery(lambda worlds: served(offsets, worlds), stream.take(scored[at]), job.orders, job.seed)
        for name, at in job.unseen
    }
    later = (
        {name: asked_again(candidate.answer, test) for name, candidate in candidates.items()}
        if job.refine
        else {}
    )
    return Answers(job, _small(static), _small(base), offsets, later, _small(online), unseen)


def outcomes_of(examples: Sequence[Example]) -> Outcomes:
    """What happened, for scoring."""
    names = np.array([f"{example.source} {example.prompt_id}" for example in examples])
    return Outcomes(
        np.array([example.output_tokens for example in examples], dtype=np.int64),
        np.array([example.censored for example in examples], dtype=np.bool_),
        np.array([example.question.max_tokens for example in examples], dtype=np.float64),
        np.unique(names, return_inverse=True)[1].astype(np.int64),
    )


def keys_of(examples: Sequence[Example]) -> tuple[tuple[str, str], ...]:
    """(model, app) of each."""
    return tuple((example.question.model, example.question.app) for example in examples)


_corpus: tuple[Example, ...] = ()
_threads: Any = None


def _take_corpus(examples: tuple[Example, ...]) -> None:
    global _corpus, _threads  # a worker holds the corpus once, instead of taking it with every job
    _corpus = examples
    _threads = threadpool_limits(1)  # there is a process for each core already


def _answer_in_process(job: Job) -> Answers:
    return answer_job(_corpus, job)


def _measured(
    examples: Sequence[Example], trainable: IntArray, plan: JobPlan, common: dict[str, Any]
) -> list[Job]:
    """Sets that nothing may be trained on, by one fit: their prompts and their models are new ones."""
    generator = np.random.default_rng(plan.seed)
    parts = []
    for source in sorted({example.source for example in examples if not example.permissive}):
        rows = np.flatnonzero([example.source == source for example in examples])
        if len(rows) > plan.most_scored:
            rows = np.sort(generator.choice(rows, plan.most_scored, replace=False))
        if len(rows) >= LEAST_ROWS:
            parts.append(rows)
    if not parts:
        return []
    test = np.concatenate(parts)
    prompts = {examples[i].prompt_id for i in test.tolist()}
    train = np.array([i for i in trainable.tolist() if examples[i].prompt_id not in prompts], dtype=np.int64)
    unseen: list[tuple[str, IntArray]] = []
    if plan.orders:
        streams = np.array(
            [f"{examples[i].source} {model_family(examples[i].question.model)}" for i in test.tolist()]
        )
        names, sizes = np.unique(streams, return_counts=True)
        unseen = [
            (str(name), np.flatnonzero(streams == name))
            for name, size in zip(names, sizes, strict=True)
            if size >= LEAST_STREAM
        ]
    return [Job(MEASURED, "source", train, test, unseen=tuple(unseen), orders=plan.orders, **common)]


def _largest(splits: list[Split], most: int | None) -> list[Split]:
    return sorted(splits, key=lambda split: -len(split.test))[:most] if most else splits


def _group(split: Split) -> str:
    kind, _, rest = split.name.partition(" ")
    return f"{kind}: {rest}"


def _small(masses: Mapping[str, FloatArray]) -> dict[str, Float32]:
    return {name: one.astype(np.float32) for name, one in masses.items()}


def _distinct(
    base: Callable[[Sequence[LengthQuestion]], FloatArray], asked: Sequence[LengthQuestion]
) -> FloatArray:
    """Base masses [N, K], each distinct question asked once: a base does not know the model."""
    nameless = [dataclasses.replace(question, model="", tenant="") for question in asked]
    number: dict[LengthQuestion, int] = {}
    at = np.array([number.setdefault(question, len(number)) for question in nameless], dtype=np.int64)
    return base(list(number))[at]

"""`paceline train length`: the model file and its card, from permissive sets and our own collected outputs alone.

The same data, seed and library versions give the same bytes: no clock and no machine is in the file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx

from paceline_lab.lengths.candidates import CANDIDATES, fit_candidates
from paceline_lab.lengths.card import card_document, card_markdown
from paceline_lab.lengths.dataset import Corpus, Example, load
from paceline_lab.lengths.evaluate import LEAST_EXAMPLES, TooLittleDataError, choice, finite, pooled
from paceline_lab.lengths.heldout import JobPlan, Report, plan_jobs, run_jobs
from paceline_lab.lengths.loaders import TRAINING
from paceline_lab.lengths.loaders.collected import SOURCE as COLLECTED
from paceline_lab.lengths.measure import summary_figures
from paceline_lab.lengths.scoring import score, summarise
from paceline_lab.lengths.sources import LICENCES

MODEL_NAME = "length.onnx"
CARD_NAME = "MODEL_CARD.md"
MOST_BYTES = 10_000_000
"""What ships may be no larger."""
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "onnx", "onnxruntime")

Document = dict[str, Any]


@dataclass(frozen=True)
class TrainPlan:
    """What to train."""

    data: Path
    out: Path
    collected: Path | None
    kind: str = "auto"
    """One of CANDIDATES, or auto: the lowest CRPS on held-out data."""
    seed: int = 1
    quick: bool = False
    """Hold out less: one fold of prompts, the largest family and the largest source."""
    processes: int = 2


@dataclass(frozen=True)
class Trained:
    """What was written."""

    model_path: Path
    card_path: Path
    kind: str
    version: str
    model_bytes: int
    notes: tuple[str, ...]


def train(plan: TrainPlan, report: Report) -> Trained:
    """Choose a kind, fit it on everything, write the file and its card. Raises TooLittleDataError."""
    report("read data", 0, 1)
    corpus = load(plan.data, sets=tuple(TRAINING), collected=plan.collected).permissive()
    report("read data", 1, 1)
    if len(corpus.examples) < LEAST_EXAMPLES:
        raise TooLittleDataError("; ".join(["too few examples to train on", *corpus.missing]))
    held_out, best = _held_out(corpus.examples, plan, report)
    kind = best if plan.kind == "auto" else plan.kind
    report("fit on everything", 0, 1)
    card = card_document(kind, training_data(corpus), held_out, command(plan), plan.seed, _versions())
    model = fit_candidates(corpus.examples, plan.seed, (kind,), finite(card))[kind].model
    report("fit on everything", 1, 1)
    return _written(model, finite(card), plan, corpus)


def training_data(corpus: Corpus) -> Document:
    """Sets, licences and counts."""
    sources: Document = {}
    for name in corpus.rows_by_source():
        rows = [example for example in corpus.examples if example.source == name]
        sources[name] = {
            "licence": LICENCES.get(name, "see its source"),
            "examples": len(rows),
            "prompts": len({example.prompt_id for example in rows}),
            "models": len({example.question.model for example in rows}),
            "censored": sum(example.censored for example in rows),
        }
    return {"rows": len(corpus.examples), "sources": sources}


def command(plan: TrainPlan) -> str:
    """The command that does this again; paths of this machine are not part of it."""
    options = [f"--kind {plan.kind}", f"--seed {plan.seed}", *(["--quick"] if plan.quick else [])]
    return " ".join(["paceline train length --data DIR", *options])


def _held_out(examples: Sequence[Example], plan: TrainPlan, report: Report) -> tuple[Document, str]:
    """Frozen figures of every kind on held-out data, and the best kind."""
    jobs = plan_jobs(
        examples,
        JobPlan(
            folds_run=1 if plan.quick else 5,
            most_left_out=1 if plan.quick else None,
            orders=0,
            rivals=False,
            online=False,
            refine=False,
            seed=plan.seed,
        ),
    )
    splits = pooled(examples, run_jobs(examples, jobs, plan.processes, report))
    best, means = choice(splits)
    figures = {
        name: {
            "scored": len(split.examples),
            "learners": {
                kind: summary_figures(summarise(score(split.static[kind], split.examples)))
                for kind in CANDIDATES
            },
        }
        for name, split in splits.items()
    }
    return {"splits": figures, "mean_crps": means}, best


def _written(model: onnx.ModelProto, card: Document, plan: TrainPlan, corpus: Corpus) -> Trained:
    content = model.SerializeToString(deterministic=True)
    version = next(entry.value for entry in model.metadata_props if entry.key == "paceline.version")
    plan.out.mkdir(parents=True, exist_ok=True)
    model_path, card_path = plan.out / MODEL_NAME, plan.out / CARD_NAME
    model_path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    card_path.write_text(card_markdown(card, version, digest, len(content)))
    notes = list(corpus.missing)
    if not any(example.source == COLLECTED for example in corpus.examples):
        notes.append("no collected outputs were used: the model knows nothing of the embedded model's habits")
    if len(content) > MOST_BYTES:
        notes.append(f"{len(content)} bytes are more than the {MOST_BYTES} that may ship")
    return Trained(model_path, card_path, card["kind"], version, len(content), tuple(notes))


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _LIBRARIES}

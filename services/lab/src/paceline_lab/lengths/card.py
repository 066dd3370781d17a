"""The model card: what a length model was trained on, what it was measured at, and what it cannot do."""

from typing import Any

from paceline_lab.lengths.report import number, percent, table

Document = dict[str, Any]

LIMITS = (
    "Trained on answers of a few dozen models to public prompts, most of them in English; other languages and domains "
    "are answered from form and app alone until outcomes were learned.",
    "Gives the length of a typical model's answer: a model's own habits come from its offset in the file, or from its "
    "first outcomes when it has none.",
    "The training answers have at most a few thousand tokens: long reasoning traces are answered from the tail that is "
    "mixed into every estimate until outcomes were learned.",
    "Uncalibrated by itself: the coverage that counts is that of the service, which recalibrates with every outcome.",
)


def card_document(
    kind: str,
    trained_on: Document,
    held_out: Document,
    command: str,
    seed: int,
    versions: Document,
) -> Document:
    """What goes into the file's metadata; deterministic, so no clock and no machine."""
    return {
        "kind": kind,
        "licence": "Apache-2.0",
        "data": trained_on,
        "held_out": held_out,
        "seed": seed,
        "command": command,
        "versions": versions,
        "limits": list(LIMITS),
    }


def card_markdown(card: Document, version: str, sha256: str, model_bytes: int) -> str:
    """MODEL_CARD.md."""
    data = card["data"]
    parts = [
        "# Model card: output lengths",
        f"`length.onnx`: kind `{card['kind']}`, version `{version}`, {model_bytes / 1e6:.1f} MB, "
        f"licence {card['licence']}.\n\n"
        f"SHA-256 `{sha256}`",
        "What it answers: how many tokens an answer will have, as a distribution over 48 bins, from the prompt's head "
        "and tail, the app, limits and format cues, and while tokens come out from the text so far. "
        "How it is used: docs/prediction.md.",
        "## Training data\n\n"
        + table(
            ("set", "licence", "prompts", "models", "answers", "of them cut"),
            [
                (name, row["licence"], row["prompts"], row["models"], row["examples"], row["censored"])
                for name, row in data["sources"].items()
            ],
        )
        + f"\n\n{data['rows']} training rows: the answers, and the same answers in the middle of their output.",
        "## Command\n\n"
        f"```\n{card['command']}\n```\n\n"
        "The same data, seed and library versions give the same file: "
        + ", ".join(f"{name} {value}" for name, value in card["versions"].items())
        + ".",
        "## Held-out figures\n\nFrozen, as trained on the other part of the data; losses of the natural log of the "
        "length.\n\n" + _held_out(card["held_out"]),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in card["limits"]),
    ]
    return "\n\n".join(parts) + "\n"


def _held_out(held_out: Document) -> str:
    rows = []
    for split, found in held_out["splits"].items():
        for kind, scores in found["learners"].items():
            rows.append(
                (
                    split if kind == next(iter(found["learners"])) else "",
                    kind,
                    found["scored"],
                    number(scores["crps"]),
                    number(scores["pinball"]),
                    *(percent(scores["coverage"][level]) for level in ("p50", "p90", "p95")),
                    number(scores["log_width_80"], 2),
                )
            )
    mean = ", ".join(f"{kind} {number(value, 4)}" for kind, value in held_out["mean_crps"].items())
    return (
        table(("split", "kind", "scored", "CRPS", "pinball", "P50", "P90", "P95", "width"), rows)
        + f"\n\nMean CRPS over the splits, by which `auto` chooses: {mean}."
    )

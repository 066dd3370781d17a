"""One observed answer, and the question that the router would have asked about it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from paceline_predictor.model import LengthQuestion

PART_BYTES: Final = 2048
"""What the router sends of a prompt's beginning, and of its end."""


@dataclass(frozen=True, slots=True)
class Example:
    """An answer of a known length."""

    question: LengthQuestion
    output_tokens: int
    """At least 1: an empty answer is its end token."""
    censored: bool
    """Cut there: longer is all that is known."""
    source: str
    """Data set."""
    family: str
    """Kind of task: chat, instruction, maths, code, sql, tools, agent, summary."""
    prompt_id: str
    """What a split must not part: the SHA-1 of the prompt, or the session of an agent's calls."""
    weight: float
    """1 over the square root of how many rows of the set have the same prompt, less where the length is a bound."""
    output: str = ""
    """The answer's text, where it is known."""
    permissive: bool = True
    """Whether what ships may be trained on it."""


def text_id(text: str) -> str:
    """Id of a prompt by its text (SHA-1, hexadecimal)."""
    return hashlib.sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def head_and_tail(text: str) -> tuple[str, str]:
    """What the router sends of a prompt: its first and, if it is longer, its last PART_BYTES."""
    encoded = text.encode("utf-8", "surrogatepass")
    head = encoded[:PART_BYTES].decode("utf-8", "ignore")
    return head, encoded[-PART_BYTES:].decode("utf-8", "ignore") if len(encoded) > PART_BYTES else ""


Turn = tuple[str, str]
"""Role and text."""

SMOLLM_SYSTEM: Final = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_SYSTEMS: Final = ("", "", "You are a helpful assistant.", SMOLLM_SYSTEM)


def chatml(turns: Sequence[Turn]) -> str:
    """A conversation in the ChatML template, the answer's turn opened."""
    spoken = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return f"{spoken}<|im_start|>assistant\n"


def as_sent(prompt: str, key: str) -> str:
    """The prompt as the router would hold it.

    Half of them as they are (completions), half in a chat template with one of some system prompts, drawn by the hash
    of `key`, so that models learn to read past either.
    """
    draw = int(text_id(key)[:8], 16)
    if draw % 2:
        return prompt
    system = _SYSTEMS[draw // 2 % len(_SYSTEMS)]
    return chatml([*([("system", system)] if system else []), ("user", prompt)])


def template_tokens(prompt: str, sent: str) -> int:
    """About how many tokens a template added."""
    return (len(sent) - len(prompt)) // 5

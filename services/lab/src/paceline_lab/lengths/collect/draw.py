"""Which prompt comes next and how it is sampled: a function of the seed alone, so that a broken run goes on where it
was."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from paceline_lab.lengths.collect.prompts import Prompt

_EVEN_SET_PROMPTS: Final = 500
"""A set counts as at most this large when sets are mixed, or the largest would be most of a partial file."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One answer to be had."""

    prompt: Prompt
    temperature: float
    max_tokens: int
    seed: int
    """Of the sampler."""


def draws(
    prompts: Sequence[Prompt], temperatures: Sequence[float], max_tokens: Sequence[int], seed: int
) -> list[Draw]:
    """Every prompt once, shuffled, with a temperature, a limit and a sampler's seed of its own.

    Any head of the list is a fair sample: small sets spread over as many draws as `_EVEN_SET_PROMPTS` of each
    large one take, and what large sets have left comes after.
    """
    by_set: dict[str, list[tuple[int, Prompt]]] = {}
    for prompt in prompts:
        by_set.setdefault(prompt.source, []).append((_number(seed, "order", prompt.prompt_id), prompt))
    placed: list[tuple[float, str, Prompt]] = []
    for members in by_set.values():
        members.sort(key=lambda member: member[0])
        step = 1 / min(len(members), _EVEN_SET_PROMPTS)
        placed += [
            ((rank + (number % 1024) / 1024) * step, prompt.prompt_id, prompt)
            for rank, (number, prompt) in enumerate(members)
        ]
    placed.sort(key=lambda place: place[:2])
    return [
        Draw(
            prompt,
            temperatures[_number(seed, "temperature", key) % len(temperatures)],
            max_tokens[_number(seed, "max_tokens", key) % len(max_tokens)],
            _number(seed, "sampler", key) >> 16,
        )
        for _, key, prompt in placed
    ]


def _number(seed: int, purpose: str, key: str) -> int:
    """64 bits that look random and are the same in every process."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")

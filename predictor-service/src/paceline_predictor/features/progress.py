"""What the generated text so far says about how much is to come."""

import re
from typing import Final

NAMES: Final = (
    "code_fence_open",
    "list_index",
    "in_list",
    "repeated_lines",
    "repeated_words",
    "ends_sentence",
    "ends_line",
    "ends_paragraph",
    "line_bytes",
    "braces_open",
)

_FENCE: Final = b"```"
_LIST_ITEM: Final = re.compile(rb"\n[ \t]{0,8}(?:(\d{1,3})[.)]|[-*]|\xe2\x80\xa2)[ \t]")
_WORDS_BACK: Final = 96


def progress(tail: bytes, word_hashes: list[int]) -> tuple[float, ...]:
    """Values of NAMES for the end of a generated text and the hashes of its words; zeros when there is none."""
    if not tail:
        return (0.0,) * len(NAMES)
    index, in_list = _list_state(tail)
    lines = [line for line in tail.split(b"\n")[1:] if len(line) > 3]
    recent = word_hashes[-_WORDS_BACK:]
    stripped = tail.rstrip()
    return (
        _fence_open(tail),
        index,
        in_list,
        1.0 - len(set(lines)) / len(lines) if len(lines) > 1 else 0.0,
        1.0 - len(set(recent)) / len(recent) if recent else 0.0,
        float(stripped.endswith((b".", b"!", b"?", b"```", b"\xe3\x80\x82"))),
        float(tail.endswith(b"\n")),
        float(tail.endswith(b"\n\n")),
        min(len(tail) - 1 - tail.rfind(b"\n"), 512) / 128,
        max(-4, min(4, tail.count(b"{") - tail.count(b"}"))) / 4,
    )


def _fence_open(tail: bytes) -> float:
    """1: a code block is open; 0: none; 0.5: the fence that is seen may open or close one."""
    last = tail.rfind(_FENCE)
    if last < 0:
        return 0.0
    if tail[last + 3 : last + 4].isalpha():
        return 1.0
    before = tail.rfind(_FENCE, 0, last)
    if before >= 0 and tail[before + 3 : before + 4].isalpha():
        return 0.0
    return 0.5 if tail.count(_FENCE) % 2 else 0.0


def _list_state(tail: bytes) -> tuple[float, float]:
    """Number of the last list item (of a bullet: how many are seen), over 10, and whether there is one."""
    numbers = _LIST_ITEM.findall(b"\n" + tail)
    if not numbers:
        return 0.0, 0.0
    last = numbers[-1]
    return min(int(last) if last else len(numbers), 100) / 10, 1.0

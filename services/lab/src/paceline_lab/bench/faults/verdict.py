"""What one client got against what it gets when nothing happens: token by token."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

_MISSING = -1


@dataclass(frozen=True, slots=True)
class Answer:
    """An undisturbed answer: ids, their text, how it ended (a FinishReason)."""

    ids: tuple[int, ...]
    text: bytes
    finish_reason: int


@dataclass(slots=True)
class Received:
    """What arrived, in the places that the router gave it."""

    ids: list[int] = field(default_factory=list)
    text: bytearray = field(default_factory=bytearray)
    duplicated: int = 0
    """Tokens that came although they were there."""

    def take(self, first: int, ids: Sequence[int], lengths: Sequence[int], text: bytes) -> None:
        """A row: its first index, and per token its id and the bytes of its text."""
        have = len(self.ids)
        again = min(max(have - first, 0), len(ids))
        self.duplicated += again
        self.ids += [_MISSING] * max(first - have, 0)
        self.ids += ids[again:]
        self.text += text[sum(lengths[:again]) :]


@dataclass(frozen=True, slots=True)
class Damage:
    """Tokens that are not as they should be. All zero: the client cannot tell that anything happened."""

    lost: int = 0
    """Not delivered."""
    duplicated: int = 0
    """Delivered twice."""
    spliced: int = 0
    """Not those of the undisturbed answer; with right ids and wrong text: 1."""
    reordered: int = 0
    """Those of the undisturbed answer, in another order."""

    def __add__(self, other: "Damage") -> "Damage":
        return Damage(
            self.lost + other.lost,
            self.duplicated + other.duplicated,
            self.spliced + other.spliced,
            self.reordered + other.reordered,
        )


def judge(received: Received, answer: Answer, *, complete: bool) -> Damage:
    """Compare. Of a request that was cancelled (not `complete`) what came must be the beginning of the answer."""
    got = received.ids
    wanted = answer.ids if complete else answer.ids[: len(got)]
    pairs = list(zip(got, wanted, strict=False))
    lost = sum(one == _MISSING for one in got) + max(len(wanted) - len(got), 0)
    wrong = sum(one not in (_MISSING, other) for one, other in pairs)
    surplus = max(len(got) - len(wanted), 0)
    if wrong and not surplus and not lost and Counter(got) == Counter(wanted):
        return Damage(duplicated=received.duplicated, reordered=wrong)
    spliced = wrong + surplus
    if not lost and not spliced:
        text = bytes(received.text)
        spliced = int(text != answer.text if complete else not answer.text.startswith(text))
    return Damage(lost, received.duplicated, spliced)

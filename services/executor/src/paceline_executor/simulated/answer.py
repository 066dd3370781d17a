"""What an attempt says: read from the ring of the language, or spelled token by token where the ring is not enough.

Stop strings, and forced ids that the ring would not have given, need the text of every token in turn; all other answers
are an offset and a count, so hundreds of attempts cost nothing while they run.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from paceline_executor.contract import AttemptSpec, EndReason, Ids
from paceline_executor.output_text import OutputText
from paceline_executor.simulated.language import END_ID, RING_MASK, Language

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
_NEVER = 1 << 62
_NORMAL = NormalDist()
Slice = tuple[Ids, NDArray[np.uint32], bytes]
"""Ids, text lengths, text of a run of tokens."""


@dataclass(frozen=True, slots=True)
class Script:
    """What the engine would say if nobody forced anything: a function of seed, prompt and parameters."""

    language: Language
    offset: int
    end_index: int
    """Index of the end-of-generation token."""
    max_outputs: int
    stop: tuple[str, ...]
    stop_ids: frozenset[int]

    def id_at(self, index: int) -> int:
        """The id drawn at an output index."""
        return (
            END_ID
            if index == self.end_index
            else int(self.language.ring_ids[(self.offset + index) & RING_MASK])
        )

    def ids(self, first: int, last: int) -> Ids:
        """The ids drawn at first..last-1."""
        drawn: Ids = self.language.ring_ids[(self.offset + np.arange(first, last)) & RING_MASK]
        if first <= self.end_index < last:
            drawn[self.end_index - first] = END_ID
        return drawn


def script_of(
    spec: AttemptSpec,
    prompt_ids: Ids,
    language: Language,
    max_outputs: int,
    median_tokens: float,
    sigma: float,
) -> Script:
    """The script of an attempt; the seed of its sampling counts only when it samples (temperature above 0)."""
    sampling = spec.sampling
    offset = language.offset_of(prompt_ids, sampling.seed if sampling.temperature > 0 else 0)
    end_index = _NEVER
    if not sampling.ignore_eos:
        # A second use of the same draw: fractional part of a multiple by the golden ratio, never exactly 0 or 1.
        share = (offset * 0.6180339887498949 + 0.5 / 65_536) % 1.0
        length = median_tokens * np.exp(sigma * _NORMAL.inv_cdf(min(max(share, 1e-6), 1 - 1e-6)))
        end_index = max(0, round(float(length)) - 1)
    return Script(
        language,
        offset,
        end_index,
        max_outputs,
        tuple(filter(None, sampling.stop)),
        frozenset(sampling.stop_token_ids),
    )


class RingAnswer:
    """An answer that is the script itself, up to an end that is known from the start."""

    __slots__ = ("count", "last_index", "reason", "script")

    def __init__(self, script: Script) -> None:
        self.script = script
        self.count = 0
        """Tokens out so far, forced ones included."""
        last = script.max_outputs - 1
        if script.stop_ids:
            ids = script.ids(0, script.max_outputs)
            hits = np.flatnonzero(np.isin(ids, list(script.stop_ids)))
            last = min(last, int(hits[0])) if len(hits) else last
        self.last_index = min(last, script.end_index)
        """Index of the last token."""
        last_id = script.id_at(self.last_index)
        stops = self.last_index == script.end_index or last_id in script.stop_ids
        self.reason = EndReason.STOP if stops else EndReason.LENGTH
        """Why it ends there."""

    stop_string = ""

    @property
    def ended(self) -> EndReason | None:
        """Set when the last token is out."""
        return self.reason if self.count > self.last_index else None

    @property
    def position(self) -> int:
        """Ring position of the next token."""
        return (self.script.offset + self.count) & RING_MASK

    def step(self) -> None:
        """Draw the next token."""
        self.count += 1

    def takes(self, ids: Ids) -> bool:
        """True if these next ids are what the script says anyway: then they are taken."""
        if self.count + len(ids) - 1 > self.last_index:
            return False
        if not np.array_equal(ids, self.script.ids(self.count, self.count + len(ids))):
            return False
        self.count += len(ids)
        return True

    def slice(self, first: int) -> Slice:
        """Tokens from an index to the newest one."""
        language = self.script.language
        where = (self.script.offset + np.arange(first, self.count)) & RING_MASK
        ids, lengths = self.script.ids(first, self.count), language.ring_lengths[where]
        texts = [language.ring_text[place] for place in where.tolist()]
        if first <= self.last_index < self.count:
            texts[-1] = self._last_text()
            lengths[-1] = len(texts[-1])
        return ids, lengths, b"".join(texts)

    def _last_text(self) -> bytes:
        place = (self.script.offset + self.last_index) & RING_MASK
        if self.reason is EndReason.LENGTH:
            return self.script.language.ring_tail[place]
        return b"" if self.script.language.boundary[place] or self.last_index == 0 else _REPLACEMENT


class SpelledAnswer:
    """An answer whose text is worked out token by token."""

    __slots__ = ("_lengths", "_output", "_text", "ended", "ids", "script", "stop_string")

    def __init__(self, script: Script) -> None:
        self.script = script
        self.ids: list[int] = []
        self.ended: EndReason | None = None
        self.stop_string = ""
        self._output = OutputText(script.stop)
        self._lengths: list[int] = []
        self._text = bytearray()

    @property
    def count(self) -> int:
        """Tokens out so far, forced ones included."""
        return len(self.ids)

    def step(self) -> None:
        """Draw the next token."""
        self.append(self.script.id_at(len(self.ids)))

    def append(self, token: int) -> None:
        """Take the next token, drawn or forced; sets `ended` when it is the last."""
        script = self.script
        self.ids.append(token)
        if token in script.stop_ids or (token == END_ID and script.end_index != _NEVER):
            released, self.ended = self._output.finish(), EndReason.STOP
        else:
            released, self.stop_string = self._output.push(script.language.pieces[token])
            if self.stop_string:
                self.ended = EndReason.STOP_STRING
            elif len(self.ids) >= script.max_outputs:
                released, self.ended = released + self._output.finish(), EndReason.LENGTH
        piece = released.encode()
        self._lengths.append(len(piece))
        self._text += piece

    def slice(self, first: int) -> Slice:
        """Tokens from an index to the newest one."""
        start = sum(self._lengths[:first])
        return (
            np.array(self.ids[first:], np.int32),
            np.array(self._lengths[first:], np.uint32),
            bytes(self._text[start:]),
        )


Answer = RingAnswer | SpelledAnswer


def new_answer(script: Script) -> Answer:
    """The cheapest answer that can follow the script."""
    return SpelledAnswer(script) if script.stop else RingAnswer(script)


def force(answer: Answer, ids: Ids) -> Answer:
    """Take forced ids; returns the answer to use from now on. Ids after an end are ignored."""
    if isinstance(answer, RingAnswer):
        if answer.ended is not None or answer.takes(ids):
            return answer
        spelled = SpelledAnswer(answer.script)
        for token in answer.script.ids(0, answer.count).tolist():
            spelled.append(token)
        answer = spelled
    for token in ids.tolist():
        if answer.ended is None:
            answer.append(token)
    return answer

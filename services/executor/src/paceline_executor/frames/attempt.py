"""One attempt in front of an engine that takes requests: its transcript, and the leg it is on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paceline_executor.contract import AttemptEnded, AttemptSpec, AttemptState, EndReason, Ids
from paceline_executor.frames.backend import Leg, Vocabulary
from paceline_executor.output_text import OutputText


@dataclass
class LegState:
    """A stay in the engine. It is over when its last item was read, and not when it was aborted."""

    attempt: "Attempt"
    leg: Leg
    base: int
    """Output tokens when it began."""
    max_tokens: int
    began_s: float
    aborted_s: float | None = None


class Attempt:
    """Mutable state of one attempt, changed under the engine's lock. The answer's own end is decided here."""

    __slots__ = (
        "_end_ids",
        "_output_text",
        "_vocabulary",
        "awaiting",
        "cached_tokens",
        "cancelled",
        "ended",
        "ended_at_s",
        "key",
        "leg",
        "legs",
        "lengths",
        "max_outputs",
        "output_ids",
        "pinned",
        "prompt_ids",
        "published",
        "reason",
        "spec",
        "state",
        "stop_string",
        "text",
        "token_limit",
    )  # fmt: skip

    def __init__(
        self, spec: AttemptSpec, prompt_ids: Ids, vocabulary: Vocabulary, context_tokens: int, *, pinned: bool
    ) -> None:
        self.spec = spec
        self.key = spec.attempt_key
        self.prompt_ids = prompt_ids
        self.max_outputs = min(spec.max_tokens, context_tokens - len(prompt_ids))
        self.output_ids: list[int] = []
        self.lengths: list[int] = []
        self.text = bytearray()
        self.reason: EndReason | None = None
        """Set when the answer has come to its end, while the engine may still be at it."""
        self.stop_string = ""
        self.ended: AttemptEnded | None = None
        """Set when the engine is done with it as well."""
        self.ended_at_s = 0.0
        self.cancelled = False
        self.awaiting = spec.await_more_forced
        self.token_limit = 0
        self.pinned = pinned
        """Cannot go on elsewhere or later as it would have here: it is never taken out."""
        self.state = AttemptState.QUEUED
        self.leg: LegState | None = None
        self.legs = 0
        self.cached_tokens = 0
        """Positions believed to be in the engine's cache while no leg is on."""
        self._vocabulary = vocabulary
        self._output_text = OutputText(spec.sampling.stop)
        self._end_ids = frozenset(spec.sampling.stop_token_ids) | (
            frozenset() if spec.sampling.ignore_eos else vocabulary.end_token_ids
        )
        for token in spec.forced_ids.tolist():
            if not self.append(token):
                break
        self.published = len(self.output_ids)
        """Output index from which on tokens go out."""

    @property
    def count(self) -> int:
        """Output tokens, forced ones included."""
        return len(self.output_ids)

    @property
    def known_tokens(self) -> int:
        """Prompt and output tokens."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def kv_tokens(self) -> int:
        """Positions in the engine: of the leg if there is one, else what may still be cached."""
        return self.known_tokens - 1 if self.leg is not None else self.cached_tokens

    @property
    def finished(self) -> bool:
        """True if nothing more is wanted of the engine."""
        return self.reason is not None or self.cancelled or self.ended is not None

    def runnable(self) -> bool:
        """True if a further token is wanted and allowed. A pinned attempt that began knows no credit."""
        if self.reason is not None or self.cancelled or self.awaiting or self.ended is not None:
            return False
        return (self.pinned and self.leg is not None) or not 0 < self.token_limit <= len(self.output_ids)

    def extend(self, ids: Sequence[int]) -> bool:
        """Take the next output tokens; False when one of them is the last one, or they came after that."""
        return all(map(self.append, ids)) and self.reason is None

    def append(self, token: int) -> bool:
        """Take the next output token, forced or made; False when it is the last one, or came after that."""
        if self.reason is not None:
            return False
        self.output_ids.append(token)
        if token in self._end_ids:
            released, self.reason = self._output_text.finish(), EndReason.STOP
        else:
            released, self.stop_string = self._output_text.push(self._vocabulary.piece(token))
            if self.stop_string:
                self.reason = EndReason.STOP_STRING
            elif len(self.output_ids) >= self.max_outputs:
                released, self.reason = released + self._output_text.finish(), EndReason.LENGTH
        piece = released.encode()
        self.text += piece
        self.lengths.append(len(piece))
        return self.reason is None

    def ids(self) -> list[int]:
        """Prompt and output."""
        prompt: list[int] = self.prompt_ids.tolist()
        return prompt + self.output_ids

    def force(self, ids: Ids) -> None:
        """Take ids that another attempt published; they are not published again."""
        for token in ids.tolist():
            if not self.append(token):
                break
        self.published = self.count

    def outputs(self, first: int, last: int) -> Ids:
        """Output ids of a range."""
        return np.array(self.output_ids[first:last], np.int32)

    def end(self, reason: EndReason, now_s: float, *, error_reason: str = "", message: str = "",
            retryable: bool = False) -> AttemptEnded:  # fmt: skip
        """Close the attempt; from here on it is a tombstone of ids and text."""
        self.ended = AttemptEnded(
            attempt_key=self.key,
            reason=reason,
            output_tokens=self.count,
            prompt_tokens=len(self.prompt_ids),
            error_reason=error_reason,
            message=message,
            retryable=retryable,
            stop_string=self.stop_string if reason is EndReason.STOP_STRING else "",
        )
        self.ended_at_s = now_s
        self.state = AttemptState.ENDED
        return self.ended

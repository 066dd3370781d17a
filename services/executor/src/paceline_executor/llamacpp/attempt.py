"""One attempt inside the engine: what is known, what is computed, what is due next.

There is one notion of work: known ids whose KV is not there yet. A fresh prompt, a resumed eviction, an exact replay
and ordinary generation differ only in how many known ids lie ahead of the KV.
"""

import time
from collections.abc import Callable

import numpy as np

from paceline_executor.contract import (
    AttemptEnded,
    AttemptSpec,
    AttemptState,
    EndReason,
    Ids,
    ReplayMode,
)
from paceline_executor.llamacpp.transfer import SequenceState
from paceline_executor.output_text import OutputText


class Attempt:
    """Mutable state of one attempt; changed by the engine's thread, or under the engine's lock."""

    def __init__(
        self,
        spec: AttemptSpec,
        prompt_ids: Ids,
        *,
        context_tokens: int,
        end_token_ids: frozenset[int],
        piece_of: Callable[[int], bytes],
    ) -> None:
        self.spec = spec
        self.key = spec.attempt_key
        self.prompt_ids = prompt_ids
        self.prompt_tokens = len(prompt_ids)
        self.output_ids: list[int] = []
        self.text_lengths: list[int] = []
        self.text = bytearray()
        self.max_outputs = min(spec.max_tokens, context_tokens - self.prompt_tokens)
        self.ended: AttemptEnded | None = None
        self.ended_at_s = 0.0
        self.awaiting = spec.await_more_forced
        self.token_limit = 0
        self.state = AttemptState.QUEUED
        self.slot: int | None = None
        self.was_resident = False
        self.kv_tokens = 0
        self.imported: SequenceState | None = None
        self.poisoned = False
        """For fault tests: aborts the process when it decodes."""
        self._piece_of = piece_of
        self._output_text = OutputText(spec.sampling.stop)
        self._end_ids = frozenset(spec.sampling.stop_token_ids) | (
            frozenset() if spec.sampling.ignore_eos else end_token_ids
        )
        for token in spec.forced_ids.tolist():
            if self.append(token) is not None:
                break
        forced_prefill = len(self.output_ids) if spec.replay is ReplayMode.FAST else 0
        self.prefill_target = self.prompt_tokens + forced_prefill
        """Positions computed by prefill chunks; those after it by decode steps, also when computed again."""

    @property
    def known_tokens(self) -> int:
        """Prompt and output ids known so far."""
        return self.prompt_tokens + len(self.output_ids)

    @property
    def resting_state(self) -> AttemptState:
        """Its state when it is live and not in the run set."""
        if self.slot is not None:
            return AttemptState.PAUSED
        return AttemptState.EVICTED if self.was_resident else AttemptState.QUEUED

    def ids_between(self, first: int, last: int) -> Ids:
        """Known ids of positions first..last-1, prompt then output."""
        split = self.prompt_tokens
        head = self.prompt_ids[first:last]
        if last <= split:
            return head
        tail = np.array(self.output_ids[max(first - split, 0) : last - split], np.int32)
        return np.concatenate([head, tail]) if len(head) else tail

    def token_at(self, position: int) -> int:
        """The known id of one position."""
        if position < self.prompt_tokens:
            return int(self.prompt_ids[position])
        return self.output_ids[position - self.prompt_tokens]

    @property
    def prefilling(self) -> bool:
        """True while the next unit of work is a prefill chunk."""
        return self.kv_tokens < self.prefill_target

    def next_end(self, chunk_tokens: int) -> int:
        """Position after the next unit of work: to the next chunk border, or one token on."""
        if self.prefilling:
            return min((self.kv_tokens // chunk_tokens + 1) * chunk_tokens, self.prefill_target)
        return self.kv_tokens + 1

    def runnable(self, chunk_tokens: int) -> bool:
        """True if a unit of work is due and allowed.

        Without credit nothing runs, or evicted attempts would take slots from each other for ever without making a
        token. One that awaits forced ids runs up to the last known id, once: evicted, it waits for the final ones.
        """
        if self.ended is not None or (self.token_limit and len(self.output_ids) >= self.token_limit):
            return False
        if not self.awaiting:
            return True
        return self.next_end(chunk_tokens) < self.known_tokens and not (
            self.was_resident and self.slot is None
        )

    def append(self, token: int) -> AttemptEnded | None:
        """Take the next output token, forced or drawn; returns (and sets) `ended` when it is the last."""
        self.output_ids.append(token)
        stop_string = ""
        reason: EndReason | None = None
        if token in self._end_ids:
            released, reason = self._output_text.finish(), EndReason.STOP
        else:
            released, stop_string = self._output_text.push(self._piece_of(token))
            if stop_string:
                reason = EndReason.STOP_STRING
            elif len(self.output_ids) >= self.max_outputs:
                released, reason = released + self._output_text.finish(), EndReason.LENGTH
        piece = released.encode()
        self.text += piece
        self.text_lengths.append(len(piece))
        return None if reason is None else self.end(reason, stop_string=stop_string)

    def end(
        self, reason: EndReason, *, error_reason: str = "", message: str = "", stop_string: str = ""
    ) -> AttemptEnded:
        """Close the attempt; from here on it is a tombstone of ids and text."""
        self.ended = AttemptEnded(
            attempt_key=self.key,
            reason=reason,
            output_tokens=len(self.output_ids),
            prompt_tokens=self.prompt_tokens,
            error_reason=error_reason,
            message=message,
            stop_string=stop_string,
        )
        self.ended_at_s = time.monotonic()
        self.state = AttemptState.ENDED
        self.imported = None
        return self.ended

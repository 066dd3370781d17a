"""Token batches into requests: each index once, in order, from the current attempt alone.

This runs for every token of the fleet. The payload is decoded once per batch, and a row costs a look-up and
three slices.
"""

from itertools import accumulate

import numpy as np

from paceline.common.v1 import attempt_pb2
from paceline_router.attempt import Attempt
from paceline_router.clock import Clock
from paceline_router.durability import Durability
from paceline_router.ledger import Ledger
from paceline_router.states import State

_WORD = 4


class TokenIntake:
    """Takes rows of (attempt, first index, count). Overlap is dropped; a gap makes it ask for the missing
    tokens."""

    def __init__(self, ledger: Ledger, durability: Durability, clock: Clock) -> None:
        self._attempts = ledger.attempts
        self._durability = durability
        self._clock = clock
        self.duplicate_tokens = 0
        self.stray_tokens = 0
        self.gaps = 0

    def take(self, batch: attempt_pb2.TokenBatch) -> None:
        """Fold one batch in. A malformed batch raises ValueError; nothing of it is taken then."""
        payload = attempt_pb2.TokenPayload.FromString(batch.payload)
        ids, lengths, text = payload.token_ids, payload.text_lengths, payload.text
        counts = list(batch.counts)
        ends = np.frombuffer(lengths, "<u4").cumsum().tolist()
        total = sum(counts)
        if not len(ids) == len(lengths) == _WORD * total or (ends[-1] if ends else 0) != len(text):
            raise ValueError(
                f"a token batch of {total} tokens has {len(ids)} bytes of ids, {len(lengths)} of lengths"
            )
        ends.append(0)  # so that ends[-1] is where the first piece begins
        now_ms = self._clock.now_ms()
        attempts = self._attempts
        rows = zip(batch.attempt_keys, batch.first_indices, counts, accumulate(counts), strict=True)
        for key, first, count, after in rows:
            attempt = attempts.get(key)
            if attempt is None:
                self.stray_tokens += count
                continue
            request = attempt.request
            if request.attempt is not attempt or request.ended:
                self.stray_tokens += count
                continue
            have = request.output.count
            if first > have:
                self._ask(attempt, have)
                continue
            fresh = first + count - have
            if fresh <= 0:
                self.duplicate_tokens += count
                continue
            self.duplicate_tokens += count - fresh
            start = after - fresh
            a, b = _WORD * start, _WORD * after
            request.output.append(ids[a:b], lengths[a:b], text[ends[start - 1] : ends[after - 1]])
            attempt.republish_asked_at = -1
            if request.move is not None:
                request.move.pass_on(request.output.ids)
            request.timeline.take(request.slo, have, fresh, now_ms - request.arrival.ms)
            if request.state is not State.RUNNING:
                if have == 0:
                    request.note(now_ms, "first_token")
                request.move_to(State.RUNNING)
            self._durability.tokens(request)

    def _ask(self, attempt: Attempt, have: int) -> None:
        """Ask once per gap; the answer comes down the same stream, in order."""
        if attempt.republish_asked_at != have:
            self.gaps += 1
            attempt.republish_asked_at = have
            attempt.engine.link.republish(attempt.key, have)

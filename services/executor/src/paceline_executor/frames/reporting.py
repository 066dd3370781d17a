"""Puts what came in one turn of the loop into a step report: tokens of all attempts, and the iterations behind them."""

from collections import deque
from collections.abc import Iterable

import numpy as np

from paceline_executor.contract import (
    AttemptEnded,
    Deviation,
    DeviationReason,
    KvUse,
    PrefillCall,
    Progress,
    StepReport,
    TokenColumns,
)
from paceline_executor.frames.attempt import Attempt
from paceline_executor.frames.backend import IterationRow
from paceline_executor.outbox import Outbox

_MAX_ROWS = 256


def pack(rows: Iterable[tuple[Attempt, int, int]]) -> TokenColumns:
    """Columns of (attempt, first index, end index) rows; empty ones are left out."""
    keys: list[int] = []
    firsts: list[int] = []
    counts: list[int] = []
    ids: list[int] = []
    lengths: list[int] = []
    texts: list[bytearray] = []
    for attempt, first, last in rows:
        if last <= first:
            continue
        keys.append(attempt.key)
        firsts.append(first)
        counts.append(last - first)
        ids.extend(attempt.output_ids[first:last])
        row_lengths = attempt.lengths[first:last]
        lengths.extend(row_lengths)
        end = len(attempt.text)
        if last < len(attempt.lengths):
            end -= sum(attempt.lengths[last:])
        texts.append(attempt.text[end - sum(row_lengths) : end])
    return TokenColumns(
        np.array(keys, np.uint64),
        np.array(firsts, np.uint32),
        np.array(counts, np.uint32),
        np.array(ids, np.int32),
        np.array(lengths, np.uint32),
        b"".join(texts),
    )


class Reporter:
    """Collects until `flush`. Used under the engine's lock."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._fresh: dict[int, Attempt] = {}
        self._moved: dict[int, Attempt] = {}
        self._rows: deque[IterationRow] = deque(maxlen=_MAX_ROWS)
        self._deviations: list[Deviation] = []
        self._ends: list[AttemptEnded] = []
        self._decode_ms = 0.0
        """Of the last iteration that only decoded."""
        self.plan_id = 0
        self.steps = 0

    @property
    def pending(self) -> bool:
        """True if a flush would say something."""
        return bool(self._fresh or self._moved or self._rows or self._ends or self._deviations)

    def tokens(self, attempt: Attempt) -> None:
        """An attempt has tokens that are not published."""
        self._fresh[attempt.key] = attempt

    def moved(self, attempt: Attempt) -> None:
        """State or KV of an attempt changed."""
        self._moved[attempt.key] = attempt

    def row(self, row: IterationRow) -> None:
        """An iteration has ended."""
        self._rows.append(row)

    def deviation(self, attempt: Attempt, reason: DeviationReason) -> None:
        """The plan was not followed to the letter."""
        self._deviations.append(Deviation(self.plan_id, attempt.key, reason))

    def ended(self, ended: AttemptEnded) -> None:
        """An attempt is over; said after its tokens."""
        self._moved.pop(ended.attempt_key, None)
        self._ends.append(ended)

    def flush(self, kv: KvUse) -> None:
        """Put everything out."""
        if self.pending:
            # Also before ends alone: whoever reads several reports at once takes the last one's KV for what is left.
            self._outbox.put(self._report(kv))
        ends, self._ends = self._ends, []
        self._outbox.put(*ends)

    def _report(self, kv: KvUse) -> StepReport:
        rows = list(self._rows)
        self._rows.clear()
        fresh, self._fresh = self._fresh, {}
        moved, self._moved = self._moved, {}
        deviations, self._deviations = self._deviations, []
        columns = pack((attempt, attempt.published, attempt.count) for attempt in fresh.values())
        for attempt in fresh.values():
            attempt.published = attempt.count
        self.steps += max(len(rows), 1)
        decode_ms = sum(self._decode_share(row) for row in rows)
        total_ms = sum(row.ms for row in rows)
        calls = tuple(
            PrefillCall(
                row.context_tokens, row.context_before_tokens, max(row.ms - self._decode_share(row), 0.0)
            )
            for row in rows
            if row.context_tokens
        )
        return StepReport(
            step=self.steps,
            plan_id=self.plan_id,
            step_ms=total_ms,
            decode_ms=decode_ms,
            prefill_ms=total_ms - decode_ms,
            decode_batch=sum(row.decode_batch for row in rows),
            decode_context_tokens=sum(row.decode_context_tokens for row in rows),
            prefill_calls=calls,
            tokens=columns,
            progress=tuple(Progress(a.key, a.kv_tokens, a.state) for a in moved.values()),
            kv=kv,
            deviations=tuple(deviations),
            # Tokens without the row of their iteration are as unfit for a step-time model as several rows in one.
            merged_reports=len(rows) if rows else 2,
        )

    def _decode_share(self, row: IterationRow) -> float:
        """Time that the decodes of an iteration took; a mixed one has one latency, so the last pure one stands in."""
        if not row.decode_batch:
            return 0.0
        if not row.context_tokens:
            self._decode_ms = row.ms
            return row.ms
        return min(self._decode_ms or row.ms / 2, row.ms)

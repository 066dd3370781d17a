"""What requests still need of the engine, and until when: the terms that every part of `pace` reckons with."""

from dataclasses import dataclass

import numpy as np

from paceline_core.batch.state import RunState
from paceline_core.batch.view import BatchView, BoolArray, FloatArray, IntArray
from paceline_core.slo import SloClass

_FAR_MS = 1e12
"""Until something that is never due; finite, so that arithmetic with it stays defined."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the engine goes with a full batch."""

    batch: int
    """Sequences of a step."""
    step_ms: float
    """A decode step of them."""
    prefill_token_ms: float
    """What a prompt token adds to the steps."""

    @property
    def slot_ms(self) -> float:
        """Engine time of one output token."""
        return self.step_ms / self.batch


def pace_of(view: BatchView, rows: IntArray, chunk_tokens: int) -> Pace:
    """With as many of `rows` as the batch holds, at the mean context of those that run (while none does: of all)."""
    batch = max(1, min(view.capacity.max_batch, len(rows)))
    now = np.flatnonzero(view.state == RunState.RUNNING.value)
    of = now if len(now) else rows
    context = float((view.prompt_tokens[of] + view.generated[of]).mean()) if len(of) else 0.0
    step = max(view.model.decode_ms(batch, batch * context), 1e-3)
    return Pace(batch, step, max(view.model.prefill_token_ms(max(1, chunk_tokens)), 1e-6))


@dataclass(frozen=True, slots=True)
class Needs:
    """Columns of the rows `row` [M] of a view. Times are milliseconds from now."""

    row: IntArray
    stream: BoolArray
    """Latency class: each token has its own due time."""
    bounded: BoolArray
    """Deadline and task class: the last token has one."""
    task: BoolArray
    tokens: FloatArray
    """Expected output tokens still to come."""
    done_share: FloatArray
    """Share of a task's time that was over when this call came: what it may have earned by then is at stake too."""
    rest_tokens: FloatArray
    """Expected tokens of the task after this call, along its critical path."""
    prefill_ms: FloatArray
    next_ms: FloatArray
    """Until the next token is due (stream)."""
    due_ms: FloatArray
    """Until the last token is wanted: that of the call (task), of the answer (deadline); far for others."""
    end_ms: FloatArray
    """Until the target is missed for good: as `due_ms`, but for a task its own deadline."""
    tbt_ms: FloatArray
    alone_ms: FloatArray
    """Time this call takes when it is in every step."""
    cost_ms: FloatArray
    """Engine time this call takes: its share of the steps it is in, and its prompt."""
    running: BoolArray


def needs_of(view: BatchView, rows: IntArray, pace: Pace, now_ms: float) -> Needs:
    """The terms of `rows` [M]."""
    kind = view.slo_class[rows]
    stream = kind == SloClass.LATENCY.value
    task = kind == SloClass.TASK.value
    bounded = task | (kind == SloClass.DEADLINE.value)
    generated = view.generated[rows]
    tokens = view.lengths.mean_left(view.row_id[rows], generated)
    arrival = view.arrival_ms[rows] - now_ms
    tbt = view.tbt_ms[rows]
    answer = np.where(bounded, arrival + view.e2e_ms[rows], _FAR_MS)
    whole = view.task_due_ms[rows] - now_ms
    end = np.where(task & np.isfinite(whole), whole, answer)
    due = np.minimum(end, view.call_due_ms[rows] - now_ms)
    context = view.prompt_tokens[rows] + np.maximum(generated - 1, 0)
    prefill_ms = np.maximum(context - view.kv_tokens[rows], 0) * pace.prefill_token_ms
    return Needs(
        row=rows,
        stream=stream,
        bounded=bounded,
        task=task,
        tokens=tokens,
        done_share=np.where(
            task, np.clip(1.0 - (end - arrival) / np.maximum(view.e2e_ms[rows], 1.0), 0.0, 0.8), 0.0
        ),
        rest_tokens=view.task_rest_tokens[rows],
        prefill_ms=prefill_ms,
        next_ms=np.where(stream, arrival + view.ttft_ms[rows] + generated * tbt, _FAR_MS),
        due_ms=due,
        end_ms=end,
        tbt_ms=tbt,
        alone_ms=prefill_ms + tokens * pace.step_ms,
        cost_ms=prefill_ms + tokens * pace.slot_ms,
        running=view.state[rows] == RunState.RUNNING.value,
    )

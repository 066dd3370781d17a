"""Frames: a run set that is chosen at the end of every so many steps, and only filled up in between.

Between two ends whoever runs keeps its slot, and a slot that falls free goes to the first of those who wait. Nothing in
a list made between ends depends on the time, so that a list holds to the end of its frame unless something happens.

What was chosen is remembered by nothing but the state of the engine: who runs was chosen. Of those who were chosen but
have not begun, the next look chooses again by the same rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline_core.batch.plan import UNTIL_EVENT
from paceline_core.batch.ranking import leading, list_length
from paceline_core.batch.sarathi import decodes
from paceline_core.batch.state import RunState
from paceline_core.batch.view import BatchView, BoolArray, IntArray

Choice = Callable[[IntArray, int], IntArray]
"""(rows, slots) -> at most `slots` of these rows."""


def at_frame_end(view: BatchView, frame_steps: int) -> bool:
    """True where a run set is to be chosen: no plan was made since the last step at which a frame ended.

    Plans at that very step all choose: the engine has not acted on the first of them yet.
    """
    frame = max(1, frame_steps)
    return view.planned_step < 0 or view.step % frame == 0 or view.step // frame != view.planned_step // frame


def steps_to_frame_end(view: BatchView, frame_steps: int) -> int:
    """Steps left in this frame; at least 1."""
    frame = max(1, frame_steps)
    return frame - view.step % frame


def in_slot(view: BatchView) -> BoolArray:
    """[N] True for runnable rows that have a slot: they run, or their prompt is being prefilled."""
    has = view.state == RunState.RUNNING.value
    has |= (view.state == RunState.QUEUED.value) & (view.kv_tokens > 0)
    has &= view.runnable()
    return np.asarray(has)


def full_step_ms(view: BatchView) -> float:
    """v, the time of a token: a step of as full a batch as there are requests for, at the length of their prompts. So
    it changes with arrivals and ends, and not with each token."""
    batch = max(1, min(len(view), view.capacity.max_batch))
    context = float(view.prompt_tokens.mean()) if len(view) else 0.0
    return max(view.model.decode_ms(batch, batch * context), 1e-3)


def quantised(view: BatchView, every_tokens: int) -> IntArray:
    """[N] Output tokens so far, down to a multiple of `every_tokens`: when an estimate was asked for last."""
    generated = view.generated
    every = max(1, every_tokens)
    asked = np.zeros_like(generated)
    started = np.flatnonzero(generated >= every)
    asked[started] = generated[started] // every * every
    return asked


def shortlist(view: BatchView, rows: IntArray, worth: NDArray[Any], group_share: float = 1.0) -> IntArray:
    """Of `rows` all that can be in a list or compete for the batch: those of the largest `worth` [N], as many as a list
    takes, whoever is within `group_share` of the B-th largest, and who has a slot. The rest need no sorting."""
    count, batch = list_length(view), view.capacity.max_batch
    if len(rows) <= 2 * count:
        return rows
    mine = worth[rows]
    best = np.partition(mine, len(rows) - count)[-count:]
    least = best[0]
    if group_share < 1.0:
        least = min(least, group_share * np.partition(best, count - batch)[count - batch])
    near = mine >= least
    near |= in_slot(view)[rows]
    return np.asarray(rows[near])


@dataclass(frozen=True, slots=True)
class Waiting:
    """How those who have no slot stand in line."""

    keys: Sequence[NDArray[Any]]
    """Each [N], the weightiest first, smallest first; the last tells all rows apart. None may depend on the time."""
    choose: Choice
    """Who of them gets free slots."""


@dataclass(frozen=True, slots=True)
class FrameList:
    """A list, and how long it holds."""

    order: IntArray
    """[M] Rows."""
    kept: int
    """How many of them, the first ones, have begun."""
    valid_for_steps: int


def fill(view: BatchView, rows: IntArray, stays: BoolArray, waiting: Waiting) -> IntArray:
    """The run set between ends: of `rows` those that have a slot and may keep it (`stays` [N]), and whom `waiting`
    chooses for the others."""
    slots = view.capacity.max_batch
    has = stays[rows]
    kept = rows[has]
    if len(kept) > slots:
        kept = leading(kept, (view.arrival_ms, view.row_id), slots)
    return np.concatenate([kept, waiting.choose(rows[~has], slots - len(kept))])


def listed(view: BatchView, rows: IntArray, chosen: IntArray, waiting: Waiting, left_steps: int) -> FrameList:
    """A list of `rows` with the run set `chosen` in front: first who has begun, by arrival, so that nothing changes
    when the others begin; `left_steps`: to the end of the frame."""
    begun = decodes(view, chosen) | in_slot(view)[chosen]
    kept, fresh = chosen[begun], chosen[~begun]
    kept = leading(kept, (view.arrival_ms, view.row_id), len(kept))
    fresh = leading(fresh, waiting.keys, len(fresh))
    out = np.ones(len(view), dtype=bool)
    out[chosen] = False
    others = rows[out[rows]]
    rest = leading(others, waiting.keys, list_length(view) - len(chosen))
    holds = left_steps
    if len(fresh) and len(others):
        out[fresh] = True  # would the same be chosen once `kept` runs?
        again = waiting.choose(rows[out[rows]], len(fresh))
        holds = left_steps if np.array_equal(np.sort(again), np.sort(fresh)) else 1
    elif not len(fresh) and not len(others):
        holds = UNTIL_EVENT
    return FrameList(np.concatenate([kept, fresh, rest]), len(kept), holds)

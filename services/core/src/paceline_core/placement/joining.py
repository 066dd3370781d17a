"""What one more request would find on an engine, whatever the request: written once, for numbers and for columns.

The fleet table keeps it up row by row as things change, in plain numbers, so that a decision over hundreds of engines
only adds what hangs on the request itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paceline_core.placement.view import Floats


@dataclass(frozen=True, slots=True)
class Joining:
    """float64[E] each."""

    step_ms: Floats
    """A decode step of the batch with one more, but for its own context."""
    context_ms: Floats
    """What a token of its own context adds to that."""
    start_ms: Floats
    """Until its prefill begins: behind the prompts that wait and, where the batch is full, for a slot, at the mean of
    what is left to write."""


def joining(
    live: Any,
    resident: Any,
    kv_used_tokens: Any,
    max_batch: Any,
    prefill_tokens: Any,
    output_tokens: Any,
    slowdown: Any,
    a_ms: Any,
    b_ms: Any,
    c_ms: Any,
    a1_ms: Any,
    d_ms: Any,
    low: Callable[[Any, Any], Any] = min,
    high: Callable[[Any, Any], Any] = max,
) -> tuple[Any, Any, Any]:
    """The fields of `Joining`, for numbers; with `np.minimum` and `np.maximum`, for columns.

    `live` requests of which `resident` hold `kv_used_tokens`; `prefill_tokens` and `output_tokens` are owed to them.
    """
    slots = high(max_batch, 1.0)
    batch = low(live + 1.0, slots)
    context = kv_used_tokens / high(resident, 1.0) * (batch - 1.0)
    many = a_ms + b_ms * batch
    alone = (batch <= 1.0) * (a1_ms > 0.0)
    step = (many + alone * (a1_ms - many) + c_ms * context) * slowdown
    ahead = high(live + 1.0 - slots, 0.0)
    start = d_ms * prefill_tokens + ahead * (output_tokens / high(live, 1.0)) * step / slots
    return step, c_ms * slowdown, start

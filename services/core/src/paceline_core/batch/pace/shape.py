"""How large a step may be: prompt tokens, and sequences."""

import numpy as np

from paceline_core.batch.pace.needs import Needs
from paceline_core.batch.view import BatchView, IntArray


def prefill_budget(
    view: BatchView, needs: Needs, head: IntArray, usual_chunks: int, most_chunks: int, decode_ms: float
) -> int:
    """Most prompt tokens of a step, whole chunks: `usual_chunks` while the batch is full, up to `most_chunks` while it
    is not, and no more than the tightest stream among the decoding rows `head` (indexes of `needs`) can wait for."""
    chunk = max(1, view.capacity.prefill_chunk_tokens)
    decoding = head[needs.prefill_ms[head] <= 0.0]
    full = len(decoding) >= view.capacity.max_batch - 1
    chunks = usual_chunks if full else most_chunks
    streams = decoding[needs.stream[decoding]]
    token_ms = max(view.model.prefill_token_ms(chunk), 1e-6)
    if len(streams):
        next_ms = needs.next_ms[streams]
        in_time = next_ms > decode_ms
        if in_time.any():
            room = float(np.min(np.maximum(next_ms[in_time], needs.tbt_ms[streams][in_time]))) - decode_ms
            chunks = min(chunks, max(1, int(room / (token_ms * chunk))))
    return chunk * max(1, chunks)


def prompts_apart(prefill_tokens: IntArray, budget: int, slots: int) -> IntArray:
    """[M] The list anew: prompts that the budget of a step does not reach give their slots to decoding rows.

    A prompt in the head of the list holds a slot of the batch even in steps that have no tokens to spare for it.
    `prefill_tokens` [M] is in the order of the list.
    """
    waits = prefill_tokens > 0
    before = np.cumsum(prefill_tokens) - prefill_tokens
    deferred = waits & (before >= budget)
    first, second = np.flatnonzero(~deferred), np.flatnonzero(deferred)
    return np.concatenate([first[:slots], second, first[slots:]])

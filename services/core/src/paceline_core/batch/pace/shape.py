"""How large a step may be, and whose prompts it takes in."""

import numpy as np

from paceline_core.batch.view import BatchView, IntArray


def prefill_budget(
    view: BatchView, decoding: IntArray, waiting: int, usual_chunks: int, most_chunks: int
) -> int:
    """Most prompt tokens of a step with the rows `decoding` and `waiting` others that have a prompt to prefill, whole
    chunks: `usual_chunks` while the batch is full of decoding rows, up to `most_chunks` while it is not, and such that
    a step stays within the shortest time between tokens of the streams in it."""
    capacity, model = view.capacity, view.model
    chunk = max(1, capacity.prefill_chunk_tokens)
    if not waiting:
        return usual_chunks * chunk
    full = len(decoding) + waiting >= capacity.max_batch and waiting <= 2
    chunks = usual_chunks if full else most_chunks
    tbt = view.tbt_ms[decoding]
    tbt = tbt[tbt > 0.0]
    if len(tbt):
        room = float(tbt.min()) - model.decode_ms(len(decoding), float(view.context_tokens(decoding).sum()))
        chunks = min(chunks, int(room / max(model.prefill_ms(chunk), 1e-6)))
    return chunk * max(1, chunks)


def choose_head(prefill_tokens: IntArray, order: IntArray, budget: int, slots: int) -> IntArray:
    """[<= slots] Of the indexes `order` those that get slots: the first ones, but for prompts that the budget of a
    step does not reach. Such a prompt would hold a slot of the batch in steps that have no tokens to spare for it."""
    tokens = prefill_tokens[order]
    before = np.cumsum(tokens) - tokens
    deferred = (tokens > 0) & (before >= budget)
    first = order[~deferred][:slots]
    if len(first) < slots:
        first = np.concatenate([first, order[deferred][: slots - len(first)]])
    return first

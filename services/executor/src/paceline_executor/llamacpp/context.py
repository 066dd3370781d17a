"""One llama.cpp context: KV memory cut into slots, and the two calls that matter, decode and prefill.

Owned by one thread. Every slot is a sequence id with a KV stream of its own (`kv_unified=False`), so attention costs
the sum of contexts; the price is that a call is one pass only for ascending, gap-free slots, which `decode` demands.
"""

import ctypes
import functools
import statistics
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_executor.llamacpp.binding import Batch, BindingError, load_library, recent_log
from paceline_executor.llamacpp.model import Model

KV_TYPE = "f16"
"""Type of the keys and values this binding asks for (llama.cpp's default)."""

_MOVE_TRIALS = 5
_FLASH_ATTENTION_OFF = 0


class DecodeError(RuntimeError):
    """`llama_decode` failed; the KV of the call's sequences is not to be trusted."""


@dataclass(frozen=True)
class ContextShape:
    """How the KV memory is cut, and how a call computes."""

    slots: int
    """Sequences whose KV is held at once."""
    slot_tokens: int
    """Context of each slot, in tokens."""
    chunk_tokens: int
    """Largest prefill call, in tokens."""
    threads: int = 1
    """OpenMP barriers collapse when threads outnumber free cores. More than one costs flash attention."""


@dataclass(frozen=True)
class MoveCost:
    """What a token of KV weighs, and how long it takes from one slot to another."""

    bytes_per_token: int
    ms_per_token: float


class Context:
    """KV slots plus the batch arrays of their calls, reused from step to step."""

    def __init__(self, model: Model, shape: ContextShape) -> None:
        self._library = load_library()
        self._vocab_size = model.vocab_size
        self.shape = shape
        widest = max(shape.chunk_tokens, shape.slots)
        params = self._library.llama_context_default_params()
        params.n_ctx = shape.slots * shape.slot_tokens
        params.n_seq_max = shape.slots
        params.n_batch = params.n_ubatch = widest
        params.n_threads = params.n_threads_batch = shape.threads
        params.kv_unified = False
        if shape.threads > 1:
            # Flash attention splits a sum among threads by the size of the batch: answers would depend on the schedule.
            params.flash_attn_type = _FLASH_ATTENTION_OFF
        handle = self._library.llama_init_from_model(model.handle, params)
        if not handle:
            raise BindingError(f"cannot make a context of {shape}: {' | '.join(list(recent_log)[-3:])}")
        self._handle: int | None = int(handle)
        self._memory = self._library.llama_get_memory(handle)
        self._check_shape(widest)
        self._token = np.zeros(widest, np.int32)
        self._position = np.zeros(widest, np.int32)
        self._slot = np.zeros(widest, np.int32)
        self._slot_count = np.ones(widest, np.int32)
        self._slot_pointer = self._slot.ctypes.data + 4 * np.arange(widest, dtype=np.uint64)
        self._wants_logits = np.zeros(widest, np.int8)
        self._batch = Batch(
            0,
            self._token.ctypes.data,
            None,
            self._position.ctypes.data,
            self._slot_count.ctypes.data,
            self._slot_pointer.ctypes.data,
            self._wants_logits.ctypes.data,
        )

    def _check_shape(self, widest: int) -> None:
        """The second half of the canary: what was written by name must be what the library understood."""
        shape, library = self.shape, self._library
        understood = {
            "n_seq_max": (library.llama_n_seq_max(self._handle), shape.slots),
            "n_ubatch": (library.llama_n_ubatch(self._handle), widest),
            "n_threads": (library.llama_n_threads(self._handle), shape.threads),
            "n_threads_batch": (library.llama_n_threads_batch(self._handle), shape.threads),
        }
        wrong = [f"{name}={got}, not {asked}" for name, (got, asked) in understood.items() if got != asked]
        # With unified KV a sequence may use the whole context, so this also proves that kv_unified was heard.
        slot_tokens = library.llama_n_ctx_seq(self._handle)
        if not shape.slot_tokens <= slot_tokens < shape.slot_tokens + 256:
            wrong.append(f"n_ctx_seq={slot_tokens}, not {shape.slot_tokens}")
        if wrong:
            self.close()
            raise BindingError(f"the context is not what was asked for: {'; '.join(wrong)}")

    def decode(
        self,
        slots: NDArray[np.int32],
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        wants_logits: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """One token for each of n sequences in one pass; logits [rows that want them, vocabulary].

        `slots` must ascend without a gap, or llama.cpp would silently cut the call into several passes. The
        returned view is overwritten by the next call.
        """
        count = len(slots)
        if count == 0 or (count > 1 and not bool((slots[1:] - slots[:-1] == 1).all())):
            raise ValueError(f"decode needs gap-free ascending slots, not {slots.tolist()}")
        self._token[:count] = tokens
        self._position[:count] = positions
        self._slot[:count] = slots
        self._wants_logits[:count] = wants_logits
        return self._call(count, int(np.count_nonzero(wants_logits)))

    def prefill(
        self, slot: int, tokens: NDArray[np.int32], first_position: int, *, wants_logits: bool
    ) -> NDArray[np.float32]:
        """A chunk of one sequence in a call of its own; logits [1 or 0, vocabulary] after its last token."""
        count = len(tokens)
        self._token[:count] = tokens
        self._position[:count] = np.arange(first_position, first_position + count, dtype=np.int32)
        self._slot[:count] = slot
        self._wants_logits[:count] = 0
        self._wants_logits[count - 1] = wants_logits
        return self._call(count, int(wants_logits))

    def _call(self, count: int, logit_rows: int) -> NDArray[np.float32]:
        self._batch.n_tokens = count
        status = self._library.llama_decode(self._handle, self._batch)
        if status != 0:
            raise DecodeError(f"llama_decode answered {status}: {' | '.join(list(recent_log)[-3:])}")
        if logit_rows == 0:
            return np.empty((0, self._vocab_size), np.float32)
        address = self._library.llama_get_logits(self._handle)
        rows = (ctypes.c_float * self._vocab_size * logit_rows).from_address(address)
        logits: NDArray[np.float32] = np.ctypeslib.as_array(rows)
        return logits

    def truncate(self, slot: int, tokens: int) -> None:
        """Forget all KV of a slot from position `tokens` on; 0 empties it."""
        if not self._library.llama_memory_seq_rm(self._memory, slot, tokens if tokens > 0 else -1, -1):
            raise DecodeError(f"cannot cut slot {slot} back to {tokens} tokens")

    def held_tokens(self, slot: int) -> int:
        """KV positions a slot holds, as llama.cpp counts them."""
        return int(self._library.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def read_state(self, slot: int) -> NDArray[np.uint8]:
        """A copy of a slot's KV as bytes; same build, model and KV type can read them back into any slot."""
        size = self._library.llama_state_seq_get_size(self._handle, slot)
        state = np.empty(size, np.uint8)
        written = self._library.llama_state_seq_get_data(self._handle, state.ctypes.data, size, slot)
        if written == 0:
            raise DecodeError(f"cannot read the KV of slot {slot}")
        return state[:written]

    def write_state(self, slot: int, state: NDArray[np.uint8]) -> None:
        """Replace a slot's KV; raises `DecodeError` (slot emptied) if the bytes are not understood."""
        self.truncate(slot, 0)
        read = self._library.llama_state_seq_set_data(self._handle, state.ctypes.data, len(state), slot)
        if read == 0:
            self.truncate(slot, 0)
            raise DecodeError(
                f"slot {slot} did not take {len(state)} bytes of KV: {' | '.join(list(recent_log)[-2:])}"
            )

    @functools.cached_property
    def move_cost(self) -> MoveCost:
        """Measured on slot 0, which must be free: ask before anything runs."""
        tokens = self.shape.chunk_tokens
        self.prefill(0, np.zeros(tokens, np.int32), 0, wants_logits=False)
        times_s: list[float] = []
        for _ in range(_MOVE_TRIALS):
            began_s = time.perf_counter()
            state = self.read_state(0)
            self.write_state(0, state)
            times_s.append(time.perf_counter() - began_s)
        self.truncate(0, 0)
        return MoveCost(len(state) // tokens, 1e3 * statistics.median(times_s) / tokens)

    def clear(self) -> None:
        """Empty every slot."""
        self._library.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        """Free the KV memory."""
        if self._handle is not None:
            self._library.llama_free(self._handle)
            self._handle = None

"""KV on its way from one engine to another: what may leave, and what of what came may be used."""

import logging
from collections import Counter

from paceline_executor.contract import (
    Capabilities,
    EngineError,
    ExportedState,
    PrefixReuse,
    StateRequirements,
)
from paceline_executor.llamacpp.attempt import Attempt
from paceline_executor.llamacpp.context import Context
from paceline_executor.llamacpp.transfer import SequenceState

_log = logging.getLogger(__name__)
_ANY_CHUNKS = 0
"""Chunk size of KV whose chunk borders are not known: it may have begun with a prefix of any length."""


class StateExchange:
    """The rules of one engine. `export` is for the engine's thread; `readable` for any."""

    def __init__(self, own: Capabilities, context: Context, counters: Counter[str]) -> None:
        self._own = own
        self._context = context
        self._counters = counters
        self._any_chunks = own.prefix_reuse is PrefixReuse.FAST

    def export(self, attempt: Attempt | None, requirements: StateRequirements) -> ExportedState:
        """The KV of an attempt, packed for an engine that wants it so; raises `EngineError`."""
        own = self._own
        wanted = (requirements.build, requirements.model_hash, requirements.kv_type)
        if wanted != (own.build, own.model_hash, own.kv_type):
            raise EngineError("STATE_INCOMPATIBLE", "build, model or KV type differ between the engines")
        if attempt is None or attempt.slot is None or attempt.kv_tokens == 0:
            raise EngineError("NO_STATE", "the attempt of this ticket has no KV any more")
        if attempt.kv_tokens > requirements.max_context_tokens:
            raise EngineError(
                "STATE_INCOMPATIBLE", "the state is longer than the context of the engine that pulls it"
            )
        state = SequenceState(
            own.build,
            own.model_hash,
            own.kv_type,
            _ANY_CHUNKS if self._any_chunks else own.prefill_chunk_tokens,
            attempt.prompt_tokens,
            attempt.prefill_target,
            attempt.ids_between(0, attempt.kv_tokens),
            self._context.read_state(attempt.slot),
        )
        self._counters["exports"] += 1
        return ExportedState(attempt.kv_tokens, state.ids, attempt.prompt_tokens, state.pack())

    def readable(self, attempt: Attempt, data: bytes) -> SequenceState | None:
        """A pulled state if it can be used here; else None, counted: the attempt replays."""
        own = self._own
        try:
            state = SequenceState.unpack(data)
        except EngineError as error:
            self._counters["imports_refused"] += 1
            _log.warning("attempt %d: %s; replaying", attempt.key, error)
            return None
        mine = (own.build, own.model_hash, own.kv_type, attempt.prompt_tokens)
        theirs = (state.build, state.model_hash, state.kv_type, state.prompt_tokens)
        # An engine that promises answers which no schedule changes takes only KV made in its own chunks.
        chunks_fit = self._any_chunks or state.chunk_tokens == own.prefill_chunk_tokens
        if mine != theirs or not chunks_fit or len(state.ids) > own.max_context_tokens:
            self._counters["imports_refused"] += 1
            _log.warning("attempt %d: the pulled KV is of another engine or prompt; replaying", attempt.key)
            return None
        return state

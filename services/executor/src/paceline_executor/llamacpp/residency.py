"""Who holds KV in which slot: admission, eviction, prefix reuse, imported state, and keeping the run set gap-free.

Used by the engine's thread only (`shareable` excepted, which only reads).
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paceline_executor.contract import AttemptState, PrefixReuse
from paceline_executor.llamacpp.attempt import Attempt
from paceline_executor.llamacpp.context import Context, DecodeError
from paceline_executor.llamacpp.prefix import CachedPrefix, PrefixCache, common_prefix
from paceline_executor.llamacpp.slots import choose_free_slot, plan_window
from paceline_executor.llamacpp.transfer import SequenceState

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shareable:
    """The longest prefix an attempt may take over, and where its KV is."""

    tokens: int = 0
    donor: Attempt | None = None
    cached: CachedPrefix | None = None


class Residency:
    """The slots of one context and the attempts in them."""

    def __init__(
        self, context: Context, reuse: PrefixReuse, cache: PrefixCache, counters: Counter[str]
    ) -> None:
        self._context = context
        self._chunk_tokens = context.shape.chunk_tokens
        self._reuse = reuse
        self._cache = cache
        self._counters = counters
        self._owners: list[Attempt | None] = [None] * context.shape.slots

    @property
    def residents(self) -> list[Attempt]:
        """Attempts with a slot, by slot."""
        return [owner for owner in self._owners if owner is not None]

    @property
    def used_tokens(self) -> int:
        """KV tokens of live attempts."""
        return sum(owner.kv_tokens for owner in self._owners if owner is not None)

    def admit(
        self, attempt: Attempt, running: Sequence[int], joins_now: bool, victim: Callable[[], Attempt]
    ) -> None:
        """Give the attempt a slot with as much KV as can be had without computing.

        `running` are the slots that decode in this step. If no slot is free, `victim()` names who loses its KV.
        """
        if all(owner is not None for owner in self._owners):
            self.evict(victim())
        free = [slot for slot, owner in enumerate(self._owners) if owner is None]
        slot = choose_free_slot(free, running, joins_now=joins_now)
        self._owners[slot] = attempt
        attempt.slot = slot
        attempt.was_resident = True
        attempt.kv_tokens = 0
        if attempt.imported is not None:
            self._install_import(attempt, attempt.imported, slot)
            attempt.imported = None
        if attempt.kv_tokens == 0:
            self._install_prefix(attempt, slot)

    def evict(self, attempt: Attempt) -> None:
        """Drop an attempt's KV; its ids stay, so it can be computed again."""
        if attempt.slot is None:
            return
        self._vacate(attempt, attempt.slot)
        attempt.state = AttemptState.EVICTED
        self._counters["evictions"] += 1

    def leave(self, attempt: Attempt) -> None:
        """Free the slot of an ended attempt; what others may share of its prompt goes to the prefix cache."""
        slot = attempt.slot
        if slot is None:
            return
        tokens = self._shareable_tokens(attempt)
        ids = attempt.ids_between(0, tokens)
        if tokens > 0 and not self._cache.covers(attempt.spec.cache_salt, ids):
            self._context.truncate(slot, tokens)
            self._cache.store(CachedPrefix(attempt.spec.cache_salt, ids, self._context.read_state(slot)))
        self._vacate(attempt, slot)

    def drop_all(self) -> None:
        """Empty every slot without keeping anything."""
        for attempt in self.residents:
            attempt.slot, attempt.kv_tokens = None, 0
        self._owners = [None] * len(self._owners)
        self._context.clear()

    def arrange(self, decoding: Sequence[Attempt]) -> int:
        """Put the attempts that decode into gap-free slots; returns the KV tokens that were copied for it."""
        held = [None if owner is None else owner.kv_tokens for owner in self._owners]
        moved = 0
        for move in plan_window(held, [attempt.slot for attempt in decoding if attempt.slot is not None]):
            moved += self._swap(move.source, move.target)
        if moved:
            self._counters["slot_moves"] += 1
        return moved

    def shareable(self, attempt: Attempt) -> Shareable:
        """The longest prefix the attempt could take over now."""
        if self._reuse is PrefixReuse.NONE:
            return Shareable()
        # At least the chunk that makes the first new logits is computed, and computed whole.
        limit = attempt.prefill_target - 1
        if self._reuse is PrefixReuse.ALIGNED:
            limit -= limit % self._chunk_tokens
        if limit <= 0:
            return Shareable()
        wanted = attempt.ids_between(0, limit)
        best = Shareable()
        for donor in list(self._owners):
            if donor is None or donor is attempt or donor.spec.cache_salt != attempt.spec.cache_salt:
                continue
            tokens = self._usable(common_prefix(donor.ids_between(0, self._shareable_tokens(donor)), wanted))
            if tokens > best.tokens:
                best = Shareable(tokens, donor=donor)
        shared, cached = self._cache.find(attempt.spec.cache_salt, wanted)
        if self._usable(shared) > best.tokens:
            best = Shareable(self._usable(shared), cached=cached)
        return best

    def _usable(self, tokens: int) -> int:
        return tokens - tokens % self._chunk_tokens if self._reuse is PrefixReuse.ALIGNED else tokens

    def _shareable_tokens(self, attempt: Attempt) -> int:
        """Leading tokens of an attempt's KV that others may take over."""
        if self._reuse is PrefixReuse.NONE:
            return 0
        if self._reuse is PrefixReuse.FAST:
            return attempt.kv_tokens
        return self._usable(min(attempt.kv_tokens, attempt.prefill_target))

    def _install_prefix(self, attempt: Attempt, slot: int) -> None:
        found = self.shareable(attempt)
        if found.donor is not None and found.donor.slot is not None:
            state = self._context.read_state(found.donor.slot)
        elif found.cached is not None:
            state = found.cached.state
        else:
            return
        # A partial copy between streams aborts the process, so copy all and cut.
        self._context.write_state(slot, state)
        self._context.truncate(slot, found.tokens)
        attempt.kv_tokens = found.tokens
        self._counters["prefix_tokens_reused"] += found.tokens

    def _install_import(self, attempt: Attempt, state: SequenceState, slot: int) -> None:
        """Take over pulled KV as far as its ids are the attempt's ids; the rest is replayed."""
        shared = common_prefix(state.ids, attempt.ids_between(0, attempt.known_tokens))
        if shared < min(len(state.ids), attempt.known_tokens) or state.prefill_target > attempt.known_tokens:
            self._counters["imports_refused"] += 1
            _log.warning("attempt %d: the pulled KV is of other ids, replaying", attempt.key)
            return
        # The last known id is fed here, for its logits; a chunk that was prefilled is prefilled whole or not at all.
        tokens = min(shared, attempt.known_tokens - 1)
        if tokens < state.prefill_target:
            tokens -= tokens % self._chunk_tokens
        if tokens == 0:
            self._counters["imports_too_short"] += 1
            return
        try:
            self._context.write_state(slot, state.kv)
        except DecodeError:
            self._counters["imports_refused"] += 1
            _log.exception("attempt %d: the pulled KV was not understood, replaying", attempt.key)
            return
        self._context.truncate(slot, tokens)
        attempt.kv_tokens = tokens
        # What was prefilled there is prefilled here if this KV must ever be computed again.
        attempt.prefill_target = state.prefill_target
        self._counters["imports"] += 1

    def _swap(self, source: int, target: int) -> int:
        mover, other = self._owners[source], self._owners[target]
        if mover is None:
            raise ValueError(f"slot {source} is empty")
        state = self._context.read_state(source)
        returning = None if other is None else self._context.read_state(target)
        self._context.write_state(target, state)
        if other is None or returning is None:
            self._context.truncate(source, 0)
        else:
            self._context.write_state(source, returning)
            other.slot = source
        mover.slot = target
        self._owners[source], self._owners[target] = other, mover
        return mover.kv_tokens + (0 if other is None else other.kv_tokens)

    def _vacate(self, attempt: Attempt, slot: int) -> None:
        self._context.truncate(slot, 0)
        self._owners[slot] = None
        attempt.slot, attempt.kv_tokens = None, 0

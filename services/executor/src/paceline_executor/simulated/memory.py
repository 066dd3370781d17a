"""Slots and KV memory of a simulated engine, as numbers."""

from collections.abc import Sequence

from paceline_executor.contract import Deviation, DeviationReason, KvUse
from paceline_executor.simulated.attempt import Attempt


class KvMemory:
    """Who is resident, and who has to go when room is needed."""

    def __init__(self, slots: int, capacity_tokens: int) -> None:
        self._slots = slots
        self.capacity_tokens = capacity_tokens
        self._residents: dict[int, Attempt] = {}
        self._order: Sequence[Attempt] = ()
        self._ranks: dict[int, int] | None = None
        self._plan_id = 0
        self.deviations: list[Deviation] = []
        """Evictions that no plan asked for, since they were last taken."""
        self.evicted: list[Attempt] = []
        """Attempts that lost their KV since they were last taken."""
        self.complete: list[Attempt] = []
        """Attempts that came in with all that they know and have nothing to run, since they were last taken."""

    @property
    def residents(self) -> int:
        """Attempts with KV here."""
        return len(self._residents)

    @property
    def used_tokens(self) -> int:
        """KV tokens of all residents."""
        return sum(attempt.kv_tokens for attempt in self._residents.values())

    def use(self, live: int) -> KvUse:
        """KV use now."""
        return KvUse(used_tokens=self.used_tokens, resident=len(self._residents), live=live)

    def begin_step(self, plan_id: int, order: Sequence[Attempt]) -> None:
        """Say who is wanted in which order, before slots and room are asked for."""
        self._plan_id = plan_id
        self._order = order
        self._ranks = None

    def admit(self, attempt: Attempt) -> bool:
        """Make the attempt resident, at the cost of one behind it if no slot is free."""
        if attempt.resident:
            return True
        if len(self._residents) >= self._slots and not self._evict_behind(attempt, DeviationReason.NO_SLOT):
            return False
        attempt.resident = True
        attempt.kv_tokens = min(attempt.imported_tokens, attempt.known_tokens - 1)
        attempt.imported_tokens = 0
        self._residents[attempt.key] = attempt
        return True

    def make_room(self, attempt: Attempt, tokens: int, reserved_tokens: int) -> bool:
        """True if `tokens` more fit beside what is used and reserved; those behind the attempt are evicted for it."""
        while self.used_tokens + reserved_tokens + tokens > self.capacity_tokens:
            if not self._evict_behind(attempt, DeviationReason.NO_KV):
                return False
        return True

    def evict(self, attempt: Attempt) -> None:
        """Drop the KV of an attempt."""
        if self._residents.pop(attempt.key, None) is not None:
            attempt.drop_kv()
            self.evicted.append(attempt)

    def leave(self, attempt: Attempt) -> None:
        """Free what an ended attempt holds."""
        self._residents.pop(attempt.key, None)

    def take_deviations(self) -> tuple[Deviation, ...]:
        """Deviations since the last call."""
        taken, self.deviations = tuple(self.deviations), []
        return taken

    def _evict_behind(self, attempt: Attempt, reason: DeviationReason) -> bool:
        """Evict the least wanted resident behind the attempt: unlisted ones first, then from the end of the plan."""
        if self._ranks is None:
            self._ranks = {wanted.key: rank for rank, wanted in enumerate(self._order)}
        ranks, behind = self._ranks, len(self._ranks)
        victim = max(
            self._residents.values(), key=lambda resident: ranks.get(resident.key, behind), default=None
        )
        if victim is None or ranks.get(victim.key, behind) <= ranks.get(attempt.key, -1):
            return False
        self.evict(victim)
        self.deviations.append(Deviation(self._plan_id, victim.key, reason))
        return True

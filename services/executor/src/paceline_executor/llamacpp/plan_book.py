"""The plan in force, the newest one offered, and the run set that follows from them."""

from collections.abc import Iterable, Mapping

from paceline_executor.contract import Plan
from paceline_executor.llamacpp.attempt import Attempt

_PRUNE_AFTER = 64


class PlanBook:
    """Guarded by the engine's lock."""

    def __init__(self) -> None:
        self._offered: Plan | None = None
        self._has_offer = False
        self._pending_evictions: dict[int, None] = {}
        self._order: dict[int, int] = {}
        self.plan_id = 0
        self.prefill_budget_tokens = 0
        self._max_batch = 0

    def offer(self, plan: Plan | None) -> None:
        """Note the newest plan (None: run nothing). Evictions of a plan that is overtaken still count."""
        self._offered, self._has_offer = plan, True
        if plan is not None:
            self._pending_evictions.update(dict.fromkeys(plan.evict))

    def adopt(self) -> Iterable[int]:
        """Make the newest plan the one in force; returns the attempts to evict now."""
        evict, self._pending_evictions = self._pending_evictions, {}
        if not self._has_offer:
            return evict
        plan, self._offered, self._has_offer = self._offered, None, False
        if plan is None:
            self._order = {}
            return evict
        self._order = dict(
            zip(plan.attempt_keys, plan.token_limits or [0] * len(plan.attempt_keys), strict=True)
        )
        self.plan_id = plan.plan_id
        self.prefill_budget_tokens = plan.prefill_budget_tokens
        self._max_batch = plan.max_batch
        return evict

    def select(
        self, attempts: Mapping[int, Attempt], engine_max_batch: int, chunk_tokens: int
    ) -> list[Attempt]:
        """The first runnable attempts of the order, at most a batch of them."""
        room = min(self._max_batch or engine_max_batch, engine_max_batch)
        chosen: list[Attempt] = []
        dead: list[int] = []
        for key, token_limit in self._order.items():
            if len(chosen) == room:
                break
            attempt = attempts.get(key)
            if attempt is None:
                continue
            if attempt.ended is not None:
                dead.append(key)
                continue
            attempt.token_limit = token_limit
            if attempt.runnable(chunk_tokens):
                chosen.append(attempt)
        if len(dead) > _PRUNE_AFTER:
            for key in dead:
                del self._order[key]
        return chosen

    def rank_of(self) -> dict[int, int]:
        """Place of each listed attempt, 0 the most wanted."""
        return {key: place for place, key in enumerate(self._order)}

"""The step loop of a simulated engine, as timers: choose a step, wait out its time, let its effects appear.

A run set that only decodes becomes a cohort, whose steps are a handful of array operations; any event dissolves it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from paceline_core.engines.profile import Profile
from paceline_executor.contract import (
    AttemptEnded,
    AttemptState,
    KvUse,
    Plan,
    Progress,
    StepReport,
    TokenColumns,
)
from paceline_executor.outbox import Outbox
from paceline_executor.simulated.attempt import Attempt
from paceline_executor.simulated.config import SimulatedConfig
from paceline_executor.simulated.driver import Driver
from paceline_executor.simulated.language import Language
from paceline_executor.simulated.memory import KvMemory
from paceline_executor.simulated.step import NO_TOKENS, Cohort, Step, carry_out, choose, cohort_of, pack
from paceline_executor.simulated.table import AttemptTable

_MAX_CATCH_UP_STEPS = 16
_MAX_LAG_S = 0.25


class StepLoop:
    """Runs the newest plan. Every method is called under the engine's lock, which timers take for themselves."""

    def __init__(
        self,
        config: SimulatedConfig,
        lock: AbstractContextManager[Any],
        driver: Driver,
        profile: Profile,
        language: Language,
        memory: KvMemory,
        outbox: Outbox,
        abort: Callable[[], None],
    ) -> None:
        self._config = config
        self._lock = lock
        self._driver = driver
        self._profile = profile
        self._language = language
        self._memory = memory
        self._outbox = outbox
        self._abort = abort
        self.table: AttemptTable
        """Set before the first plan."""
        self._plan: Plan | None = None
        self._order: list[Attempt] = []
        self._evictions: set[int] = set()
        self._stale = True
        """True when plan or table changed since the order was made."""
        self._again = True
        """True when the next step must be chosen anew."""
        self._step: Step | None = None
        self._cohort: Cohort | None = None
        self._run_set: frozenset[int] = frozenset()
        self._moved: dict[int, Attempt] = {}
        self._used_tokens = 0
        """KV tokens in use, kept while a cohort runs."""
        self._due_s = 0.0
        self._woken = False
        self._closed = False
        self.steps = 0
        """Steps since the start."""
        self.counters: Counter[str] = Counter()
        """What happened so far, by name."""

    def set_plan(self, plan: Plan | None) -> None:
        """Replace the plan (None: run nothing). Evictions of a plan that is overtaken still count."""
        self._plan = plan
        if plan is not None:
            self._evictions.update(plan.evict)
        self.touch()

    def forget(self, attempt: Attempt) -> None:
        """An attempt has ended: nothing more is said of its progress."""
        self._moved.pop(attempt.key, None)

    def close(self) -> None:
        """Do nothing any more."""
        self._closed = True

    def touch(self) -> None:
        """Something changed: bring attempts up to date, choose the next step anew, wake up if asleep."""
        self.settle()
        self._stale = self._again = True
        if self._step is None and not self._woken:
            self._woken = True
            self._driver.call_at(self._driver.now_s(), self._on_wake)

    def settle(self) -> None:
        """Bring the attempts of a cohort up to date."""
        if self._cohort is not None:
            self._cohort.settle()

    def _on_wake(self) -> None:
        with self._lock:
            self._woken = False
            if self._step is None and not self._closed:
                self._due_s = self._driver.now_s()
                self._begin_and_wait()

    def _on_due(self) -> None:
        with self._lock:
            if not self._closed:
                self._finish()
                self._begin_and_wait()

    def _begin_and_wait(self) -> None:
        """Begin steps until one ends in the future. A late timer is made up for, a very late one is not."""
        for _ in range(_MAX_CATCH_UP_STEPS):
            now_s = self._driver.now_s()
            if now_s - self._due_s > _MAX_LAG_S:
                self.counters["late_steps"] += 1
                self._due_s = now_s
            duration_ms = self._begin()
            if duration_ms is None:
                return
            self._due_s += duration_ms / 1e3
            if self._due_s > now_s:
                break
            self._finish()
        else:
            # Let others have the loop; the step below is the first of the next turn.
            duration_ms = self._begin()
            if duration_ms is None:
                return
            self._due_s += duration_ms / 1e3
        self._driver.call_at(self._due_s, self._on_due)

    def _begin(self) -> float | None:
        """Choose the step that starts now: its duration, or None if there is nothing to do."""
        cohort = self._cohort
        if cohort is not None and not self._again and cohort.steps_left > 0 and self._step is not None:
            self._step.decode_context_tokens = cohort.context_tokens
            self._step.decode_ms = self._profile.decode_ms(len(cohort.attempts), cohort.context_tokens)
            self._step.total_ms = self._step.decode_ms
            return self._step.total_ms
        self.settle()
        self._cohort = None
        self._again = False
        if self._stale:
            self._stale = False
            self._adopt_plan()
        plan = self._plan
        step = None
        if plan is not None:
            step = choose(
                self._order,
                plan_id=plan.plan_id,
                max_batch=min(plan.max_batch or self._config.max_batch, self._config.max_batch),
                prefill_budget_tokens=plan.prefill_budget_tokens or self._config.prefill_budget_tokens,
                chunk_tokens=self._config.chunk_tokens,
                memory=self._memory,
                profile=self._profile,
                previous=self._run_set,
            )
        self._step = step
        self._mark_run_set([] if step is None else step.attempts)
        if step is None:
            if self._moved or self._memory.deviations:
                self._report(
                    Step(0 if plan is None else plan.plan_id), NO_TOKENS, self._memory.use(self.table.live)
                )
            return None
        if any(attempt.poisoned for attempt in step.decodes):
            self._abort()
        self._cohort = cohort_of(step, self._memory, self._language)
        self._used_tokens = self._memory.used_tokens
        return step.total_ms

    def _adopt_plan(self) -> None:
        for key in self._evictions:
            attempt = self.table.get(key)
            if attempt is not None and attempt.resident:
                self._memory.evict(attempt)
        self._evictions.clear()
        plan = self._plan
        if plan is None:
            self._order = []
            return
        limits = plan.token_limits or (0,) * len(plan.attempt_keys)
        self._order = []
        for key, limit in zip(plan.attempt_keys, limits, strict=True):
            attempt = self.table.get(key)
            if attempt is not None and attempt.ended is None:
                attempt.token_limit = limit
                self._order.append(attempt)

    def _mark_run_set(self, run_set: list[Attempt]) -> None:
        for evicted in self._memory.evicted:
            self._moved[evicted.key] = evicted
        self._memory.evicted.clear()
        for complete in self._memory.complete:
            complete.state = AttemptState.PAUSED
            self._moved[complete.key] = complete
        self._memory.complete.clear()
        keys = frozenset(attempt.key for attempt in run_set)
        if keys == self._run_set and all(attempt.state is AttemptState.RUNNING for attempt in run_set):
            return
        for key in self._run_set - keys:
            left = self.table.get(key)
            if left is not None and left.state is AttemptState.RUNNING:
                left.state = AttemptState.PAUSED
                self._moved[key] = left
        for attempt in run_set:
            if attempt.state is not AttemptState.RUNNING:
                attempt.state = AttemptState.RUNNING
                self._moved[attempt.key] = attempt
        self._run_set = keys

    def _finish(self) -> None:
        """The effects of the step whose time is over."""
        step = self._step
        if step is None:
            return
        self.steps += 1
        cohort = self._cohort
        if cohort is not None and not self._again and cohort.steps_left > 0:
            tokens = cohort.step()
            used = self._used_tokens + len(cohort.attempts)
            self._used_tokens = used
            self._report(step, tokens, KvUse(used, 0, self._memory.residents, self.table.live))
            return
        self.settle()
        self._cohort = None
        made, advanced = carry_out(step)
        tokens = pack([(attempt, attempt.published) for attempt in made])
        ends: list[AttemptEnded] = []
        for attempt in made:
            attempt.published = attempt.answer.count
            if attempt.answer.ended is not None:
                ends.append(self.table.end_quietly(attempt, attempt.answer.ended))
        for attempt in (*(attempt for attempt, _, _ in step.prefills), *advanced):
            if attempt.ended is None:
                self._moved[attempt.key] = attempt
        self._again = True
        self._report(step, tokens, self._memory.use(self.table.live), ends)

    def _report(self, step: Step, tokens: TokenColumns, kv: KvUse, ends: Sequence[AttemptEnded] = ()) -> None:
        moved, self._moved = self._moved, {}
        deviations = self._memory.take_deviations() if self._memory.deviations else ()
        self._outbox.put(
            StepReport(
                step=self.steps,
                plan_id=step.plan_id,
                step_ms=step.total_ms,
                decode_ms=step.decode_ms,
                prefill_ms=sum(call.ms for _, _, call in step.prefills),
                decode_batch=len(step.decodes),
                decode_context_tokens=step.decode_context_tokens,
                prefill_calls=tuple(call for _, _, call in step.prefills),
                tokens=tokens,
                progress=tuple(Progress(a.key, a.kv_tokens, a.state) for a in moved.values())
                if moved
                else (),
                kv=kv,
                deviations=deviations,
            ),
            *ends,
        )

"""The simulated engine: attempts and plans in, events out, steps that take the time a model says.

A step is chosen at a boundary, its end is a timer, and its effects appear when the timer fires. A run set that only
decodes becomes a cohort, whose steps are a handful of array operations; any event dissolves it.
"""

import logging
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

from paceline_executor.contract import (
    AttemptAccepted,
    AttemptEnded,
    AttemptSpec,
    AttemptState,
    Capabilities,
    Deviation,
    EndReason,
    EngineError,
    ExportedState,
    Ids,
    KvUse,
    LiveAttempt,
    PauseMode,
    Plan,
    PlanGranularity,
    PrefixReuse,
    Progress,
    ReplayMode,
    Republished,
    StateRequirements,
    StateTicket,
    StepReport,
    TokenColumns,
)
from paceline_executor.outbox import Outbox
from paceline_executor.simulated.answer import force, script_of
from paceline_executor.simulated.attempt import Attempt
from paceline_executor.simulated.config import SimulatedConfig
from paceline_executor.simulated.driver import Driver
from paceline_executor.simulated.language import language
from paceline_executor.simulated.memory import KvMemory
from paceline_executor.simulated.profile import load_profile
from paceline_executor.simulated.state import SimulatedState
from paceline_executor.simulated.step import NO_TOKENS, Cohort, Step, carry_out, choose, cohort_of, pack
from paceline_executor.tickets import TicketBook
from paceline_executor.validation import check_spec, prompt_ids_of

_log = logging.getLogger(__name__)
_BUILD = "simulated-1"
_KV_TYPE = "none"
_MAX_CATCH_UP_STEPS = 16
_MAX_LAG_S = 0.25


class SimulatedEngine:
    """Implements `paceline_executor.contract.Engine`. Nothing in it blocks except `drain`."""

    def __init__(
        self, config: SimulatedConfig, driver: Driver, *, abort: Callable[[], None] = os.abort
    ) -> None:
        self._config = config
        self._driver = driver
        self._abort = abort
        profile = load_profile(config.profile)
        self._device = profile.device
        self._profile = profile.scaled(config.time_scale * config.speed_factor)
        self._language = language(config.seed)
        self._memory = KvMemory(config.max_resident, config.kv_capacity_tokens or profile.kv_capacity_tokens)
        self._context_tokens = min(config.context_tokens, self._memory.capacity_tokens)
        self._kv_bytes_per_token = profile.kv_bytes_per_token
        self._outbox = Outbox(config.event_capacity)
        self._tickets = TicketBook(config.max_tickets, config.ticket_ttl_s, driver.now_s)
        self._changed = threading.Condition(threading.RLock())
        self._attempts: dict[int, Attempt] = {}
        self._tombstones: OrderedDict[int, None] = OrderedDict()
        self._plan: Plan | None = None
        self._order: list[Attempt] = []
        self._evictions: set[int] = set()
        self._dirty = True
        """True when the next step may be another one than the last: an event came, or the cohort ran out."""
        self._step: Step | None = None
        self._cohort: Cohort | None = None
        self._run_set: frozenset[int] = frozenset()
        self._moved: dict[int, Attempt] = {}
        self._used_tokens = 0
        """KV tokens in use, kept while a cohort runs."""
        self._due_s = 0.0
        self._woken = False
        self._steps = 0
        self._draining = self._closed = False
        self.counters: Counter[str] = Counter()
        """What happened so far, by name."""
        self._capabilities = self._describe()

    # --- asked from any thread -------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """What the engine is and can do; constant."""
        return self._capabilities

    @property
    def events(self) -> Outbox:
        """Where everything the engine has to say comes out."""
        return self._outbox

    def add(self, spec: AttemptSpec, state: bytes | None = None) -> None:
        """Take an attempt in, see `contract.Engine.add`."""
        with self._changed:
            if self._repeat_acceptance(spec.attempt_key):
                return
            try:
                if self._draining or self._closed:
                    raise EngineError("DRAINING", "the engine takes no new attempts", retryable=True)
                if self._live_count() >= self._config.max_live:
                    raise EngineError(
                        "QUEUE_FULL", f"{self._config.max_live} attempts are live", retryable=True
                    )
                check_spec(spec, self._language.vocab_size)
                prompt_ids = prompt_ids_of(spec, self._language, self._context_tokens)
            except EngineError as error:
                self._reject(spec.attempt_key, error)
                return
            self._insert(self._new_attempt(spec, prompt_ids, state))

    def cancel(self, attempt_key: int) -> None:
        """End an attempt at once."""
        with self._changed:
            attempt = self._attempts.get(attempt_key)
            if attempt is not None and attempt.ended is None:
                self._touch()
                self._bury(attempt, attempt.end(EndReason.CANCELLED, self._driver.now_s()))

    def release(self, attempt_key: int) -> None:
        """Forget an ended attempt."""
        with self._changed:
            if attempt_key in self._tombstones:
                del self._tombstones[attempt_key], self._attempts[attempt_key]

    def republish(self, attempt_key: int, from_index: int) -> None:
        """Give out tokens from an index on again, and the end if there was one."""
        with self._changed:
            self._settle()
            attempt = self._attempts.get(attempt_key)
            if attempt is None:
                self.counters["republish_unknown"] += 1
                return
            self._outbox.put(Republished(pack([(attempt, from_index)])))
            if attempt.ended is not None:
                self._outbox.put(attempt.ended)

    def extend_forced(self, attempt_key: int, first_index: int, ids: Ids, *, final: bool) -> None:
        """Further forced ids for an attempt that awaits them."""
        with self._changed:
            self._touch()
            attempt = self._attempts.get(attempt_key)
            if attempt is None or attempt.ended is not None:
                self.counters["forced_ignored"] += 1
                return
            overlap = min(attempt.answer.count - first_index, len(ids))
            known, _, _ = attempt.answer.slice(min(first_index, attempt.answer.count))
            agrees = overlap >= 0 and known[:overlap].tolist() == ids[:overlap].tolist()
            if (
                not attempt.awaiting
                or not agrees
                or not bool(((ids >= 0) & (ids < self._language.vocab_size)).all())
            ):
                message = "forced ids leave a gap, contradict known ones or came too late"
                self._fail(attempt, "FORCED_IDS_MISMATCH", message)
                return
            attempt.answer = force(attempt.answer, ids[overlap:])
            attempt.published = attempt.answer.count
            attempt.awaiting = not final
            self._end_if_over(attempt)

    def set_plan(self, plan: Plan) -> None:
        """Replace the plan; adopted at the next step boundary."""
        if plan.token_limits and len(plan.token_limits) != len(plan.attempt_keys):
            raise ValueError("token_limits must be as long as attempt_keys, or empty")
        with self._changed:
            self._plan = plan
            self._evictions.update(plan.evict)
            self._touch()

    def clear_plan(self) -> None:
        """Stop running after the current step; everything is kept."""
        with self._changed:
            self._plan = None
            self._touch()

    def live_table(self) -> list[LiveAttempt]:
        """Every attempt it knows, tombstones included."""
        with self._changed:
            self._settle()
            self._sweep_tombstones()
            return [
                LiveAttempt(a.spec, a.state, a.prompt_ids, a.kv_tokens, a.answer.count, a.ended)
                for a in self._attempts.values()
            ]

    def kv_use(self) -> KvUse:
        """KV use now."""
        with self._changed:
            self._settle()
            return self._memory.use(self._live_count())

    def issue_ticket(self, attempt_key: int) -> StateTicket:
        """A ticket for an attempt's KV; raises `EngineError` UNKNOWN_ATTEMPT or NO_STATE."""
        with self._changed:
            self._settle()
            attempt = self._attempts.get(attempt_key)
            if attempt is None:
                raise EngineError("UNKNOWN_ATTEMPT", f"no attempt {attempt_key} here")
            if not attempt.kv_tokens:
                raise EngineError("NO_STATE", f"attempt {attempt_key} has no KV here")
            token = self._tickets.issue(attempt_key)
            return StateTicket(
                attempt_key, token, attempt.kv_tokens, attempt.kv_tokens * self._kv_bytes_per_token
            )

    def export_state(self, token: str, requirements: StateRequirements) -> ExportedState:
        """Redeem a ticket. The state is a label and ids: there is no KV to copy."""
        with self._changed:
            self._settle()
            attempt = self._attempts.get(self._tickets.redeem(token))
            own = self._capabilities
            theirs = (requirements.build, requirements.model_hash, requirements.kv_type)
            if theirs != (own.build, own.model_hash, own.kv_type):
                raise EngineError("STATE_INCOMPATIBLE", "build, model or KV type differ between the engines")
            if attempt is None or not attempt.kv_tokens:
                raise EngineError("NO_STATE", "the attempt of this ticket has no KV any more")
            if attempt.kv_tokens > requirements.max_context_tokens:
                raise EngineError(
                    "STATE_INCOMPATIBLE", "the state is longer than the context of the engine that pulls"
                )
            self.counters["exports"] += 1
            state = SimulatedState.of(attempt, own.model_hash)
            return ExportedState(attempt.kv_tokens, state.ids, attempt.prompt_tokens, state.pack())

    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of texts."""
        return [self._language.tokenize_prompt(text) for text in texts]

    def drain(self, timeout_s: float) -> tuple[int, int]:
        """Refuse new attempts, wait for the live ones, cancel the rest. Not from the driver's thread: it blocks."""
        with self._changed:
            self._draining = True
            before = self._live_count()
            self._changed.wait_for(lambda: self._live_count() == 0, timeout_s)
            left = [attempt.key for attempt in self._attempts.values() if attempt.ended is None]
            for key in left:
                self.cancel(key)
            return before - len(left), len(left)

    def close(self) -> None:
        """Stop; nothing is reported from here on."""
        with self._changed:
            self._closed = True

    # --- attempts, under the lock ----------------------------------------------------------------------------

    def _new_attempt(self, spec: AttemptSpec, prompt_ids: Ids, state: bytes | None) -> Attempt:
        config = self._config
        max_outputs = min(spec.max_tokens, self._context_tokens - len(prompt_ids))
        script = script_of(
            spec, prompt_ids, self._language, max_outputs, config.output_median_tokens, config.output_sigma
        )
        marker = config.fault_abort_marker
        poisoned = bool(marker) and str(marker).encode() in self._language.text_of(prompt_ids)
        attempt = Attempt(spec, prompt_ids, script, poisoned=poisoned)
        if state is not None:
            try:
                pulled = SimulatedState.unpack(state)
                attempt.imported_tokens = pulled.usable_tokens(attempt, self._capabilities.model_hash)
                self.counters["imports"] += 1
            except EngineError as error:
                self.counters["imports_refused"] += 1
                _log.warning("attempt %d: %s; replaying", attempt.key, error)
        return attempt

    def _insert(self, attempt: Attempt) -> None:
        self._attempts[attempt.key] = attempt
        self._outbox.put(AttemptAccepted(attempt.key, attempt.prompt_ids, 0))
        self._end_if_over(attempt)
        self._touch()

    def _end_if_over(self, attempt: Attempt) -> None:
        """End an attempt whose forced ids already held the end."""
        if attempt.answer.ended is not None:
            self._bury(attempt, attempt.end(attempt.answer.ended, self._driver.now_s()))

    def _repeat_acceptance(self, attempt_key: int) -> bool:
        attempt = self._attempts.get(attempt_key)
        if attempt is None:
            return False
        self._outbox.put(AttemptAccepted(attempt_key, attempt.prompt_ids, 0))
        if attempt.ended is not None:
            self._outbox.put(attempt.ended)
        return True

    def _reject(self, attempt_key: int, error: EngineError) -> None:
        self.counters["rejected"] += 1
        self._outbox.put(
            AttemptEnded(
                attempt_key, EndReason.REJECTED,
                error_reason=error.reason, message=error.message, retryable=error.retryable,
            )
        )  # fmt: skip

    def _fail(self, attempt: Attempt, reason: str, message: str) -> None:
        now_s = self._driver.now_s()
        self._bury(attempt, attempt.end(EndReason.FAILED, now_s, error_reason=reason, message=message))

    def _bury(self, attempt: Attempt, ended: AttemptEnded) -> None:
        self._entomb(attempt)
        self._outbox.put(ended)

    def _entomb(self, attempt: Attempt) -> None:
        self._memory.leave(attempt)
        self._moved.pop(attempt.key, None)
        self._tombstones[attempt.key] = None
        self._sweep_tombstones()
        self._changed.notify_all()

    def _sweep_tombstones(self) -> None:
        oldest_kept_s = self._driver.now_s() - self._config.tombstone_ttl_s
        while self._tombstones:
            key = next(iter(self._tombstones))
            expired = self._attempts[key].ended_at_s < oldest_kept_s
            if not expired and len(self._tombstones) <= self._config.max_tombstones:
                return
            del self._tombstones[key], self._attempts[key]
            self.counters["tombstones_dropped"] += 1

    def _live_count(self) -> int:
        return len(self._attempts) - len(self._tombstones)

    # --- steps, under the lock -------------------------------------------------------------------------------

    def _touch(self) -> None:
        """Something changed: dissolve the cohort, and wake the engine if it sleeps."""
        self._settle()
        self._dirty = True
        if self._step is None and not self._woken:
            self._woken = True
            self._driver.call_at(self._driver.now_s(), self._on_wake)

    def _settle(self) -> None:
        if self._cohort is not None:
            self._cohort.settle()

    def _on_wake(self) -> None:
        with self._changed:
            self._woken = False
            if self._step is None and not self._closed:
                self._due_s = self._driver.now_s()
                self._begin_and_wait()

    def _on_due(self) -> None:
        with self._changed:
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
        if cohort is not None and not self._dirty and cohort.steps_left > 0 and self._step is not None:
            self._step.decode_context_tokens = cohort.context_tokens
            self._step.decode_ms = self._profile.decode_ms(len(cohort.attempts), cohort.context_tokens)
            self._step.total_ms = self._step.decode_ms
            return self._step.total_ms
        self._settle()
        self._cohort = None
        self._dirty = False
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
                    Step(0 if plan is None else plan.plan_id), NO_TOKENS, self._memory.use(self._live_count())
                )
            return None
        if any(attempt.poisoned for attempt in step.decodes):
            self._abort()
        self._cohort = cohort_of(step, self._memory, self._language)
        self._used_tokens = self._memory.used_tokens
        return step.total_ms

    def _adopt_plan(self) -> None:
        for key in self._evictions:
            attempt = self._attempts.get(key)
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
            attempt = self._attempts.get(key)
            if attempt is not None and attempt.ended is None:
                attempt.token_limit = limit
                self._order.append(attempt)

    def _mark_run_set(self, run_set: list[Attempt]) -> None:
        for evicted in self._memory.evicted:
            self._moved[evicted.key] = evicted
        self._memory.evicted.clear()
        keys = frozenset(attempt.key for attempt in run_set)
        if keys == self._run_set and all(attempt.state is AttemptState.RUNNING for attempt in run_set):
            return
        for key in self._run_set - keys:
            left = self._attempts.get(key)
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
        self._steps += 1
        cohort = self._cohort
        if cohort is not None and not self._dirty and cohort.steps_left > 0:
            tokens = cohort.step()
            used = self._used_tokens + len(cohort.attempts)
            self._used_tokens = used
            self._report(step, tokens, KvUse(used, 0, self._memory.residents, self._live_count()))
            return
        self._settle()
        self._cohort = None
        made, advanced = carry_out(step)
        tokens = pack([(attempt, attempt.published) for attempt in made])
        ends: list[AttemptEnded] = []
        for attempt in made:
            attempt.published = attempt.answer.count
            if attempt.answer.ended is not None:
                ends.append(attempt.end(attempt.answer.ended, self._driver.now_s()))
                self._entomb(attempt)
        for attempt in (*(attempt for attempt, _, _ in step.prefills), *advanced):
            if attempt.ended is None:
                self._moved[attempt.key] = attempt
        self._dirty = True
        self._report(step, tokens, self._memory.use(self._live_count()), ends)

    def _report(self, step: Step, tokens: TokenColumns, kv: KvUse, ends: Sequence[AttemptEnded] = ()) -> None:
        moved, self._moved = self._moved, {}
        deviations: tuple[Deviation, ...] = self._memory.take_deviations() if self._memory.deviations else ()
        self._outbox.put(
            StepReport(
                step=self._steps,
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

    def _describe(self) -> Capabilities:
        config, tongue = self._config, self._language
        return Capabilities(
            model=config.model_name,
            model_hash=f"{tongue.tokenizer_id}/{config.seed}/{config.output_median_tokens:g}/{config.output_sigma:g}",
            tokenizer_id=tongue.tokenizer_id,
            chat_template="",
            bos_token="",
            eos_token="",
            backend="simulated",
            build=_BUILD,
            device=self._device,
            speed_factor=config.speed_factor,
            plan_granularity=PlanGranularity.ITERATION,
            pause_modes=(PauseMode.KEEP_KV, PauseMode.RECOMPUTE),
            run_set_change_cost_ms=self._profile.run_set_change_cost_ms,
            max_batch=config.max_batch,
            max_resident=config.max_resident,
            max_context_tokens=self._context_tokens,
            kv_capacity_tokens=self._memory.capacity_tokens,
            kv_bytes_per_token=self._kv_bytes_per_token,
            kv_type=_KV_TYPE,
            prefill_chunk_tokens=config.chunk_tokens,
            kv_transfer=True,
            prefix_reuse=PrefixReuse.NONE,
            replay_modes=(ReplayMode.EXACT, ReplayMode.FAST),
            vocab_size=tongue.vocab_size,
        )

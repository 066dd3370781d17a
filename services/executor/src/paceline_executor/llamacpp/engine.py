"""The llama.cpp engine: attempts and plans in, events out, a step loop in a thread of its own.

The loop: at each step boundary run what was asked, adopt the newest plan, take the first runnable attempts of its
order, step, publish. With nothing to run it sleeps on a condition that every call wakes. One lock guards what the
loop shares with callers; it is never held while the model computes.
"""

import logging
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from paceline_executor.contract import (
    ENGINE_FAILED,
    AttemptAccepted,
    AttemptEnded,
    AttemptSpec,
    AttemptState,
    Capabilities,
    Deviation,
    DeviationReason,
    EndReason,
    EngineError,
    ExportedState,
    Ids,
    KvUse,
    LiveAttempt,
    Plan,
    Progress,
    Republished,
    StateRequirements,
    StateTicket,
    StepReport,
)
from paceline_executor.llamacpp.attempt import Attempt
from paceline_executor.llamacpp.columns import pack_tokens
from paceline_executor.llamacpp.config import LlamaCppConfig
from paceline_executor.llamacpp.context import Context, ContextShape, DecodeError
from paceline_executor.llamacpp.describe import describe
from paceline_executor.llamacpp.exchange import StateExchange
from paceline_executor.llamacpp.model import Model
from paceline_executor.llamacpp.plan_book import PlanBook
from paceline_executor.llamacpp.prefix import PrefixCache
from paceline_executor.llamacpp.residency import Residency
from paceline_executor.llamacpp.step import PhaseResult, Stepper
from paceline_executor.outbox import Outbox
from paceline_executor.tickets import TicketBook
from paceline_executor.validation import check_spec, prompt_ids_of

_log = logging.getLogger(__name__)
_EXPORT_TIMEOUT_S = 30.0
_TOMBSTONE_SWEEP_S = 5.0


class LlamaCppEngine:
    """Implements `paceline_executor.contract.Engine`. Loads the model and starts its thread when constructed."""

    def __init__(self, config: LlamaCppConfig) -> None:
        self._config = config
        self._model = Model(config.model_path)
        shape = ContextShape(config.max_resident, config.context_tokens, config.chunk_tokens, config.threads)
        self._context = Context(self._model, shape)
        self.counters: Counter[str] = Counter()
        """What happened so far, by name: evictions, slot_moves, imports, prefix_tokens_reused, ..."""
        self._prefixes = PrefixCache(config.prefix_cache_bytes)
        self._residency = Residency(self._context, config.prefix_reuse, self._prefixes, self.counters)
        self._stepper = Stepper(self._context, self._residency)
        self._outbox = Outbox(config.event_capacity)
        self._tickets = TicketBook(config.max_tickets, config.ticket_ttl_s, time.monotonic)
        self._plans = PlanBook()
        self._wake = threading.Condition()
        self._stopped = threading.Event()
        self._attempts: dict[int, Attempt] = {}
        self._tombstones: OrderedDict[int, None] = OrderedDict()
        self._commands: deque[Callable[[], None]] = deque()
        self._run_set: list[Attempt] = []
        self._moved_states: dict[int, Attempt] = {}
        self._deviations: list[Deviation] = []
        self._step = 0
        self._draining = self._closing = False
        self._capabilities = describe(config, self._model, self._context)
        self._exchange = StateExchange(self._capabilities, self._context, self.counters)
        self._thread = threading.Thread(target=self._run, name="llamacpp-step-loop", daemon=True)
        self._thread.start()

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
        with self._wake:
            if self._repeat_acceptance(spec.attempt_key):
                return
        try:
            check_spec(spec, self._model.vocab_size)
            prompt_ids = prompt_ids_of(spec, self._model, self._config.context_tokens)
        except EngineError as error:
            self._reject(spec, error)
            return
        attempt = Attempt(
            spec,
            prompt_ids,
            context_tokens=self._config.context_tokens,
            end_token_ids=self._model.end_token_ids,
            piece_of=self._model.piece,
        )
        attempt.imported = None if state is None else self._exchange.readable(attempt, state)
        if marker := self._config.fault_abort_marker:
            attempt.poisoned = marker in (spec.prompt_text or self._model.detokenize(prompt_ids))
        with self._wake:
            # Another thread may have added it while this one tokenised.
            if self._repeat_acceptance(spec.attempt_key):
                return
            if self._closing or self._draining:
                refusal = EngineError("DRAINING", "the engine takes no new attempts", retryable=True)
            elif len(self._attempts) - len(self._tombstones) >= self._config.max_live:
                refusal = EngineError(
                    "QUEUE_FULL", f"{self._config.max_live} attempts are live", retryable=True
                )
            else:
                self._insert(attempt)
                return
        self._reject(spec, refusal)

    def cancel(self, attempt_key: int) -> None:
        """End an attempt at the next step boundary."""
        self._command(lambda: self._cancel(attempt_key))

    def release(self, attempt_key: int) -> None:
        """Forget an ended attempt."""
        with self._wake:
            if attempt_key in self._tombstones:
                del self._tombstones[attempt_key], self._attempts[attempt_key]

    def republish(self, attempt_key: int, from_index: int) -> None:
        """Give out tokens from an index on again, and the end if there was one."""
        with self._wake:
            attempt = self._attempts.get(attempt_key)
            if attempt is None:
                self.counters["republish_unknown"] += 1
                return
            self._outbox.put(Republished(pack_tokens([(attempt, from_index)])))
            if attempt.ended is not None:
                self._outbox.put(attempt.ended)

    def extend_forced(self, attempt_key: int, first_index: int, ids: Ids, *, final: bool) -> None:
        """Further forced ids, taken at the next step boundary."""
        self._command(lambda: self._extend_forced(attempt_key, first_index, ids, final))

    def set_plan(self, plan: Plan) -> None:
        """Replace the plan; adopted at the next step boundary."""
        if plan.token_limits and len(plan.token_limits) != len(plan.attempt_keys):
            raise ValueError("token_limits must be as long as attempt_keys, or empty")
        with self._wake:
            self._plans.offer(plan)
            self._wake.notify_all()

    def clear_plan(self) -> None:
        """Stop running after the current step; everything is kept."""
        with self._wake:
            self._plans.offer(None)
            self._wake.notify_all()

    def live_table(self) -> list[LiveAttempt]:
        """Every attempt it knows, tombstones included."""
        with self._wake:
            self._sweep_tombstones()
            return [
                LiveAttempt(
                    attempt.spec,
                    attempt.state,
                    attempt.prompt_ids,
                    attempt.kv_tokens,
                    len(attempt.output_ids),
                    attempt.ended,
                )
                for attempt in self._attempts.values()
            ]

    def kv_use(self) -> KvUse:
        """KV memory now; counts may be a step old."""
        with self._wake:
            return self._kv_use()

    def issue_ticket(self, attempt_key: int) -> StateTicket:
        """A ticket for an attempt's KV; raises `EngineError` UNKNOWN_ATTEMPT or NO_STATE."""
        with self._wake:
            attempt = self._attempts.get(attempt_key)
            if attempt is None:
                raise EngineError("UNKNOWN_ATTEMPT", f"no attempt {attempt_key} here")
            positions = attempt.kv_tokens
            if attempt.slot is None or positions == 0:
                raise EngineError("NO_STATE", f"attempt {attempt_key} has no KV here")
            token = self._tickets.issue(attempt_key)
        return StateTicket(attempt_key, token, positions, positions * self._capabilities.kv_bytes_per_token)

    def export_state(self, token: str, requirements: StateRequirements) -> ExportedState:
        """Redeem a ticket; blocks until the next step boundary."""
        future: Future[ExportedState] = Future()

        def export() -> None:
            try:
                future.set_result(self._export(token, requirements))
            except (EngineError, DecodeError) as error:
                future.set_exception(error)

        self._command(export)
        try:
            return future.result(_EXPORT_TIMEOUT_S)
        except TimeoutError as error:
            raise EngineError("ENGINE_BUSY", "no step boundary in time", retryable=True) from error

    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of texts, as prompts are tokenised."""
        return [self._model.tokenize_prompt(text) for text in texts]

    def drain(self, timeout_s: float) -> tuple[int, int]:
        """Refuse new attempts, wait for the live ones, cancel the rest: (completed, cancelled)."""
        with self._wake:
            self._draining = True
            before = self._live_count()
            self._wake.wait_for(lambda: self._live_count() == 0, timeout_s)
            left = [attempt.key for attempt in self._attempts.values() if attempt.ended is None]
        for key in left:
            self.cancel(key)
        with self._wake:
            self._wake.wait_for(lambda: self._live_count() == 0, _EXPORT_TIMEOUT_S)
        return before - len(left), len(left)

    def close(self) -> None:
        """Stop after the current step and free model and KV. Live attempts are dropped without an event."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._stopped.set()
        self._thread.join()
        self._prefixes.clear()
        self._context.close()
        self._model.close()

    # --- under the lock --------------------------------------------------------------------------------------

    def _command(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify_all()

    def _insert(self, attempt: Attempt) -> None:
        self._attempts[attempt.key] = attempt
        cached = self._residency.shareable(attempt).tokens
        self._outbox.put(AttemptAccepted(attempt.key, attempt.prompt_ids, cached))
        if attempt.ended is not None:
            # The forced ids already held the end: nothing is left to do.
            self._bury(attempt, attempt.ended)
        self._wake.notify_all()

    def _repeat_acceptance(self, attempt_key: int) -> bool:
        attempt = self._attempts.get(attempt_key)
        if attempt is None:
            return False
        self.counters["repeated_adds"] += 1
        self._outbox.put(AttemptAccepted(attempt_key, attempt.prompt_ids, 0))
        if attempt.ended is not None:
            self._outbox.put(attempt.ended)
        return True

    def _reject(self, spec: AttemptSpec, error: EngineError) -> None:
        self.counters["rejected"] += 1
        self._outbox.put(
            AttemptEnded(
                spec.attempt_key,
                EndReason.REJECTED,
                error_reason=error.reason,
                message=error.message,
                retryable=error.retryable,
            )
        )

    def _bury(self, attempt: Attempt, ended: AttemptEnded) -> None:
        """Free what an ended attempt held, keep its ids and text as a tombstone, say that it ended."""
        self._residency.leave(attempt)
        self._tombstones[attempt.key] = None
        self._sweep_tombstones()
        self._outbox.put(ended)
        self._wake.notify_all()

    def _sweep_tombstones(self) -> None:
        oldest_kept_s = time.monotonic() - self._config.tombstone_ttl_s
        while self._tombstones:
            key = next(iter(self._tombstones))
            expired = self._attempts[key].ended_at_s < oldest_kept_s
            if not expired and len(self._tombstones) <= self._config.max_tombstones:
                return
            del self._tombstones[key], self._attempts[key]
            self.counters["tombstones_dropped"] += 1

    def _live_count(self) -> int:
        return len(self._attempts) - len(self._tombstones)

    def _cancel(self, attempt_key: int) -> None:
        attempt = self._attempts.get(attempt_key)
        if attempt is not None and attempt.ended is None:
            self._bury(attempt, attempt.end(EndReason.CANCELLED))

    def _fail(self, attempt: Attempt, reason: str, message: str) -> None:
        if attempt.ended is None:
            self._bury(attempt, attempt.end(EndReason.FAILED, error_reason=reason, message=message))

    def _extend_forced(self, attempt_key: int, first_index: int, ids: Ids, final: bool) -> None:
        attempt = self._attempts.get(attempt_key)
        if attempt is None or attempt.ended is not None:
            self.counters["forced_ignored"] += 1
            return
        known = attempt.output_ids
        overlap = min(len(known) - first_index, len(ids))
        agrees = overlap >= 0 and known[first_index : first_index + overlap] == ids[:overlap].tolist()
        if agrees and overlap == len(ids) and not attempt.awaiting:
            # Said again, e.g. after a broken stream.
            self.counters["forced_repeated"] += 1
            return
        in_vocabulary = bool(((ids >= 0) & (ids < self._model.vocab_size)).all())
        if not attempt.awaiting or not agrees or not in_vocabulary:
            self._fail(
                attempt,
                "FORCED_IDS_MISMATCH",
                "forced ids leave a gap, contradict known ones or came too late",
            )
            return
        ended: AttemptEnded | None = None
        for token in ids[overlap:].tolist():
            if (ended := attempt.append(token)) is not None:
                break
        attempt.awaiting = not final
        if ended is not None:
            self._bury(attempt, ended)

    def _export(self, token: str, requirements: StateRequirements) -> ExportedState:
        return self._exchange.export(self._attempts.get(self._tickets.redeem(token)), requirements)

    # --- the loop --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (run_set := self._next_run_set()) is not None:
                self._run_step(run_set)
        finally:
            # A step that raises leaves KV and bookkeeping in doubt: nothing may run on. The thread's hook logs it.
            if not self._closing:
                self._die(f"the engine's step loop failed: {sys.exception()}")
            self._stopped.set()

    def _die(self, message: str) -> None:
        with self._wake:
            self._closing = True
            self.counters["fatal"] += 1
            self._residency.drop_all()
            for attempt in list(self._attempts.values()):
                self._fail(attempt, ENGINE_FAILED, message)

    @property
    def alive(self) -> bool:
        """False once the loop has ended, by `close` or by a failure."""
        return not self._stopped.is_set()

    def _next_run_set(self) -> list[Attempt] | None:
        """Wait at the step boundary until there is something to run; None to stop."""
        with self._wake:
            while True:
                while self._commands:
                    self._commands.popleft()()
                if self._closing:
                    return None
                self._adopt_plan()
                run_set = self._plans.select(
                    self._attempts, self._config.max_batch, self._config.chunk_tokens
                )
                self._mark_run_set(run_set)
                if run_set:
                    return run_set
                if self._moved_states or self._deviations:
                    self._put_report(PhaseResult(), PhaseResult(), 0.0)
                self._sweep_tombstones()
                self._wake.wait(_TOMBSTONE_SWEEP_S)

    def _adopt_plan(self) -> None:
        for key in self._plans.adopt():
            attempt = self._attempts.get(key)
            if attempt is not None and attempt.slot is not None:
                self._residency.evict(attempt)
                self._moved_states[key] = attempt

    def _mark_run_set(self, run_set: list[Attempt]) -> None:
        for attempt in run_set:
            if attempt.state is not AttemptState.RUNNING:
                attempt.state = AttemptState.RUNNING
                self._moved_states[attempt.key] = attempt
        for attempt in self._run_set:
            if attempt.state is AttemptState.RUNNING and attempt not in run_set:
                attempt.state = attempt.resting_state
                self._moved_states[attempt.key] = attempt
        self._run_set = run_set

    def _run_step(self, run_set: list[Attempt]) -> None:
        """One step; a phase that llama.cpp refuses fails its attempts, not the engine."""
        self._step += 1
        budget_tokens = self._plans.prefill_budget_tokens or self._config.prefill_budget_tokens
        try:
            prefill = self._stepper.prefill(run_set, budget_tokens, self._victim)
            if prefill.drawn:
                self._publish(prefill, PhaseResult())
                prefill = PhaseResult()
            decode = self._stepper.decode(run_set)
        except DecodeError as error:
            _log.exception("a step failed; its attempts end")
            with self._wake:
                for attempt in run_set:
                    # Its KV is not to be trusted, so none of it may reach the prefix cache.
                    self._residency.evict(attempt)
                    self._fail(attempt, "DECODE_FAILED", str(error))
            return
        if prefill.advanced or decode.decode_batch:
            self._publish(prefill, decode)

    def _publish(self, prefill: PhaseResult, decode: PhaseResult) -> None:
        elapsed_ms = (time.perf_counter() - prefill.started_s) * 1e3
        if self._config.speed_factor > 1.0:
            self._stopped.wait(elapsed_ms * (self._config.speed_factor - 1.0) / 1e3)
        with self._wake:
            self._put_report(prefill, decode, elapsed_ms)

    def _put_report(self, prefill: PhaseResult, decode: PhaseResult, elapsed_ms: float) -> None:
        """Append the drawn tokens, then put out one report and the ends."""
        factor = self._config.speed_factor
        rows: list[tuple[Attempt, int]] = []
        for attempt, token in (*prefill.drawn, *decode.drawn):
            rows.append((attempt, len(attempt.output_ids)))
            attempt.append(token)
        for attempt in (*prefill.advanced, *prefill.drawn_attempts, *decode.advanced):
            self._moved_states[attempt.key] = attempt
        ended = [(attempt, attempt.ended) for attempt, _ in rows if attempt.ended is not None]
        for attempt, _ in ended:
            self._residency.leave(attempt)
            self._tombstones[attempt.key] = None
        report = StepReport(
            step=self._step,
            plan_id=self._plans.plan_id,
            step_ms=elapsed_ms * factor,
            decode_ms=decode.decode_ms * factor,
            prefill_ms=sum(call.ms for call in prefill.prefill_calls) * factor,
            decode_batch=decode.decode_batch,
            decode_context_tokens=decode.decode_context_tokens,
            prefill_calls=tuple(call.stretched(factor) for call in prefill.prefill_calls),
            tokens=pack_tokens(rows),
            progress=tuple(
                Progress(attempt.key, attempt.kv_tokens, attempt.state)
                for attempt in self._moved_states.values()
                if attempt.ended is None
            ),
            kv=self._kv_use(),
            deviations=tuple(self._deviations),
            moved_tokens=decode.moved_tokens,
        )
        self._moved_states = {}
        self._deviations = []
        self._outbox.put(report, *(end for _, end in ended))
        if ended:
            self._sweep_tombstones()
            self._wake.notify_all()

    def _kv_use(self) -> KvUse:
        residency = self._residency
        return KvUse(
            residency.used_tokens, self._prefixes.tokens, len(residency.residents), self._live_count()
        )

    def _victim(self) -> Attempt:
        """Who loses its KV when an attempt ahead of it needs a slot: unlisted ones first, then the least wanted."""
        rank = self._plans.rank_of()
        idle = [attempt for attempt in self._residency.residents if attempt not in self._run_set]
        victim = max(idle, key=lambda attempt: rank.get(attempt.key, len(rank)))
        self._deviations.append(Deviation(self._plans.plan_id, victim.key, DeviationReason.NO_SLOT))
        self._moved_states[victim.key] = victim
        return victim

"""The simulated engine: what is asked of it, from any thread. Its steps are in `stepping`, its attempts in `table`."""

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence

from paceline_core.engines.shipped import load_profile
from paceline_executor.contract import (
    AttemptSpec,
    Capabilities,
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
    ReplayMode,
    Republished,
    StateRequirements,
    StateTicket,
)
from paceline_executor.outbox import Outbox
from paceline_executor.simulated.answer import force, script_of
from paceline_executor.simulated.attempt import Attempt
from paceline_executor.simulated.config import SimulatedConfig
from paceline_executor.simulated.driver import Driver
from paceline_executor.simulated.language import language
from paceline_executor.simulated.memory import KvMemory
from paceline_executor.simulated.state import SimulatedState
from paceline_executor.simulated.step import pack
from paceline_executor.simulated.stepping import StepLoop
from paceline_executor.simulated.table import AttemptTable
from paceline_executor.tickets import TicketBook
from paceline_executor.validation import check_spec, prompt_ids_of

_log = logging.getLogger(__name__)
_BUILD = "simulated-1"
_KV_TYPE = "none"


class SimulatedEngine:
    """Implements `paceline_executor.contract.Engine`. Nothing in it blocks except `drain`."""

    def __init__(
        self, config: SimulatedConfig, driver: Driver, *, abort: Callable[[], None] = os.abort
    ) -> None:
        self._config = config
        self._driver = driver
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
        self._loop = StepLoop(
            config, self._changed, driver, self._profile, self._language, self._memory, self._outbox, abort
        )
        self._table = self._loop.table = AttemptTable(
            self._outbox,
            driver.now_s,
            self._on_end,
            max_tombstones=config.max_tombstones,
            tombstone_ttl_s=config.tombstone_ttl_s,
        )
        self._draining = self._closed = False
        self._counters: Counter[str] = Counter()
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

    @property
    def alive(self) -> bool:
        """False once closed."""
        return not self._closed

    @property
    def counters(self) -> Counter[str]:
        """What happened so far, by name."""
        return self._counters + self._table.counters + self._loop.counters

    def add(self, spec: AttemptSpec, state: bytes | None = None) -> None:
        """Take an attempt in, see `contract.Engine.add`."""
        with self._changed:
            known = self._table.get(spec.attempt_key)
            if known is not None:
                self._table.repeat(known)
                return
            try:
                if self._draining or self._closed:
                    raise EngineError("DRAINING", "the engine takes no new attempts", retryable=True)
                if self._table.live >= self._config.max_live:
                    raise EngineError(
                        "QUEUE_FULL", f"{self._config.max_live} attempts are live", retryable=True
                    )
                check_spec(spec, self._language.vocab_size)
                prompt_ids = prompt_ids_of(spec, self._language, self._context_tokens)
            except EngineError as error:
                self._table.reject(spec.attempt_key, error)
                return
            self._table.insert(self._new_attempt(spec, prompt_ids, state))
            self._loop.touch()

    def cancel(self, attempt_key: int) -> None:
        """End an attempt at once."""
        with self._changed:
            attempt = self._table.get_live(attempt_key)
            if attempt is not None:
                self._loop.touch()
                self._table.end(attempt, EndReason.CANCELLED)

    def release(self, attempt_key: int) -> None:
        """Forget an ended attempt."""
        with self._changed:
            self._table.release(attempt_key)

    def republish(self, attempt_key: int, from_index: int) -> None:
        """Give out tokens from an index on again, and the end if there was one."""
        with self._changed:
            self._loop.settle()
            attempt = self._table.get(attempt_key)
            if attempt is None:
                self._counters["republish_unknown"] += 1
                return
            self._outbox.put(Republished(pack([(attempt, from_index)])))
            if attempt.ended is not None:
                self._outbox.put(attempt.ended)

    def extend_forced(self, attempt_key: int, first_index: int, ids: Ids, *, final: bool) -> None:
        """Further forced ids for an attempt that awaits them."""
        with self._changed:
            self._loop.touch()
            attempt = self._table.get_live(attempt_key)
            if attempt is None:
                self._counters["forced_ignored"] += 1
                return
            overlap = min(attempt.answer.count - first_index, len(ids))
            known, _, _ = attempt.answer.slice(min(first_index, attempt.answer.count))
            agrees = overlap >= 0 and known[:overlap].tolist() == ids[:overlap].tolist()
            if agrees and overlap == len(ids) and not attempt.awaiting:
                # Said again, e.g. after a broken stream.
                self._counters["forced_repeated"] += 1
                return
            if (
                not attempt.awaiting
                or not agrees
                or not bool(((ids >= 0) & (ids < self._language.vocab_size)).all())
            ):
                message = "forced ids leave a gap, contradict known ones or came too late"
                self._table.end(
                    attempt, EndReason.FAILED, error_reason="FORCED_IDS_MISMATCH", message=message
                )
                return
            attempt.answer = force(attempt.answer, ids[overlap:])
            attempt.published = attempt.answer.count
            attempt.awaiting = not final
            self._table.end_if_over(attempt)

    def set_plan(self, plan: Plan) -> None:
        """Replace the plan; adopted at the next step boundary."""
        if plan.token_limits and len(plan.token_limits) != len(plan.attempt_keys):
            raise ValueError("token_limits must be as long as attempt_keys, or empty")
        with self._changed:
            self._loop.set_plan(plan)

    def clear_plan(self) -> None:
        """Stop running after the current step; everything is kept."""
        with self._changed:
            self._loop.set_plan(None)

    def live_table(self) -> list[LiveAttempt]:
        """Every attempt it knows, tombstones included."""
        with self._changed:
            self._loop.settle()
            return [
                LiveAttempt(a.spec, a.state, a.prompt_ids, a.kv_tokens, a.answer.count, a.ended)
                for a in self._table.rows()
            ]

    def kv_use(self) -> KvUse:
        """KV use now."""
        with self._changed:
            self._loop.settle()
            return self._memory.use(self._table.live)

    def issue_ticket(self, attempt_key: int) -> StateTicket:
        """A ticket for an attempt's KV; raises `EngineError` UNKNOWN_ATTEMPT or NO_STATE."""
        with self._changed:
            self._loop.settle()
            attempt = self._table.get(attempt_key)
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
            self._loop.settle()
            attempt = self._table.get(self._tickets.redeem(token))
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
            self._counters["exports"] += 1
            state = SimulatedState.of(attempt, own.model_hash)
            return ExportedState(attempt.kv_tokens, state.ids, attempt.prompt_tokens, state.pack())

    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of texts."""
        return [self._language.tokenize_prompt(text) for text in texts]

    def drain(self, timeout_s: float) -> tuple[int, int]:
        """Refuse new attempts, wait for the live ones, cancel the rest. Not from the driver's thread: it blocks."""
        with self._changed:
            self._draining = True
            before = self._table.live
            self._changed.wait_for(lambda: self._table.live == 0, timeout_s)
            left = [attempt.key for attempt in self._table.rows() if attempt.ended is None]
            for key in left:
                self.cancel(key)
            return before - len(left), len(left)

    def close(self) -> None:
        """Stop; nothing is reported from here on."""
        with self._changed:
            self._closed = True
            self._loop.close()

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
                self._counters["imports"] += 1
            except EngineError as error:
                self._counters["imports_refused"] += 1
                _log.warning("attempt %d: %s; replaying", attempt.key, error)
        return attempt

    def _on_end(self, attempt: Attempt) -> None:
        self._memory.leave(attempt)
        self._loop.forget(attempt)
        self._changed.notify_all()

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

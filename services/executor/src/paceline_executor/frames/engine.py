"""The executor's contract in front of an engine that takes requests: what is asked of it, from any thread."""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Sequence

from paceline_executor.contract import (
    AttemptAccepted,
    AttemptEnded,
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
    ReplayMode,
    Republished,
    StateRequirements,
    StateTicket,
)
from paceline_executor.frames.attempt import Attempt
from paceline_executor.frames.backend import Backend, Holder, Vocabulary
from paceline_executor.frames.config import FrameConfig
from paceline_executor.frames.loop import FrameLoop
from paceline_executor.frames.reporting import Reporter, pack
from paceline_executor.frames.table import AttemptTable
from paceline_executor.frames.watchdog import watch
from paceline_executor.outbox import Outbox
from paceline_executor.validation import check_spec, prompt_ids_of

_log = logging.getLogger(__name__)
_END_TIMEOUT_S = 30.0


class FrameEngine:
    """Implements `paceline_executor.contract.Engine`. Made on the event loop that drives the back end.

    `holder`: where the engine can hold requests with their KV and take a plan per iteration; None: only what its
    public interface can do, so that leaving the run set costs a resume.
    """

    def __init__(
        self, config: FrameConfig, backend: Backend, vocabulary: Vocabulary, holder: Holder | None = None
    ) -> None:
        self._config = config
        self._backend = backend
        self._vocabulary = vocabulary
        self._holder = holder
        self.counters: Counter[str] = Counter()
        """What happened so far, by name: resumes, preemptions, pinned, alarms, ..."""
        # The bare lock is quicker to take than the condition, and the loop takes it for every token.
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._outbox = Outbox(config.event_capacity)
        self._table = AttemptTable(
            max_tombstones=config.max_tombstones,
            tombstone_ttl_s=config.tombstone_ttl_s,
            counters=self.counters,
        )
        self._frames = FrameLoop(
            config, backend, holder, self._table, Reporter(self._outbox), lock,
            self._changed.notify_all, self.counters,
            vocabulary.eos_token_id,
        )  # fmt: skip
        self._capabilities = self._describe()
        self._draining = self._closed = False
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.Task[None] | None = None
        self._frames.start()
        self._watchdog = self._loop.create_task(
            watch(self._frames, backend, lock, config.health_interval_s), name="watchdog"
        )

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
        """False once it was taken out or closed."""
        return self._frames.alive and not self._closed

    def add(self, spec: AttemptSpec, state: bytes | None = None) -> None:
        """Take an attempt in, see `contract.Engine.add`. KV of other engines is of no use here."""
        if state is not None:
            with self._changed:
                self.counters["imports_refused"] += 1
            _log.warning("attempt %d: this engine takes no KV; replaying", spec.attempt_key)
        with self._changed:
            if self._repeat(spec.attempt_key):
                return
        try:
            check_spec(spec, self._vocabulary.vocab_size, self._backend.facts.adapters)
            self._backend.check(spec)
            prompt_ids = prompt_ids_of(spec, self._vocabulary, self._config.context_tokens)
        except EngineError as error:
            self._reject(spec.attempt_key, error)
            return
        sampling = spec.sampling
        penalised = bool(sampling.presence_penalty or sampling.frequency_penalty)
        attempt = Attempt(
            spec, prompt_ids, self._vocabulary, self._config.context_tokens,
            pinned=penalised and not self._backend.facts.penalties_survive,
        )  # fmt: skip
        with self._changed:
            # Another thread may have added it while this one tokenised.
            if self._repeat(spec.attempt_key):
                return
            if self._draining or self._closed or not self._frames.alive:
                refusal = EngineError("DRAINING", "the engine takes no new attempts", retryable=True)
            elif self._table.live >= self._config.max_live:
                refusal = EngineError(
                    "QUEUE_FULL", f"{self._config.max_live} attempts are live", retryable=True
                )
            else:
                self._insert(attempt)
                return
        self._reject(spec.attempt_key, refusal)

    def cancel(self, attempt_key: int) -> None:
        """End an attempt; confirmed when the engine holds nothing of it."""
        with self._changed:
            attempt = self._table.get_live(attempt_key)
            if attempt is not None and not attempt.cancelled:
                self._frames.cancel(attempt)

    def release(self, attempt_key: int) -> None:
        """Forget an ended attempt."""
        with self._changed:
            self._table.release(attempt_key)

    def republish(self, attempt_key: int, from_index: int) -> None:
        """Give out what was published from an index on again, and the end if there was one."""
        with self._changed:
            self._frames.flush()
            attempt = self._table.get(attempt_key)
            if attempt is None:
                self.counters["republish_unknown"] += 1
                return
            self._outbox.put(Republished(pack([(attempt, from_index, attempt.published)])))
            if attempt.ended is not None:
                self._outbox.put(attempt.ended)

    def extend_forced(self, attempt_key: int, first_index: int, ids: Ids, *, final: bool) -> None:
        """Further forced ids for an attempt that awaits them."""
        with self._changed:
            attempt = self._table.get_live(attempt_key)
            if attempt is None:
                self.counters["forced_ignored"] += 1
                return
            overlap = min(attempt.count - first_index, len(ids))
            known = attempt.output_ids[first_index : first_index + max(overlap, 0)]
            agrees = overlap >= 0 and known == ids[:overlap].tolist()
            if agrees and overlap == len(ids) and not attempt.awaiting:
                # Said again, e.g. after a broken stream.
                self.counters["forced_repeated"] += 1
                return
            in_vocabulary = bool(((ids >= 0) & (ids < self._vocabulary.vocab_size)).all())
            if not attempt.awaiting or not agrees or not in_vocabulary:
                message = "forced ids leave a gap, contradict known ones or came too late"
                self._frames.fail(attempt, "FORCED_IDS_MISMATCH", message)
                return
            attempt.force(ids[overlap:])
            attempt.awaiting = not final
            if attempt.reason is not None:
                self._frames.end(attempt)
            self._frames.touch()

    def set_plan(self, plan: Plan) -> None:
        """Replace the plan; who is new in it is submitted at once, who is not in it leaves at the frame's end."""
        if plan.token_limits and len(plan.token_limits) != len(plan.attempt_keys):
            raise ValueError("token_limits must be as long as attempt_keys, or empty")
        with self._changed:
            self._frames.set_plan(plan)

    def clear_plan(self) -> None:
        """Stop running: what is in the engine is aborted (or held), its tokens are kept."""
        with self._changed:
            self._frames.set_plan(None)

    def live_table(self) -> list[LiveAttempt]:
        """Every attempt it knows, tombstones included. Tokens that were not put out yet are not counted."""
        with self._changed:
            return [
                LiveAttempt(a.spec, a.state, a.prompt_ids, a.kv_tokens, a.published, a.ended)
                for a in self._table.all()
            ]

    def kv_use(self) -> KvUse:
        """KV now, by the agent's own account."""
        with self._changed:
            return self._frames.kv_use()

    def issue_ticket(self, attempt_key: int) -> StateTicket:
        """Refused: KV does not leave such an engine. Raises `EngineError`."""
        with self._changed:
            if self._table.get(attempt_key) is None:
                raise EngineError("UNKNOWN_ATTEMPT", f"no attempt {attempt_key} here")
        raise EngineError("NO_STATE", "this engine does not give its KV out")

    def export_state(self, token: str, requirements: StateRequirements) -> ExportedState:
        """Refused: there are no tickets. Raises `EngineError`."""
        raise EngineError("TICKET_INVALID", "this engine issues no tickets")

    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of texts, as prompts are tokenised."""
        return [self._vocabulary.tokenize_prompt(text) for text in texts]

    def drain(self, timeout_s: float) -> tuple[int, int]:
        """Refuse new attempts, wait for the live ones, cancel the rest: (completed, cancelled). Blocks."""
        with self._changed:
            self._draining = True
            before = self._table.live
            self._changed.wait_for(self._done, timeout_s)
            left = list(self._table.live_attempts())
            for attempt in left:
                self._frames.cancel(attempt)
            self._changed.wait_for(self._done, _END_TIMEOUT_S)
            return before - len(left), len(left)

    def close(self) -> None:
        """Stop for good. Blocks, unless called on the event loop itself: then the rest follows in the background."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            self._closing = self._loop.create_task(self.aclose(), name="close")
        elif not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self.aclose(), self._loop).result(_END_TIMEOUT_S)

    async def aclose(self) -> None:
        """`close` for those on the event loop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._watchdog.cancel()
        await self._frames.stop()
        await self._backend.close()

    def _done(self) -> bool:
        return self._table.live == 0 or self._closed

    # --- under the lock --------------------------------------------------------------------------------------

    def _insert(self, attempt: Attempt) -> None:
        self._table.insert(attempt)
        self._outbox.put(AttemptAccepted(attempt.key, attempt.prompt_ids, 0))
        if attempt.reason is not None:
            # The forced ids already held the end: nothing is left to do.
            self._frames.end(attempt)
        self._frames.touch()

    def _repeat(self, attempt_key: int) -> bool:
        attempt = self._table.get(attempt_key)
        if attempt is None:
            return False
        self.counters["repeated_adds"] += 1
        self._outbox.put(AttemptAccepted(attempt_key, attempt.prompt_ids, 0))
        if attempt.ended is not None:
            self._outbox.put(attempt.ended)
        return True

    def _reject(self, attempt_key: int, error: EngineError) -> None:
        with self._changed:
            self.counters["rejected"] += 1
        self._outbox.put(
            AttemptEnded(
                attempt_key,
                EndReason.REJECTED,
                error_reason=error.reason,
                message=error.message,
                retryable=error.retryable,
            )
        )

    def _describe(self) -> Capabilities:
        config, facts, words = self._config, self._backend.facts, self._vocabulary
        holds = self._holder is not None
        return Capabilities(
            model=config.model_name,
            model_hash=facts.model_hash,
            tokenizer_id=words.tokenizer_id,
            chat_template=words.chat_template or "",
            bos_token="",
            eos_token=words.token_text(words.eos_token_id),
            backend=facts.backend,
            build=facts.build,
            device=facts.device,
            speed_factor=config.speed_factor,
            plan_granularity=PlanGranularity.ITERATION if holds else PlanGranularity.FRAME,
            pause_modes=(PauseMode.KEEP_KV, PauseMode.RECOMPUTE) if holds else (PauseMode.RECOMPUTE,),
            run_set_change_cost_ms=config.run_set_change_cost_ms,
            max_batch=config.max_batch,
            max_resident=config.max_resident,
            max_context_tokens=config.context_tokens,
            kv_capacity_tokens=config.kv_capacity_tokens,
            kv_bytes_per_token=facts.kv_bytes_per_token,
            kv_type=facts.kv_type,
            prefill_chunk_tokens=config.prefill_chunk_tokens,
            kv_transfer=False,
            prefix_reuse=facts.prefix_reuse,
            # Chunk borders and batches are the engine's: a replay may flip a near-tie.
            replay_modes=(ReplayMode.FAST,),
            vocab_size=words.vocab_size,
            priority=facts.priority,
            adapters=facts.adapters,
        )

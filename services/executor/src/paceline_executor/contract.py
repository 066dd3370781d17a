"""What an engine does, in data terms.

An engine takes attempts and plans, and gives out events: acceptances, step reports, ends. It never waits for a plan
and never waits for whoever reads its events. The gRPC service, the llama.cpp engine and the simulated engine meet
here, and none of them sees another's types.

Ids are int32 arrays, times are milliseconds unless a name says otherwise, an output index counts from 0 over the
whole request (forced ids included).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
NO_IDS: Ids = np.empty(0, np.int32)


class ReplayMode(Enum):
    """How output that another attempt already made is taken over."""

    EXACT = "exact"
    """Prompt in the same aligned chunks, then one decode step per forced id: the same numbers again."""
    FAST = "fast"
    """One prefill over prompt and forced ids: quicker, may flip a near-tie."""


class AttemptState(Enum):
    """Where a live attempt stands."""

    QUEUED = "queued"
    """Never ran here."""
    RUNNING = "running"
    """In the run set of the last step."""
    PAUSED = "paused"
    """KV resident, not running (also: held at the end of its forced ids, or out of credit)."""
    EVICTED = "evicted"
    """KV gone, tokens kept."""
    ENDED = "ended"
    """Over; kept as a tombstone until released."""


class EndReason(Enum):
    """Why an attempt ended."""

    STOP = "stop"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    FAILED = "failed"


class PlanGranularity(Enum):
    """How finely a plan steers the engine."""

    ITERATION = "iteration"
    FRAME = "frame"


class PauseMode(Enum):
    """Ways to take a request out of the batch."""

    KEEP_KV = "keep_kv"
    SWAP = "swap"
    RECOMPUTE = "recompute"


class PrefixReuse(Enum):
    """Which computed prefixes a new prompt may share."""

    NONE = "none"
    ALIGNED = "aligned"
    """Only KV made by whole aligned prefill chunks: answers do not change."""
    FAST = "fast"
    """Any common prefix: quicker, may flip a near-tie."""


class DeviationReason(Enum):
    """Why a plan was not followed to the letter."""

    NO_SLOT = "no_slot"
    """The attempt lost its KV because one ahead of it in the plan needed the slot."""
    NO_KV = "no_kv"
    UNSUPPORTED = "unsupported"


ENGINE_FAILED = "ENGINE_FAILED"
"""Error reason of attempts that ended because the engine did. Not for their clients: another engine replays them."""


class EngineError(Exception):
    """A request that this engine refuses. `reason` is UPPER_SNAKE, the message is for people."""

    def __init__(self, reason: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.retryable = retryable


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The neutral value of each field switches it off."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    """Keys the counter-based generator together with the token index."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, amount added to its logit)."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True)
class AttemptSpec:
    """Everything an engine needs to run one attempt. Exactly one of `prompt_text`, `prompt_ids` is set."""

    attempt_key: int
    request_id: str
    max_tokens: int
    """Most output tokens, forced ones included."""
    prompt_text: str | None = None
    prompt_ids: Ids | None = None
    forced_ids: Ids = field(default_factory=lambda: NO_IDS)
    """Output already published by earlier attempts; fed as input, not published again."""
    replay: ReplayMode = ReplayMode.EXACT
    await_more_forced: bool = False
    """Hold at the end of the forced ids until `extend_forced(..., final=True)`."""
    sampling: Sampling = field(default_factory=Sampling)
    cache_salt: str = ""
    """Prefixes are shared only among equal salts."""
    adapter: str = ""
    """LoRA adapter by name; empty: none."""
    output_bound_tokens: int = 0
    """Output index that it is not expected to pass; 0: not known. Nothing ends there."""
    context: bytes = b""
    """Handed back unread in the live table."""


@dataclass(frozen=True)
class Plan:
    """What runs until further notice: an ordered list longer than the batch; the newest plan wins."""

    plan_id: int
    attempt_keys: tuple[int, ...]
    """Most wanted first. Unknown, ended and unrunnable ones are skipped; unlisted ones do not run."""
    token_limits: tuple[int, ...] = ()
    """Output index bound of each attempt (credits), 0 none; empty or as long as `attempt_keys`."""
    evict: tuple[int, ...] = ()
    """Attempts whose KV is dropped once, when the plan is adopted."""
    max_batch: int = 0
    """Most sequences worked on in one step; 0: the engine's limit."""
    prefill_budget_tokens: int = 0
    """Most tokens prefilled in one step (one chunk at least when any is due); 0: the engine's default."""
    valid_for_steps: int = 0


@dataclass(frozen=True)
class TokenColumns:
    """Tokens of many attempts: row r covers `counts[r]` tokens of `attempt_keys[r]` from `first_indices[r]` on."""

    attempt_keys: NDArray[np.uint64]
    """[R]"""
    first_indices: NDArray[np.uint32]
    """[R]"""
    counts: NDArray[np.uint32]
    """[R]"""
    token_ids: Ids
    """[T], rows one after the other"""
    text_lengths: NDArray[np.uint32]
    """[T], bytes of text released with each token"""
    text: bytes
    """UTF-8; a piece never splits a character and depends on ids 0..i and the stop strings alone"""


@dataclass(frozen=True)
class KvUse:
    """KV memory after a step."""

    used_tokens: int = 0
    cached_tokens: int = 0
    """Held for prefix reuse only."""
    resident: int = 0
    live: int = 0


@dataclass(frozen=True)
class Progress:
    """An attempt whose state, prefill or replay moved in a step."""

    attempt_key: int
    kv_tokens: int
    state: AttemptState


@dataclass(frozen=True)
class PrefillCall:
    """One prefill call, as the step-time model wants it."""

    tokens: int
    context_tokens: int
    """Tokens of the sequence before the call."""
    ms: float

    def stretched(self, factor: float) -> "PrefillCall":
        """The same call on an engine that is slower by a declared factor."""
        return self if factor == 1.0 else PrefillCall(self.tokens, self.context_tokens, self.ms * factor)


@dataclass(frozen=True)
class Deviation:
    """Where a plan was not followed to the letter."""

    plan_id: int
    attempt_key: int
    reason: DeviationReason


@dataclass(frozen=True)
class AttemptAccepted:
    """The engine took the attempt in."""

    attempt_key: int
    prompt_ids: Ids
    cached_tokens: int
    """Prompt tokens that prefix reuse would save if the attempt ran now."""


@dataclass(frozen=True)
class AttemptEnded:
    """The attempt is over; all its tokens were put out before this."""

    attempt_key: int
    reason: EndReason
    output_tokens: int = 0
    """Forced ones included."""
    prompt_tokens: int = 0
    error_reason: str = ""
    """UPPER_SNAKE, for REJECTED and FAILED."""
    message: str = ""
    retryable: bool = False
    stop_string: str = ""


@dataclass(frozen=True)
class StepReport:
    """What one engine step did. A step with first tokens reports twice under one number: prefill, then decode."""

    step: int
    plan_id: int
    step_ms: float
    decode_ms: float
    prefill_ms: float
    decode_batch: int
    decode_context_tokens: int
    """Sum of the contexts of the decoded sequences."""
    prefill_calls: tuple[PrefillCall, ...]
    tokens: TokenColumns
    progress: tuple[Progress, ...] = ()
    kv: KvUse = field(default_factory=KvUse)
    deviations: tuple[Deviation, ...] = ()
    moved_tokens: int = 0
    """KV tokens copied between slots before the decode call."""
    merged_reports: int = 1
    """More than 1: reports folded together because nobody read them; times and batches are sums, unfit for fitting."""


@dataclass(frozen=True)
class Republished:
    """Tokens given out again on request."""

    tokens: TokenColumns


Event = AttemptAccepted | StepReport | Republished | AttemptEnded


@dataclass(frozen=True)
class LiveAttempt:
    """One row of the live table: what a new scheduler needs to take over."""

    spec: AttemptSpec
    state: AttemptState
    prompt_ids: Ids
    kv_tokens: int
    output_tokens: int
    ended: AttemptEnded | None = None


@dataclass(frozen=True)
class StateTicket:
    """The right to pull the KV of one attempt once, for a short time."""

    attempt_key: int
    token: str
    positions: int
    size_bytes: int
    """An estimate: the attempt may run on until the state is pulled."""


@dataclass(frozen=True)
class StateRequirements:
    """What the pulling engine is: KV moves only between equals."""

    build: str
    model_hash: str
    kv_type: str
    max_context_tokens: int


@dataclass(frozen=True)
class ExportedState:
    """KV of one sequence. `data` is opaque: `Engine.add(spec, state=data)` of an equal engine reads it."""

    positions: int
    token_ids: Ids
    """Ids of the positions, prompt then output."""
    prompt_tokens: int
    data: bytes


@dataclass(frozen=True)
class Capabilities:
    """What the engine is and can do; policies degrade by it."""

    model: str
    model_hash: str
    tokenizer_id: str
    chat_template: str
    bos_token: str
    eos_token: str
    backend: str
    build: str
    device: str
    speed_factor: float
    """Declared factor on step time: 1 is full speed, 2 is half speed."""
    plan_granularity: PlanGranularity
    pause_modes: tuple[PauseMode, ...]
    """Cheapest first."""
    run_set_change_cost_ms: float
    max_batch: int
    max_resident: int
    max_context_tokens: int
    kv_capacity_tokens: int
    kv_bytes_per_token: int
    kv_type: str
    prefill_chunk_tokens: int
    kv_transfer: bool
    prefix_reuse: PrefixReuse
    replay_modes: tuple[ReplayMode, ...]
    vocab_size: int
    priority: bool = False
    adapters: tuple[str, ...] = ()
    """LoRA adapters that attempts may name."""


class EventSource(Protocol):
    """The reading end of an engine's events: bounded, and never a brake on the engine."""

    def drain(self) -> list[Event]:
        """Everything put out since the last call, oldest first; empty if nothing."""

    def wait(self, timeout_s: float) -> bool:
        """Block until an event is there, or the time is over (False)."""

    def on_event(self, wake: Callable[[], None] | None) -> None:
        """Call `wake` (from the engine's thread, so it must be quick) whenever events appear after a drain."""


class Engine(Protocol):
    """One engine. Every method may be called from any thread; those that say so block."""

    @property
    def capabilities(self) -> Capabilities:
        """What it is and can do; constant."""

    @property
    def events(self) -> EventSource:
        """Where everything it has to say comes out, in order."""

    @property
    def alive(self) -> bool:
        """False once the engine has stopped for good, by `close` or by a failure: only a new process helps."""

    def add(self, spec: AttemptSpec, state: bytes | None = None) -> None:
        """Take an attempt in; tokenises (blocks a little). Answer: `AttemptAccepted` or `AttemptEnded(REJECTED)`.

        `state` is the KV another engine exported for the same request; what does not fit is ignored and counted,
        and the attempt replays instead. Adding a known key again only repeats its acceptance (and end).
        """

    def cancel(self, attempt_key: int) -> None:
        """End an attempt; confirmed by `AttemptEnded(CANCELLED)`. Unknown or ended keys are ignored."""

    def release(self, attempt_key: int) -> None:
        """Forget an ended attempt."""

    def republish(self, attempt_key: int, from_index: int) -> None:
        """Give out tokens from an index on again (and the end, if ended), from what the engine holds."""

    def extend_forced(self, attempt_key: int, first_index: int, ids: Ids, *, final: bool) -> None:
        """Further forced ids for an attempt that awaits them. A gap fails the attempt; an overlap is
        checked, and ids that are all known already change nothing."""

    def set_plan(self, plan: Plan) -> None:
        """Replace the plan; adopted at the next step boundary."""

    def clear_plan(self) -> None:
        """Stop running after the current step and keep everything: the scheduler is gone."""

    def live_table(self) -> list[LiveAttempt]:
        """Every attempt it knows, tombstones included."""

    def kv_use(self) -> KvUse:
        """KV memory now, for the time when no step reports it."""

    def issue_ticket(self, attempt_key: int) -> StateTicket:
        """A ticket for the attempt's KV; raises `EngineError` if it has none."""

    def export_state(self, token: str, requirements: StateRequirements) -> ExportedState:
        """Redeem a ticket (once). Blocks until the next step boundary. Raises `EngineError`."""

    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of texts, as prompts are tokenised."""

    def drain(self, timeout_s: float) -> tuple[int, int]:
        """Refuse new attempts and wait for the live ones, then cancel the rest: (completed, cancelled). Blocks."""

    def close(self) -> None:
        """Stop after the current step and free everything. Blocks."""

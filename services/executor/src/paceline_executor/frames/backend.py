"""What an engine is that takes whole requests: submit, read, abort. The consumers of this package implement it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from paceline_executor.contract import AttemptSpec, Ids, PrefixReuse, Sampling


class LegEnd(Enum):
    """Why an engine stopped working on a request."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


class LegRefused(Exception):
    """The engine does not take this request; others go on."""

    def __init__(self, reason: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.retryable = retryable


class LegFailed(Exception):
    """The engine gave a request up while it ran; it goes on as a new one unless that is `final`."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class BackendGone(Exception):
    """The engine takes nothing any more: only a new process helps."""


@dataclass(frozen=True)
class LegRequest:
    """One stay of an attempt in the engine: from the ids known so far to `max_tokens` more."""

    request_id: str
    """For the engine's logs, unique per leg."""
    ids: list[int]
    """Prompt, then output so far."""
    prompt_tokens: int
    """How many of them are the prompt."""
    max_tokens: int
    sampling: Sampling
    """The seed is this leg's own."""
    cache_salt: str = ""
    adapter: str = ""
    """LoRA adapter by name; empty: none."""
    priority: float = 0.5
    """0 to 1, the most urgent 1; for the engine's waiting queue, if it has one that knows priorities."""
    expected_back: bool = False
    """Likely to leave before its end: its KV is worth keeping."""


@dataclass(slots=True)
class LegItem:
    """News of a leg."""

    ids: Sequence[int]
    """New tokens, several if the engine or the reader was slow."""
    end: LegEnd | None = None
    """With the last item: the engine holds nothing of the request any more."""
    stop_id: int | None = None
    """The token that ended it, if the engine took it out of the ids."""


class Leg(Protocol):
    """A request in the engine. Iterating ends after the item with an end; raises LegFailed."""

    @property
    def engine_id(self) -> int:
        """What the engine calls it."""

    def __aiter__(self) -> AsyncIterator[LegItem]: ...

    def abort(self) -> None:
        """Ask for its end; it is over with the last item, not before."""


@dataclass(frozen=True)
class IterationRow:
    """What the engine says of one of its iterations."""

    ms: float
    context_tokens: int
    """Tokens prefilled."""
    context_before_tokens: int
    """Context that those came after, in sum."""
    decode_batch: int
    decode_context_tokens: int
    queued: int
    """Requests in the engine's own queue."""
    used_tokens: int
    """KV in use, whole blocks."""


@dataclass(frozen=True)
class BackendFacts:
    """What does not change."""

    backend: str
    build: str
    device: str
    model_hash: str
    kv_type: str
    kv_bytes_per_token: int
    tokens_per_block: int
    """KV is kept for reuse in whole blocks of this many; 0: not at all, or not known."""
    prefix_reuse: PrefixReuse
    priority: bool
    has_rows: bool
    """It tells of its iterations."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters that requests may name."""
    penalties_survive: bool = False
    """Presence and frequency penalties count right when output comes back as prompt."""


class Backend(Protocol):
    """One engine, used on the event loop only."""

    @property
    def facts(self) -> BackendFacts:
        """What it is; constant."""

    def check(self, spec: AttemptSpec) -> None:
        """Refuse what it cannot do before it is accepted; raises `EngineError`."""

    def submit(self, request: LegRequest) -> Leg:
        """Hand a request in. Raises LegRefused or BackendGone."""

    def rows(self) -> AsyncIterator[IterationRow]:
        """Iterations as they end, for one reader; ends when the engine does."""

    async def fault(self) -> str:
        """Why the engine is unfit, or ""."""

    async def close(self) -> None:
        """Stop it."""


class Vocabulary(Protocol):
    """Text to ids and back, where the engine itself sees ids only."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    def longest_piece_bytes(self) -> int:
        """Bytes of the longest token."""

    @property
    def tokenizer_id(self) -> str:
        """Equal ids mean equal token ids for equal text."""

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def eos_token_id(self) -> int:
        """The one of them that the engine is told of."""

    @property
    def chat_template(self) -> str | None:
        """Jinja, if the model has one."""

    def token_text(self, token: int) -> str:
        """How a token is written in a prompt; "" for -1."""

    def tokenize_prompt(self, text: str) -> Ids:
        """Token ids of a prompt."""

    def piece(self, token: int) -> bytes:
        """Bytes of a token in an answer; none for control tokens."""


class Holder(Protocol):
    """What lets an engine hold requests with their KV: plan mode."""

    def post(self, order: Sequence[tuple[int, int]], max_batch: int) -> None:
        """What may run from the next iteration on: (engine id, most tokens it may make, 0 for no bound), in order."""

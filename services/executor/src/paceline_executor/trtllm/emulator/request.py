"""A request as the emulated executor holds it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from paceline_executor.trtllm.emulator.blocks import Holding
from paceline_executor.trtllm.emulator.parameters import SamplingParams


class LlmRequestState(IntEnum):
    """Where it stands; the order is that of a life."""

    CONTEXT_INIT = 10
    GENERATION_IN_PROGRESS = 13
    GENERATION_COMPLETE = 20


@dataclass(frozen=True, slots=True)
class Response:
    """What one iteration has to say to the client side: new tokens, and the end."""

    token_ids: list[int]
    finish_reason: str | None = None
    """END_ID, STOP_WORDS, LENGTH, CANCELLED."""
    cached_tokens: int = 0
    error: str | None = None


@dataclass(slots=True, eq=False)
class LlmRequest:
    """One request. Ids are of the executor; `py_client_id` is what the client side calls it."""

    request_id: int
    py_client_id: int
    prompt: list[int]
    sampling: SamplingParams
    priority: float
    salt: int
    respond: Callable[[Response], None]
    adapter: int = 0
    """Stands for the weights of an adapter: it changes what is said."""
    py_prompt_len: int = 0
    state: LlmRequestState = LlmRequestState.CONTEXT_INIT
    py_batch_idx: int | None = None
    context_len: int = 0
    """Tokens of the context phase: the prompt, and after a recompute pause also what was made."""
    context_current_position: int = 0
    """Positions of the context whose KV is there."""
    context_chunk_size: int = 0
    """Tokens of context computed in the iteration under way."""
    ids: list[int] = field(default_factory=list)
    """Prompt, then output."""
    holding: Holding = field(default_factory=Holding)
    started: bool = False
    cached_tokens: int = 0
    speech: int = 0
    unsent: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    decoding_iter: int = 0

    def __post_init__(self) -> None:
        self.py_prompt_len = len(self.prompt)
        self.context_len = len(self.prompt)
        self.ids = list(self.prompt)

    @property
    def generated(self) -> int:
        """Tokens made by this submission."""
        return len(self.ids) - self.py_prompt_len

    @property
    def kv_tokens(self) -> int:
        """Positions whose KV is there: all but the newest token."""
        if self.state is LlmRequestState.CONTEXT_INIT:
            return self.context_current_position
        return len(self.ids) - 1

    def get_num_tokens(self, beam: int) -> int:
        """Tokens of a beam, prompt included."""
        return len(self.ids)

    def pause_by_recompute(self) -> None:
        """Its KV is gone: everything so far becomes context."""
        self.state = LlmRequestState.CONTEXT_INIT
        self.started = False
        self.context_len = len(self.ids)
        self.context_current_position = 0

    def finish_by_reason(self, reason: str) -> None:
        """Mark it finished; cleaned up at the end of the iteration."""
        self.state = LlmRequestState.GENERATION_COMPLETE
        self.finish_reason = reason

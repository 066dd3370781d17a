"""What the load generator needs of a way to call the stack."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from paceline.common.v1 import slo_pb2
from paceline_core.slo import Slo, SloClass
from paceline_lab.prompts.model import Message


@dataclass(frozen=True, slots=True)
class CallSpec:
    """One call to make. `app` groups calls with like lengths; `parents`: requests whose answers it was built from."""

    request_id: str
    messages: Sequence[Message]
    max_tokens: int
    slo: Slo | None
    app: str
    stage: str = ""
    parents: Sequence[str] = ()
    ignore_eos: bool = False
    token_ids: bytes = b""
    """The prompt as little-endian int32 in place of the messages."""


@dataclass(slots=True)
class CallResult:
    """What came back. `token_s`: when each output token arrived, seconds on `time.perf_counter`."""

    token_s: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    finish: str = ""
    error: str = ""
    engine_id: str = ""
    attempts: int = 1
    accepted_s: float = 0.0
    ended_s: float = 0.0

    @property
    def answer(self) -> str:
        """The whole text."""
        return "".join(self.text)

    @property
    def ended_well(self) -> bool:
        """True if the model finished it, or it reached its token limit."""
        return self.finish in ("stop", "stop_string", "length")


class Client(Protocol):
    """Calls a running stack."""

    async def call(self, spec: CallSpec, result: CallResult) -> None:
        """Make the call, filling `result` as it goes. A refusal or failure is noted in `result.error`, not raised.

        Cancelling it ends the call at the server too.
        """

    async def close(self) -> None:
        """Give back connections."""


def slo_message(slo: Slo, *, stage: str = "", parents: Sequence[str] = ()) -> slo_pb2.Slo:
    """An objective on the wire."""
    message = slo_pb2.Slo()
    if slo.slo_class is SloClass.LATENCY:
        message.latency.ttft_ms, message.latency.tbt_ms = slo.ttft_ms, slo.tbt_ms
    elif slo.slo_class is SloClass.DEADLINE:
        message.deadline.e2e_ms = slo.e2e_ms
    elif slo.slo_class is SloClass.TASK:
        message.task.task_id, message.task.e2e_ms = slo.task_id, slo.e2e_ms
        message.task.final, message.task.stage = slo.task_final, stage
        message.task.parent_request_ids.extend(parents)
    else:
        message.best_effort.SetInParent()
    return message

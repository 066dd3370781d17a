"""One attempt in the live table: what is not a number. The numbers are columns of `table`."""

from dataclasses import dataclass, field
from typing import Final

from paceline.common.v1 import attempt_pb2
from paceline.executor.v1 import executor_pb2
from paceline_core.slo import Slo

TIMELINE_EVENTS: Final = 64
"""Events kept per attempt: the first half and the newest half."""


@dataclass(slots=True)
class Attempt:
    """One stay of a request on this engine. Alive until `ended` is set, kept until the owner releases it."""

    key: int
    request_id: str
    router_id: str
    tenant: str
    slo: Slo
    arrived_unix_ms: int
    router_context: bytes
    """Handed back to the owner's next life, unread."""
    add: executor_pb2.AddAttempt | None
    """The command that takes it in, prompt included; dropped once the engine has accepted."""
    spec_bytes: bytes = b""
    """Serialized AttemptSpec without its prompt, once accepted."""
    row: int = -1
    prompt_ids: bytes = b""
    accepted: bool = False
    sent: bool = False
    """True when the engine of this life may know it."""
    cancelling: bool = False
    end_as: attempt_pb2.AttemptEnded | None = None
    """What a cancelled end is told as upwards: EXPIRED or MOVED."""
    ended: attempt_pb2.AttemptEnded | None = None
    lost: bool = False
    """Ended here because the engine was out of reach."""
    orphan: bool = False
    """Nobody will release it: forget it when it ends."""
    missing_until: int = 0
    """Output index up to which tokens were asked for again after a broken stream; an end waits for them."""
    held_end: attempt_pb2.AttemptEnded | None = None
    forced: tuple[attempt_pb2.ForcedTokens, ...] = ()
    """Ids forced on it since it was added, kept because a stream that breaks may lose them."""
    lands_at_tokens: int = 0
    """Output ids that came with it, at least 1, while it awaits more; 0: it awaits none, or has taken them in."""
    timeline: list[tuple[float, str, str]] = field(default_factory=list)
    """(milliseconds since arrival, event, detail)."""

    def note(self, at_ms: float, event: str, detail: str = "") -> None:
        """Write one event down; the middle of a long life is dropped."""
        if len(self.timeline) >= TIMELINE_EVENTS:
            del self.timeline[TIMELINE_EVENTS // 2]
        self.timeline.append((at_ms, event, detail))

    def force(self, forced: attempt_pb2.ForcedTokens) -> None:
        """Further forced ids. Once they are final the spec has them like those it came with, and awaits none."""
        self.forced = (*self.forced, forced)
        if not forced.final:
            return
        self.lands_at_tokens = 0
        spec = self.add.spec if self.add is not None else attempt_pb2.AttemptSpec.FromString(self.spec_bytes)
        for known in self.forced:
            spec.forced_ids = spec.forced_ids[: 4 * known.first_index] + known.ids
        spec.await_more_forced = False
        if self.add is None:
            self.spec_bytes = spec.SerializeToString()

    def take_in(self, prompt_ids: bytes) -> None:
        """The engine accepted: the prompt is kept as ids only."""
        self.accepted = True
        self.prompt_ids = prompt_ids
        if self.add is not None:
            spec = self.add.spec
            self.add = None
            spec.ClearField("prompt")
            self.spec_bytes = spec.SerializeToString()

    def spec(self) -> attempt_pb2.AttemptSpec:
        """The spec, whole: once accepted the prompt is given as ids, whatever form it came in."""
        if self.add is not None:
            return self.add.spec
        spec = attempt_pb2.AttemptSpec.FromString(self.spec_bytes)
        spec.token_ids = self.prompt_ids
        return spec

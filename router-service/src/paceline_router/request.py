"""A live request: what was asked for, how far it is, and who reads it."""

import asyncio
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from opentelemetry.trace import Span

from paceline.common.v1 import attempt_pb2, estimate_pb2
from paceline.router.v1 import generation_pb2
from paceline_core.slo import Slo
from paceline_router.attempt import Attempt
from paceline_router.edge import EdgeTimeline
from paceline_router.estimate import Estimate
from paceline_router.output import Output
from paceline_router.states import ENDS, NEXT, IllegalTransition, State

if TYPE_CHECKING:
    from paceline_router.move import Move
    from paceline_router.outlet import Outlet

MAX_EVENTS: Final = 64


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request came in, on both clocks."""

    ms: float
    unix_ms: int


class LiveRequest:
    """One request from admission to the end of its retention.

    `spec` is the request as admitted, defaults filled in, without its input; the input is in `text`
    (rendered, UTF-8) or `prompt_ids` (little-endian int32; known for text too once an engine has accepted
    it). `released` is how many tokens readers may have: all of them, except that `sync` durability holds back
    what is not committed. `budget_ms` is the deadline from this request's arrival (deadline and task
    classes). `estimate` was made at arrival, `revised` is the newest one made since, when `repredicted` times the
    configured number of tokens were out. `forecast`: what its task still needs, as known last; `call_due_ms`: the
    instant by which the call is wanted then, infinite while nobody knows better than the task's deadline.
    `move`: the move under way; `moves` were begun and `moves_done` of them done.
    `given_up`: why the router itself ends it, once its engine has confirmed. `recorded`: its row in the store is its
    own. Times are the router's monotonic milliseconds.
    """

    __slots__ = (
        "accepted",
        "arrival",
        "attempt",
        "attempts",
        "budget_ms",
        "cached_tokens",
        "call_due_ms",
        "cancel_requested",
        "checkpointed",
        "crashes",
        "detached_ms",
        "end_released",
        "ended_ms",
        "estimate",
        "events",
        "excluded",
        "finished",
        "forecast",
        "given_up",
        "isolate_until",
        "max_tokens",
        "max_wait_ms",
        "move",
        "moves",
        "moves_done",
        "outlets",
        "output",
        "predicted_e2e_ms",
        "prior_attempts",
        "prompt_ids",
        "prompt_tokens",
        "recorded",
        "released",
        "repredicted",
        "request_id",
        "revised",
        "slo",
        "span",
        "spec",
        "state",
        "task_id",
        "task_stage",
        "tenant",
        "text",
        "timeline",
        "turn_index",
        "waiters",
    )

    def __init__(
        self,
        request_id: str,
        spec: generation_pb2.GenerationSpec,
        slo: Slo,
        tenant: str,
        arrival: Arrival,
    ) -> None:
        self.request_id = request_id
        self.spec = spec
        self.slo = slo
        self.tenant = tenant
        self.arrival = arrival
        self.text = b""
        self.prompt_ids = b""
        self.prompt_tokens = 0
        self.max_tokens = spec.max_tokens
        self.max_wait_ms = spec.max_wait_ms
        self.budget_ms = slo.e2e_ms
        self.call_due_ms = math.inf
        self.given_up: attempt_pb2.Failure | None = None
        self.task_id = slo.task_id
        self.turn_index = 0
        self.estimate: Estimate | None = None
        self.revised: Estimate | None = None
        self.repredicted = 0
        self.task_stage = 0
        self.forecast: estimate_pb2.TaskForecast | None = None
        self.predicted_e2e_ms = 0.0
        self.state = State.ACCEPTED
        self.attempts: list[Attempt] = []
        self.prior_attempts = 0
        self.attempt: Attempt | None = None
        self.crashes = 0
        self.move: Move | None = None
        self.moves = 0
        self.moves_done = 0
        self.isolate_until = 0
        self.excluded: frozenset[int] = frozenset()
        self.output = Output()
        self.released = 0
        self.checkpointed = 0
        self.recorded = False
        self.timeline = EdgeTimeline()
        self.cached_tokens = 0
        self.accepted: generation_pb2.Accepted | None = None
        self.finished: generation_pb2.Finished | None = None
        self.span: Span | None = None
        self.end_released = False
        self.ended_ms = 0.0
        self.cancel_requested = False
        self.detached_ms: float | None = None
        self.outlets: list[Outlet] = []
        self.waiters: list[asyncio.Future[None]] = []
        self.events: deque[tuple[float, str, str]] = deque(maxlen=MAX_EVENTS)

    @property
    def ended(self) -> bool:
        """True in an end state."""
        return self.state in ENDS

    @property
    def latest_estimate(self) -> Estimate | None:
        """What is known best of its length now."""
        return self.revised or self.estimate

    @property
    def attempts_made(self) -> int:
        """Attempts so far, those of earlier lives of the router included."""
        return self.prior_attempts + len(self.attempts)

    @property
    def tries(self) -> int:
        """Attempts so far that were not moves: those are no sign of trouble."""
        return self.attempts_made - self.moves_done

    @property
    def durability(self) -> int:
        """`paceline.router.v1.Durability`, resolved."""
        return self.spec.durability

    @property
    def placing(self) -> bool:
        """True while it has never been on an engine."""
        return self.state is State.ACCEPTED and not self.attempts_made

    def drop_input(self) -> None:
        """Let go of what only another attempt would need: retained requests are bounded by their output."""
        self.text = self.prompt_ids = b""

    def move_to(self, state: State) -> None:
        """Step to another state; to the same one is no step. Raises IllegalTransition."""
        if state is self.state:
            return
        if state not in NEXT[self.state]:
            raise IllegalTransition(self.request_id, self.state, state)
        self.state = state

    def note(self, now_ms: float, event: str, detail: str = "") -> None:
        """Remember an event for ExplainRequest; the oldest of more than MAX_EVENTS go."""
        self.events.append((now_ms - self.arrival.ms, event, detail))

    def notify(self, urgent: bool = False) -> None:
        """Tell the readers that there is something new."""
        for outlet in self.outlets:
            outlet.notify(urgent)

    async def wait_ended(self, timeout_s: float) -> bool:
        """Wait until it has ended; False when the time was over first."""
        if self.end_released:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            return False
        finally:
            if waiter in self.waiters:
                self.waiters.remove(waiter)
        return True

    def wake_waiters(self) -> None:
        """The end is out."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()

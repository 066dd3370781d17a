"""The calls of a task as a graph without text: what the predictor matches with patterns of earlier tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from paceline.predictor.v1 import predictor_pb2
from paceline_router.request import LiveRequest
from paceline_router.states import State

MAX_CALLS: Final = 256
"""Calls of a task that are kept; a longer one is not forecast and not learned from."""
MIN_TOOL_MS: Final = 250.0
"""A pause this long between a call and those it was built from is a tool at work; a shorter one is the client's own."""


@dataclass(slots=True)
class CallNode:
    """One call. `request` is set while it lives; numbers of a live call are read from it."""

    request_id: str
    parents: tuple[str, ...]
    stage: int
    actor: str
    tool_ms: float
    """Pause before it that counts as a tool, in a stage of its own; 0: none."""
    request: LiveRequest | None
    prompt_tokens: int = 0
    output_tokens: int = 0
    ended_ms: float = 0.0


class CallGraph:
    """Calls in the order of their arrival.

    A call stands one stage after those that it names as parents. Where none are named or known, it was built from the
    latest stage that has ended: a client asks side by side what does not depend on answers, and the rest in turn.
    """

    __slots__ = ("_calls", "known", "well")

    def __init__(self, *, known: bool = True) -> None:
        """`known`: False for a task whose earlier calls are not known any more."""
        self._calls: dict[str, CallNode] = {}
        self.known = known
        """False once it does not show the whole task."""
        self.well = True
        """False once a call ended otherwise than by its own answer."""

    def __len__(self) -> int:
        return len(self._calls)

    def place(self, request: LiveRequest, parents: Sequence[str], actor: str) -> CallNode:
        """Where a call that arrives stands. It is not added."""
        before = [self._calls[parent] for parent in parents if parent in self._calls]
        if not before:
            ended = [call for call in self._calls.values() if call.request is None]
            last = max((call.stage for call in ended), default=0)
            before = [call for call in ended if call.stage == last]
        stage, tool_ms = 0, 0.0
        if before:
            stage = 1 + max(call.stage for call in before)
            if all(call.request is None for call in before):
                pause_ms = request.arrival.ms - max(call.ended_ms for call in before)
                tool_ms = pause_ms if pause_ms >= MIN_TOOL_MS else 0.0
                stage += tool_ms > 0
        names = tuple(call.request_id for call in before)
        return CallNode(request.request_id, names, stage, actor, tool_ms, request)

    def add(self, node: CallNode) -> None:
        """A call of the task runs now. With more than MAX_CALLS the graph is given up, and its memory with it."""
        if len(self._calls) >= MAX_CALLS:
            self.give_up()
        if self.known:
            self._calls[node.request_id] = node

    def ended(self, request: LiveRequest, now_ms: float) -> None:
        """A call ended. One that was refused before work never was: its client may ask again."""
        if request.state is State.REJECTED:
            self._calls.pop(request.request_id, None)
            return
        self.well &= request.state is State.FINISHED
        node = self._calls.get(request.request_id)
        if node is not None and node.request is request:
            node.prompt_tokens, node.output_tokens = request.prompt_tokens, request.output.count
            node.request, node.ended_ms = None, now_ms

    def give_up(self) -> None:
        """From now on the graph is not known."""
        self.known = False
        self._calls.clear()

    def message(self, task_id: str, app: str, arriving: CallNode | None = None) -> predictor_pb2.TaskGraph:
        """The graph as the predictor reads it, with a call that is not added yet at its end."""
        graph = predictor_pb2.TaskGraph(task_id=task_id, app=app)
        for node in (*self._calls.values(), *(() if arriving is None else (arriving,))):
            parents = node.parents
            if node.tool_ms:
                tool = f"tool:{node.request_id}"
                graph.calls.add(
                    request_id=tool,
                    parent_request_ids=parents,
                    stage=node.stage - 1,
                    tool=True,
                    duration_ms=node.tool_ms,
                    ended=True,
                )
                parents = (tool,)
            live = node.request
            graph.calls.add(
                request_id=node.request_id,
                parent_request_ids=parents,
                stage=node.stage,
                actor=node.actor,
                prompt_tokens=node.prompt_tokens if live is None else live.prompt_tokens,
                output_tokens=node.output_tokens if live is None else live.output.count,
                ended=live is None,
            )
        return graph

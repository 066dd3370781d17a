"""Tasks: jobs of several calls under one deadline."""

import json
import logging
import math
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from paceline.predictor.v1 import predictor_pb2
from paceline_core.slo import OnMiss, SloClass
from paceline_router.clock import Clock
from paceline_router.durability import Durability
from paceline_router.request import LiveRequest
from paceline_router.task_graph import CallGraph, CallNode
from paceline_runtime.errors import ATTAINABLE_MS, PacelineError, Reason, invalid
from paceline_store.rows import StoredTask, TaskCallRow, TaskRow

log = logging.getLogger(__name__)

_MAX_ENDED: Final = 10_000
"""Ended tasks whose result is kept for an EndTask that comes late."""
_MAX_GRAPH_CALLS: Final = 200_000
"""Calls in the graphs of all open tasks; over it new tasks are neither forecast nor learned from."""


@dataclass(slots=True, eq=False)
class Task:
    """An open task. Times are the router's monotonic milliseconds; `e2e_ms` counts from `began_ms`."""

    task_id: str
    tenant: str
    app: str
    e2e_ms: float
    began_ms: float
    began_unix_ms: int
    active_ms: float
    calls: int = 0
    missed: bool = False
    dead: str = ""
    """Why it cannot be met any more; empty: it can, as far as is known."""
    attainable_ms: float = 0.0
    """Budget that it could have met, as estimated when it was given up; 0: not known."""
    stage: int = 0
    """The newest stage planned, and below when it has to end, on the monotonic clock."""
    stage_due_ms: float = math.inf
    last_end_ms: float = 0.0
    ending: bool = False
    live: set[LiveRequest] = field(default_factory=set)
    graph: CallGraph = field(default_factory=CallGraph)

    @property
    def deadline_ms(self) -> float:
        """When the task is due, on the monotonic clock."""
        return self.began_ms + self.e2e_ms


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """How a task went. `elapsed_ms`: from its begin to the end of its last call."""

    attained: bool
    calls: int
    elapsed_ms: float


class TaskBook:
    """Open tasks. A task that is never ended ends by itself when idle."""

    def __init__(
        self,
        durability: Durability,
        router_id: str,
        clock: Clock,
        *,
        default_e2e_ms: float,
        idle_ttl_s: float,
        max_tasks: int,
    ) -> None:
        self._durability = durability
        self._router_id = router_id
        self._clock = clock
        self._default_e2e_ms = default_e2e_ms
        self._idle_ttl_ms = idle_ttl_s * 1000
        self._max_tasks = max_tasks
        self._open: dict[str, Task] = {}
        self._ended: OrderedDict[str, tuple[Task, TaskEnd]] = OrderedDict()
        self._graph_calls = 0
        self.on_outcome: Callable[[predictor_pb2.TaskOutcome], None] = lambda outcome: None
        self.on_call_ended: Callable[[Task], None] = lambda task: None

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, task_id: str, e2e_ms: float, app: str, tenant: str) -> Task:
        """Begin a task now; its budget is the default when 0. Raises DUPLICATE_REQUEST, INVALID_SLO,
        QUEUE_FULL."""
        task_id = task_id or uuid.uuid4().hex
        if task_id in self._open:
            raise PacelineError(Reason.DUPLICATE_REQUEST, f"task {task_id!r} is open already")
        if not 0 <= e2e_ms < float("inf"):
            raise invalid(
                f"e2e_ms must be 0 or more, got {e2e_ms:g}", field="e2e_ms", reason=Reason.INVALID_SLO
            )
        if len(self._open) >= self._max_tasks:
            raise PacelineError(Reason.QUEUE_FULL, f"{len(self._open)} tasks are open, which is the limit")
        now_ms = self._clock.now_ms()
        task = Task(
            task_id,
            tenant,
            app,
            e2e_ms or self._default_e2e_ms,
            now_ms,
            self._clock.unix_ms(),
            active_ms=now_ms,
        )
        self._open[task_id] = task
        self._write(task, None)
        return task

    def arriving(self, request: LiveRequest, task_id: str) -> predictor_pb2.TaskGraph | None:
        """The task with a call that is about to join it, and that call's stage set; None when it is not known whole."""
        task = self._open.get(task_id)
        if task is None:
            graph, app = CallGraph(known=self._graph_calls < _MAX_GRAPH_CALLS), request.spec.app
        elif task.tenant == request.tenant:
            graph, app = task.graph, task.app or request.spec.app
        else:
            return None
        if not graph.known:
            return None
        node = _placed(graph, request)
        request.task_stage = node.stage
        return graph.message(task_id, app, node)

    def join(self, request: LiveRequest, declared_e2e_ms: float) -> Task:
        """A call of a task arrived; the first one of an unknown task begins it. Raises PERMISSION_DENIED, and
        SLO_UNATTAINABLE for a call that asks to be dropped with a task that is dead."""
        task = self._open.get(request.task_id)
        if task is None:
            task = self.begin(request.task_id, declared_e2e_ms, request.spec.app, request.tenant)
        elif task.tenant != request.tenant:
            raise PacelineError(
                Reason.PERMISSION_DENIED, f"task {request.task_id!r} belongs to another tenant"
            )
        if drops(request):
            self._check_alive(task, request)
        task.app = task.app or request.spec.app
        task.live.add(request)
        task.calls += 1
        task.active_ms = self._clock.now_ms()
        self._add_to_graph(task, request)
        declared = request.spec.slo.task
        self._durability.put(
            TaskCallRow(
                task.task_id,
                request.request_id,
                task.calls - 1,
                json.dumps(list(declared.parent_request_ids)),
            )
        )
        return task

    def of(self, request: LiveRequest) -> Task | None:
        """The open task that a call has joined."""
        task = self._open.get(request.task_id)
        return task if task is not None and request in task.live else None

    def doom(self, request: LiveRequest, attainable_ms: float) -> tuple[Task | None, list[LiveRequest]]:
        """A call was given up because its objective is out of reach, and its task with it. Returns the task and those
        of its live calls that ask to be dropped then. `attainable_ms`: of the task, from that call's arrival; 0: not
        known."""
        task = self._open.get(request.task_id)
        if task is None or task.tenant != request.tenant:
            return None, []
        task.missed = True
        if not task.dead:
            task.dead = f"its call {request.request_id!r} was given up"
            if attainable_ms:
                task.attainable_ms = request.arrival.ms - task.began_ms + attainable_ms
        return task, [call for call in task.live if drops(call)]

    def restore(self, stored: StoredTask) -> None:
        """Open a task again that an earlier life of this router had open. What its calls missed then is forgotten."""
        row, now_ms = stored.task, self._clock.now_ms()
        began_ms = now_ms - (self._clock.unix_ms() - row.began_unix_ms)
        task = Task(
            row.task_id, row.tenant, row.app, row.e2e_ms, began_ms, row.began_unix_ms, active_ms=now_ms
        )
        task.calls, task.last_end_ms = len(stored.calls), now_ms
        task.graph = CallGraph(known=False)
        self._open[row.task_id] = task

    def rejoin(self, request: LiveRequest) -> None:
        """A call that was adopted belongs to its task again."""
        task = self._open.get(request.task_id)
        if task is not None and task.tenant == request.tenant:
            task.live.add(request)

    def call_ended(self, request: LiveRequest, *, attained: bool) -> None:
        """A call of a task ended; the last one may end the task with it."""
        if request.slo.slo_class is not SloClass.TASK:
            return
        task = self._open.get(request.task_id)
        if task is None or request not in task.live:
            return
        task.live.discard(request)
        task.active_ms = task.last_end_ms = self._clock.now_ms()
        before = len(task.graph)
        task.graph.ended(request, task.last_end_ms)
        self._graph_calls += len(task.graph) - before
        task.missed |= not attained
        if request.slo.task_final:
            task.ending = True
        if task.ending and not task.live:
            self._end(task)
        else:
            self.on_call_ended(task)

    def end(self, task_id: str, tenant: str, *, cancelled: bool = False) -> tuple[Task, TaskEnd]:
        """End a task now, or read how it ended. Live calls count as missed. `cancelled`: its client gave it up.
        Raises NOT_FOUND, PERMISSION_DENIED."""
        task = self._open.get(task_id)
        ended = self._ended.get(task_id)
        if task is None and ended is not None:
            task = ended[0]
        if task is None:
            raise PacelineError(
                Reason.NOT_FOUND, f"no task {task_id!r}: it was never begun, or ended long ago"
            )
        if tenant and task.tenant != tenant:
            raise PacelineError(Reason.PERMISSION_DENIED, f"task {task_id!r} belongs to another tenant")
        return ended if ended is not None and task is ended[0] else (task, self._end(task, cancelled))

    def expire(self) -> None:
        """End tasks that were idle for too long."""
        oldest_ms = self._clock.now_ms() - self._idle_ttl_ms
        for task in [t for t in self._open.values() if not t.live and t.active_ms < oldest_ms]:
            log.info("a task ended by itself: idle", extra={"task_id": task.task_id, "calls": task.calls})
            self._end(task)

    def _check_alive(self, task: Task, request: LiveRequest) -> None:
        late_ms = self._clock.now_ms() - task.deadline_ms
        if not task.dead and late_ms > 0:
            task.dead, task.missed = f"its deadline passed {late_ms:.0f} ms ago", True
        if task.dead:
            if request.slo.task_final and not task.live:
                self._end(task)
            raise unattainable(task, request)

    def _add_to_graph(self, task: Task, request: LiveRequest) -> None:
        before = len(task.graph)
        if not before and self._graph_calls >= _MAX_GRAPH_CALLS:
            task.graph.give_up()
        task.graph.add(_placed(task.graph, request))
        self._graph_calls += len(task.graph) - before

    def _tell(self, task: Task, cancelled: bool) -> None:
        """Let the predictor learn from a task that ended."""
        graph = task.graph
        self._graph_calls -= len(graph)
        if graph.known and len(graph):
            self.on_outcome(
                predictor_pb2.TaskOutcome(
                    graph=graph.message(task.task_id, task.app),
                    completed=graph.well and not task.live and not cancelled,
                )
            )
        graph.give_up()

    def _end(self, task: Task, cancelled: bool = False) -> TaskEnd:
        del self._open[task.task_id]
        self._tell(task, cancelled)
        elapsed_ms = max(task.last_end_ms - task.began_ms, 0.0)
        attained = bool(task.calls) and not task.live and not task.missed and elapsed_ms <= task.e2e_ms
        self._write(task, attained)
        end = TaskEnd(attained, task.calls, elapsed_ms)
        self._ended[task.task_id] = (task, end)
        if len(self._ended) > _MAX_ENDED:
            self._ended.popitem(last=False)
        return end

    def _write(self, task: Task, attained: bool | None) -> None:
        self._durability.put(
            TaskRow(
                task.task_id,
                task.app,
                task.tenant,
                task.e2e_ms,
                task.began_unix_ms,
                ended_unix_ms=None if attained is None else self._clock.unix_ms(),
                attained=attained,
                calls=task.calls,
                router_id=self._router_id,
            )
        )


def drops(request: LiveRequest) -> bool:
    """True if the client wants an end as soon as the objective is out of reach."""
    return request.slo.on_miss is OnMiss.DROP


def unattainable(task: Task, request: LiveRequest) -> PacelineError:
    """Why a call of a dead task is not served."""
    message = (
        f"task {task.task_id!r} cannot be met any more: {task.dead}; its budget was {task.e2e_ms:.0f} ms"
    )
    metadata = {"task_id": task.task_id}
    if task.attainable_ms:
        message += f", {task.attainable_ms:.0f} ms would have been attainable"
        left_ms = task.began_ms + task.attainable_ms - request.arrival.ms
        metadata[ATTAINABLE_MS] = f"{max(left_ms, 0.0):.0f}"
    return PacelineError(Reason.SLO_UNATTAINABLE, message, metadata=metadata)


def _placed(graph: CallGraph, request: LiveRequest) -> CallNode:
    declared = request.spec.slo.task
    return graph.place(request, declared.parent_request_ids, declared.stage or request.spec.model)

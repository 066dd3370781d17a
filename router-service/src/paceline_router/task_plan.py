"""Deals the time that is left of a task out to its calls, anew at each event in its life."""

import asyncio
import logging
from typing import Final

from paceline.common.v1 import estimate_pb2
from paceline.predictor.v1 import predictor_pb2
from paceline_core.tasks.forecast import sub_deadline_ms
from paceline_router.clock import Clock
from paceline_router.forecast_link import ForecastLink, described
from paceline_router.request import LiveRequest
from paceline_router.tasks import Task, TaskBook

log = logging.getLogger(__name__)

LEAST_LEFT_MS: Final = 1.0
"""What a call is given whose stage should have ended: 0 would say nothing."""


class TaskPlanner:
    """Asks what tasks still need, and tells schedulers by when the calls that live are wanted.

    The calls of one stage get the same deadline, the end of the stage, so that short ones have the more laxity and the
    longest one sets the pace. Shares of an old forecast are never dealt out again: work done since would count twice.
    """

    def __init__(self, tasks: TaskBook, forecasts: ForecastLink, clock: Clock) -> None:
        self._tasks = tasks
        self._forecasts = forecasts
        self._clock = clock
        self._asking: dict[str, asyncio.Task[None]] = {}
        tasks.on_call_ended = self._call_ended

    async def arriving(self, request: LiveRequest, graph: predictor_pb2.TaskGraph) -> None:
        """Ask what the task of a call that arrives still needs. The call may join the task before or after."""
        forecast = await self._forecasts.forecast(graph)
        if forecast is None or request.ended:
            return
        request.forecast = forecast
        request.note(self._clock.now_ms(), "forecast", described(forecast))
        task = self._tasks.of(request)
        if task is not None:
            self._plan(task, forecast)

    def joined(self, request: LiveRequest, task: Task) -> None:
        """A call is in its task: plan it, and the others by what it changed."""
        if request.forecast is not None:
            self._plan(task, request.forecast)
        elif request.task_stage <= task.stage:
            request.call_due_ms = task.stage_due_ms

    async def close(self) -> None:
        """Cancel what is being asked."""
        asking = list(self._asking.values())
        for work in asking:
            work.cancel()
        if asking:
            await asyncio.wait(asking)

    def _call_ended(self, task: Task) -> None:
        """What a call saved or lost is dealt out to those that live beside it; of many that end together, once."""
        if task.live and task.graph.known and self._forecasts.answers and task.task_id not in self._asking:
            work = asyncio.create_task(self._ask(task), name=f"replan {task.task_id}")
            self._asking[task.task_id] = work
            work.add_done_callback(lambda done: self._asking.pop(task.task_id, None))

    async def _ask(self, task: Task) -> None:
        graph = task.graph.message(task.task_id, task.app)
        forecast = await self._forecasts.forecast(graph)
        if forecast is not None:
            self._plan(task, forecast)

    def _plan(self, task: Task, forecast: estimate_pb2.TaskForecast) -> None:
        now_ms = self._clock.now_ms()
        task.stage = max((call.task_stage for call in task.live), default=task.stage)
        task.stage_due_ms = sub_deadline_ms(now_ms, task.deadline_ms, forecast.stage_shares)
        for call in task.live:
            call.forecast = forecast
            call.call_due_ms = task.stage_due_ms
            if call.attempt is not None:
                call.attempt.engine.link.reestimate(
                    call.attempt.key,
                    forecast=forecast,
                    call_left_ms=max(task.stage_due_ms - now_ms, LEAST_LEFT_MS),
                    task_left_ms=task.deadline_ms - now_ms,
                )

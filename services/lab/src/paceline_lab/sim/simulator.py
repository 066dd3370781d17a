"""The simulation: one loop over arrivals, calls of tasks that come due, and ends of engine steps."""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from paceline_core.batch.policy import BatchPolicy, EstimateUse
from paceline_core.placement.policy import PlacementPolicy
from paceline_core.slo import SloClass
from paceline_core.tasks.forecast import sub_deadline_ms
from paceline_lab.sim.call import Ending, SimCall, SimJob
from paceline_lab.sim.engine import SimEngine
from paceline_lab.sim.engine_spec import EngineSpec
from paceline_lab.sim.estimates import Estimates
from paceline_lab.sim.fleet import Fleet
from paceline_lab.sim.knowledge import Knowledge, StageOutlook, true_outlooks
from paceline_lab.sim.moves import LOOK_MS, Mover, Moves
from paceline_lab.workloads.trace import Job, Workload

_PROGRESS_EVERY: Final = 2048
_NO_ENGINE: Final = -1


@dataclass(frozen=True, slots=True)
class Setting:
    """What a simulation runs."""

    workload: Workload
    engines: tuple[EngineSpec, ...]
    policy: Callable[[], BatchPolicy]
    estimates: Estimates
    knowledge: Knowledge
    placement: PlacementPolicy | None = None
    end_ms: float = float("inf")
    """The simulation stops here; what has not ended by then has not ended."""
    moves: Moves = Moves.OFF
    """Whether calls move where the placement policy asks for it."""
    true_stages: bool = False
    """Task forecasts from the truth; else from the training split."""
    skip: bool = True
    replan_every_step: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What became of the jobs, and what it took."""

    jobs: tuple[SimJob, ...]
    engines: tuple[SimEngine, ...]
    now_ms: float
    events: int
    moves: Mapping[str, int]
    """How many moves were begun, made, given up and refused."""


class Simulator:
    """Runs a setting once. Deterministic: everything random is in the workload and in the estimates."""

    def __init__(self, setting: Setting) -> None:
        workload = setting.workload
        truth = np.fromiter(
            (call.output_tokens for job in workload.jobs for call in job.calls), np.int64, workload.calls
        )
        self._setting = setting
        self._now = 0.0
        self._engines = tuple(
            SimEngine(
                number,
                spec,
                setting.policy(),
                setting.estimates,
                truth,
                skip=setting.skip,
                replan_every_step=setting.replan_every_step,
            )
            for number, spec in enumerate(setting.engines)
        )
        refreshed = setting.moves is not Moves.STALE
        self._fleet = Fleet(self._engines, setting.placement, setting.estimates, refreshed)
        self._mover = Mover(self._fleet, self._engines, self._again)
        self._moving = setting.moves is not Moves.OFF and self._fleet.rectifies
        for engine in self._engines:
            engine.on_landed = lambda call: self._mover.landed(call, self._now)
        self._oracle = setting.true_stages or any(
            engine.estimate_use is EstimateUse.TRUE for engine in self._engines
        )
        self._jobs: list[SimJob] = []
        self._events: list[tuple[float, int, int, SimCall | None]] = []
        """(time, order, engine or _NO_ENGINE, call): the end of an engine's run, a call that comes due, or, with
        neither engine nor call, a look for moves."""
        self._order = 0
        self._due: list[int] = [-1] * len(self._engines)
        """Order of the event that ends the run of each engine: older ones are void."""

    def run(self, on_progress: Callable[[float], None] = lambda _: None) -> Result:
        """To the end; `on_progress` gets simulated milliseconds now and then."""
        jobs, end_ms, events = self._setting.workload.jobs, self._setting.end_ms, self._events
        arrived = handled = first_key = 0
        if self._moving:
            self._push(LOOK_MS, _NO_ENGINE, None)
        while True:
            next_job = jobs[arrived].arrival_ms if arrived < len(jobs) else float("inf")
            next_event = events[0][0] if events else float("inf")
            moment = min(next_job, next_event)
            if moment > end_ms or moment == float("inf"):
                break
            self._now = moment
            handled += 1
            if handled % _PROGRESS_EVERY == 0:
                on_progress(moment)
            if next_job <= next_event:
                self._arrive(jobs[arrived], first_key)
                first_key += len(jobs[arrived].calls)
                arrived += 1
                continue
            _, order, number, call = heapq.heappop(events)
            if call is not None:
                self._release(call)
            elif number == _NO_ENGINE:
                self._mover.look(moment)
                if events or arrived < len(jobs):
                    self._push(moment + LOOK_MS, _NO_ENGINE, None)
            elif self._due[number] == order:
                self._boundary(self._engines[number])
        return Result(tuple(self._jobs), self._engines, self._now, handled, self._mover.counts)

    def _arrive(self, job: Job, first_key: int) -> None:
        sim = SimJob(job, first_key, left=len(job.calls))
        self._jobs.append(sim)
        for place, call in enumerate(job.calls):
            if call.parents:
                sim.waiting[place] = len(set(call.parents))
            else:
                self._come_due(sim, place)

    def _come_due(self, job: SimJob, place: int) -> None:
        """A call whose parents have ended waits for its tool, then it is released."""
        call = job.job.calls[place]
        made = SimCall(job.first_key + place, job, place, call, job.job.slo)
        job.calls[place] = made
        if call.tool_ms > 0:
            self._push(self._now + call.tool_ms, _NO_ENGINE, made)
        else:
            self._release(made)

    def _release(self, call: SimCall) -> None:
        job, now = call.job, self._now
        call.released_ms = now
        if job.dead:
            call.ending = Ending.CANCELLED
            return
        slo = job.job.slo
        call_due, task_due, rest = float("inf"), float("inf"), 0.0
        if slo.slo_class is SloClass.TASK:
            task_due = job.job.arrival_ms + slo.e2e_ms
            outlook = self._outlook(call)
            rest = outlook.rest_tokens
            call_due = sub_deadline_ms(now, task_due - outlook.rest_tool_ms, (outlook.share,))
            call.slo = replace(slo, task_final=rest <= 0)
        engine = self._fleet.choose(call, now, call_due)
        if engine is None:
            call.ending = Ending.TOO_LONG
            self._give_up(job)
            return
        engine.add(call, now, call_due, task_due, rest)
        self._again(engine)

    def _outlook(self, call: SimCall) -> StageOutlook:
        if self._oracle:
            return true_outlooks(call.job.job)[call.call.stage]
        return self._setting.knowledge.outlook(call.job.job.app, call.call.stage)

    def _again(self, engine: SimEngine) -> None:
        """An engine has something new to plan for."""
        ends_ms = engine.cut(self._now)
        if ends_ms is None:
            self._begin(engine)
        else:
            self._schedule(engine, ends_ms)

    def _boundary(self, engine: SimEngine) -> None:
        for call in engine.finish(self._now):
            if call.moved:
                continue
            self._mover.drop(call, self._now)
            self._fleet.ended(call, self._now)
            if call.outcome is not None and call.ending is None:
                self._ended(call)
        self._begin(engine)

    def _begin(self, engine: SimEngine) -> None:
        ends_ms = engine.begin(self._now)
        if ends_ms is None:
            self._due[engine.number] = -1
        else:
            self._schedule(engine, ends_ms)
        while engine.given_up:
            call = engine.given_up.pop()
            if call.origin is not None:
                self._mover.drop(call.origin, self._now, planned=True)
                continue
            if call.moved:
                continue
            self._mover.drop(call, self._now)
            call.ending = Ending.SHED
            self._fleet.ended(call, self._now)
            self._give_up(call.job)

    def _ended(self, call: SimCall) -> None:
        call.ending = Ending.DONE
        job = call.job
        job.left -= 1
        job.last_ms = self._now
        if not job.waiting or job.dead:
            return
        calls = job.job.calls
        for place in [place for place in job.waiting if call.place in calls[place].parents]:
            if place not in job.waiting:
                break  # a sibling was given up as it came due, and the task with it
            job.waiting[place] -= 1
            if job.waiting[place] == 0:
                del job.waiting[place]
                self._come_due(job, place)

    def _give_up(self, job: SimJob) -> None:
        """One call of it will never end: nothing of it is worth a step any more."""
        if job.dead:
            return
        job.dead = True
        job.waiting.clear()
        for call in job.calls.values():
            if call.ending is None and call.engine >= 0 and call.outcome is None:
                call.ending = Ending.CANCELLED
                self._mover.drop(call, self._now)
                engine = self._engines[call.engine]
                engine.cancel(call)
                self._fleet.ended(call, self._now)
                self._again(engine)

    def _schedule(self, engine: SimEngine, ends_ms: float) -> None:
        self._due[engine.number] = self._push(ends_ms, engine.number, None)

    def _push(self, moment_ms: float, engine: int, call: SimCall | None) -> int:
        self._order += 1
        heapq.heappush(self._events, (moment_ms, self._order, engine, call))
        return self._order


def simulate(setting: Setting, on_progress: Callable[[float], None] = lambda _: None) -> Result:
    """Run a setting."""
    return Simulator(setting).run(on_progress)

"""The best that any schedule can do on a tiny trace, found exactly: an integer program, solved by branch and bound.

One engine whose every step takes the same time, back to back from time 0, with at most `max_batch` sequences a step. A
call of p prompt and n output tokens needs ceil(p / chunk) steps of prefill, the last of which brings the first token,
and n - 1 steps more, each after the one before. Work begins with the first step that starts at or after the job's
arrival (a later call: after its last parent's last step and its tool). This is the engine of the roofline while
memory bounds it and contexts are short; on a grid of 1 step nothing else is idealised. Ten jobs of some tens of steps
are meant: the number of integers is that of jobs times steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paceline_core.slo import SloClass
from paceline_lab.bounds.program import BoundError, MissingSolverError, Program
from paceline_lab.workloads.trace import Job

MAX_INTEGERS = 20_000
_TIME_LIMIT_S = 60.0
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class SlotEngine:
    """An engine of equal steps."""

    step_ms: float
    max_batch: int
    prefill_chunk_tokens: int

    def units(self, prompt_tokens: int, output_tokens: int) -> int:
        """Steps that a call takes."""
        return self.prefill_steps(prompt_tokens) + output_tokens - 1

    def prefill_steps(self, prompt_tokens: int) -> int:
        """Steps up to and with the first token."""
        return math.ceil(prompt_tokens / self.prefill_chunk_tokens)

    def first_step(self, time_ms: float) -> int:
        """The first step that starts at or after a time."""
        return math.ceil(time_ms / self.step_ms - _ROUNDING)

    def steps_by(self, time_ms: float) -> int:
        """Steps that end by a time."""
        return math.floor(time_ms / self.step_ms + _ROUNDING)


@dataclass(frozen=True, slots=True)
class Optimum:
    """Greatest totals, each by a schedule of its own."""

    tokens_1_1: float
    tokens_1_8: float
    requests: float


def clairvoyant(jobs: Sequence[Job], engine: SlotEngine) -> Optimum:
    """The optimum over all schedules that know everything. Best effort counts for nothing.

    Raises ValueError for a trace that is too large, MissingSolverError, and BoundError when the time limit passes.
    """
    model = _Model([job for job in jobs if job.slo.slo_class is not SloClass.BEST_EFFORT], engine)
    return Optimum(model.best(1.0, 1.0, 0.0), model.best(1.0, 8.0, 0.0), model.best(0.0, 0.0, 1.0))


class _Model:
    """x[call, step]: the call is in the step. Of a job z, of a stream's token v and of a parent f: done in time."""

    def __init__(self, jobs: Sequence[Job], engine: SlotEngine) -> None:
        self._engine = engine
        self._program = Program()
        self._worth: list[tuple[int, float, float, float]] = []
        """Variable, prompt tokens, output tokens and requests that it brings."""
        self._by_step: dict[int, list[int]] = {}
        for job in jobs:
            if job.slo.slo_class is SloClass.LATENCY:
                self._add_stream(job)
            else:
                self._add_whole(job)
        for variables in self._by_step.values():
            self._at_most(float(engine.max_batch), *[(variable, 1.0) for variable in variables])

    def best(self, prompt: float, output: float, request: float) -> float:
        """The greatest total at these weights."""
        program = self._program
        if not self._worth:
            return 0.0
        if program.variables > MAX_INTEGERS:
            raise ValueError(f"{program.variables} integers: the clairvoyant solver is for tiny traces")
        try:
            from scipy import optimize
        except ModuleNotFoundError as error:
            raise MissingSolverError from error
        worth = np.zeros(program.variables)
        for variable, prompts, outputs, requests in self._worth:
            worth[variable] += prompt * prompts + output * outputs + request * requests
        result: Any = optimize.milp(
            -worth,
            integrality=np.ones(program.variables),
            bounds=optimize.Bounds(0, program.upper),
            constraints=optimize.LinearConstraint(program.matrix(), ub=program.limits),
            options={"time_limit": _TIME_LIMIT_S, "mip_rel_gap": 0.0},
        )
        if result.status != 0:
            raise BoundError(f"the solver ended without an optimum: {result.message}")
        return float(-result.fun)

    def _add_stream(self, job: Job) -> None:
        engine, call = self._engine, job.calls[0]
        prefill = engine.prefill_steps(call.prompt_tokens)
        ends = [
            engine.steps_by(job.arrival_ms + job.slo.token_due_ms(index))
            for index in range(call.output_tokens)
        ]
        first = engine.first_step(job.arrival_ms + call.tool_ms)
        steps = self._steps(first, ends[-1])
        tokens = [int(v) for v in self._program.add_variables(call.output_tokens, 1.0)]
        for index, token in enumerate(tokens):
            self._done(token, prefill + index, steps[: max(ends[index] - first, 0)])
            self._worth.append((token, 0.0 if index else float(call.prompt_tokens), 1.0, 0.0))
        attained = int(self._program.add_variables(1, 1.0)[0])
        self._at_most(0.0, (attained, float(len(tokens))), *[(token, -1.0) for token in tokens])
        self._worth.append((attained, 0.0, 0.0, 1.0))

    def _add_whole(self, job: Job) -> None:
        engine = self._engine
        end = engine.steps_by(job.arrival_ms + job.slo.e2e_ms)
        served = int(self._program.add_variables(1, 1.0)[0])
        self._worth.append((served, float(job.prompt_tokens), float(job.output_tokens), 1.0))
        steps_of: list[tuple[int, list[int]]] = []
        for call in job.calls:
            first = engine.first_step(job.arrival_ms + call.tool_ms)
            steps = self._steps(first, end)
            units = engine.units(call.prompt_tokens, call.output_tokens)
            self._done(served, units, steps)
            for parent in call.parents:
                begin, before = steps_of[parent]
                needed = engine.units(job.calls[parent].prompt_tokens, job.calls[parent].output_tokens)
                for place, step in enumerate(steps):
                    # Steps of the parent that end, with the tool after them, before this one starts.
                    last = engine.steps_by((first + place) * engine.step_ms - call.tool_ms)
                    over = int(self._program.add_variables(1, 1.0)[0])
                    self._done(over, needed, before[: max(last - begin, 0)])
                    self._at_most(0.0, (step, 1.0), (over, -1.0))
            steps_of.append((first, steps))

    def _steps(self, first: int, end: int) -> list[int]:
        """A call's variables for the steps from `first` up to `end`."""
        variables = [int(v) for v in self._program.add_variables(max(end - first, 0), 1.0)]
        for place, variable in enumerate(variables):
            self._by_step.setdefault(first + place, []).append(variable)
        return variables

    def _done(self, flag: int, units: int, steps: Sequence[int]) -> None:
        """`flag` may be 1 when `units` of the steps were taken."""
        self._at_most(0.0, (flag, float(units)), *[(step, -1.0) for step in steps])

    def _at_most(self, limit: float, *terms: tuple[int, float]) -> None:
        row = self._program.add_rows(limit)
        self._program.put(row, [variable for variable, _ in terms], [value for _, value in terms])

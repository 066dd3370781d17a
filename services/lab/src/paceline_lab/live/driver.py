"""Sends jobs when they are due, whatever became of earlier ones, and records what comes back."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paceline_core.slo import Slo
from paceline_lab.live.client import CallResult, CallSpec, Client
from paceline_lab.live.objectives import Objectives
from paceline_lab.live.score import CallRecord, JobRecord
from paceline_lab.live.workload import Job
from paceline_lab.prompts.model import Message, TaskPrompt

# Answers go into later prompts of a task cut to this, so that a chain of them stays inside a 2048-token context.
ANSWER_LIMIT_CHARS = 1200
_PROGRESS_S = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands."""

    elapsed_s: float
    total_s: float
    arrived: int
    live: int
    ended: int
    failed: int
    output_tokens: int


class Driver:
    """Runs jobs against one client."""

    def __init__(self, client: Client, objectives: Objectives, *, run_id: str) -> None:
        self._client = client
        self._objectives = objectives
        self._run_id = run_id
        self._partial: dict[int, tuple[Slo, list[_Call]]] = {}
        self._output_tokens = 0
        self.lag_ms: list[float] = []
        """How late each job was sent: the generator's own fault."""
        self.errors: dict[str, int] = {}
        """Failed calls by what the server said (without request ids), at most 20 kinds."""

    async def run(
        self,
        jobs: Sequence[Job],
        duration_s: float,
        grace_s: float,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> list[JobRecord]:
        """All jobs, open loop; what has not ended `grace_s` after `duration_s` is cancelled and recorded as it is."""
        began = time.perf_counter() + 0.05
        records: dict[int, JobRecord] = {}
        tasks: dict[asyncio.Task[JobRecord], Job] = {}
        reporter = asyncio.create_task(self._report(began, duration_s + grace_s, tasks, on_progress))
        try:
            for job in jobs:
                await asyncio.sleep(max(0.0, began + job.arrival_s - time.perf_counter()))
                self.lag_ms.append((time.perf_counter() - began - job.arrival_s) * 1000)
                tasks[asyncio.create_task(self.run_job(job, began=began))] = job
            left_s = began + duration_s + grace_s - time.perf_counter()
            if tasks:
                await asyncio.wait(tasks, timeout=max(0.0, left_s))
        finally:
            reporter.cancel()
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
        for task, job in tasks.items():
            records[job.number] = self._unfinished(job, began) if task.cancelled() else task.result()
        return [records[job.number] for job in jobs]

    async def run_job(self, job: Job, *, began: float) -> JobRecord:
        """One job, from its scheduled arrival on; `began` is the start of the run on `time.perf_counter`."""
        slo = self._objectives.slo(job.slo_class, job.work, f"{self._run_id}-{job.number}")
        calls: list[_Call] = []
        self._partial[job.number] = (slo, calls)
        if isinstance(job.work, TaskPrompt):
            await self._run_task(job, job.work, slo, calls)
            expected = len(job.work.calls)
        else:
            await self._call(
                job, 0, "", job.work.messages, job.work.max_tokens, slo, job.work.family.value, (), calls
            )
            expected = 1
        del self._partial[job.number]
        completed = len(calls) == expected and all(call.result.ended_well for call in calls)
        return _record(job, slo, calls, began, completed)

    async def _run_task(self, job: Job, task: TaskPrompt, slo: Slo, calls: list["_Call"]) -> None:
        """Stages one after the other, calls of a stage side by side; ends at the first call that fails."""
        answers: dict[str, str] = {}
        ids: dict[str, str] = {}
        for number in range(task.stages):
            stage = task.stage(number)
            last = number == task.stages - 1
            async with asyncio.TaskGroup() as group:
                running = {}
                for call in stage:
                    text = call.render(answers, limit_chars=ANSWER_LIMIT_CHARS)
                    parents = tuple(ids[name] for name in call.references)
                    final = replace(slo, task_final=last and call is stage[-1])
                    running[call.name] = group.create_task(
                        self._call(
                            job, number, call.name, (Message("user", text),), call.max_tokens, final, task.prompt_id,
                            parents, calls,
                        )
                    )  # fmt: skip
            for name, done in running.items():
                made = done.result()
                if not made.result.ended_well:
                    return
                answers[name], ids[name] = made.result.answer, made.request_id

    async def _call(
        self,
        job: Job,
        stage: int,
        name: str,
        messages: Sequence[Message],
        max_tokens: int,
        slo: Slo,
        app: str,
        parents: Sequence[str],
        calls: list["_Call"],
    ) -> "_Call":
        suffix = f"-{name}" if name else ""
        made = _Call(f"{self._run_id}-{job.number}{suffix}", stage, time.perf_counter(), CallResult())
        calls.append(made)
        spec = CallSpec(made.request_id, messages, max_tokens, slo, app, stage=name, parents=parents)
        await self._client.call(spec, made.result)
        self._output_tokens += len(made.result.token_s)
        if not made.result.ended_well:
            self._note_error(made.result)
        return made

    def _note_error(self, result: CallResult) -> None:
        kind = (result.error or result.finish or "no answer").split(":")[0][:60]
        if kind in self.errors or len(self.errors) < 20:
            self.errors[kind] = self.errors.get(kind, 0) + 1

    def _unfinished(self, job: Job, began: float) -> JobRecord:
        slo, calls = self._partial.get(job.number) or (
            self._objectives.slo(job.slo_class, job.work, f"{self._run_id}-{job.number}"),
            [],
        )
        return _record(job, slo, calls, began, completed=False)

    async def _report(
        self,
        began: float,
        total_s: float,
        tasks: dict[asyncio.Task[JobRecord], Job],
        on_progress: Callable[[Progress], None],
    ) -> None:
        while True:
            ended = [task for task in tasks if task.done() and not task.cancelled()]
            failed = sum(not task.result().completed for task in ended if task.exception() is None)
            live = len(tasks) - len(ended)
            now = time.perf_counter() - began
            on_progress(Progress(now, total_s, len(tasks), live, len(ended), failed, self._output_tokens))
            await asyncio.sleep(_PROGRESS_S)


@dataclass(slots=True)
class _Call:
    """A call under way."""

    request_id: str
    stage: int
    sent_s: float
    result: CallResult


def _record(job: Job, slo: Slo, calls: list[_Call], began: float, completed: bool) -> JobRecord:
    start = began + job.arrival_s

    def since_ms(moment: float) -> float:
        return (moment - start) * 1000

    records = tuple(
        CallRecord(
            request_id=call.request_id,
            prompt_tokens=call.result.prompt_tokens,
            token_ms=(np.array(call.result.token_s) - start) * 1000,
            sent_ms=since_ms(call.sent_s),
            ended_ms=since_ms(_last_s(call.result)) if call.result.ended_well else None,
            finish=call.result.finish or call.result.error or "unfinished",
            engine_id=call.result.engine_id,
            attempts=call.result.attempts,
            stage=call.stage,
        )
        for call in calls
    )
    return JobRecord(job.number, job.arrival_s, slo, records, completed)


def _last_s(result: CallResult) -> float:
    """The last token; the end itself, for an answer without tokens."""
    return result.token_s[-1] if result.token_s else result.ended_s

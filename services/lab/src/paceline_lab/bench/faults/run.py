"""The run: find out the undisturbed answers, then each durability mode under its faults, then count."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from paceline.router.v1 import generation_pb2
from paceline_lab.bench.faults.chaos import Chaos, Database, Parts
from paceline_lab.bench.faults.client import CarefulClient
from paceline_lab.bench.faults.leaks import leftovers
from paceline_lab.bench.faults.plan import MODES, FaultBenchError, FaultPlan, schedule
from paceline_lab.bench.faults.tally import described, row_of
from paceline_lab.bench.faults.verdict import Answer
from paceline_lab.bench.faults.work import Behaviour, Call, make_call, specs, undisturbed_call

_DESCRIBED = 20
"""Damaged requests that the report tells of."""
_HELD_TOKENS = 8
"""A client that is held has an answer of at least so many tokens, if there is one."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Line:
    """What is tested."""

    parts: Parts
    schedulers: Mapping[str, str]
    """Name to address."""
    database: Database


async def bench_faults(
    plan: FaultPlan, line: Line, say: Callable[[str], None], progress: Progress
) -> dict[str, Any]:
    """Run all of it. `damaged` is 0 when no client could tell that anything happened, and nothing leaked.

    Raises FaultBenchError when the run cannot be judged.
    """
    wanted = specs(plan)
    crowd = Crowd(plan, line, say, progress)
    await crowd.chaos.settled()
    answers = await crowd.undisturbed(wanted)
    rows, worst = [], []
    for mode in MODES:
        calls = await crowd.disturbed(mode, wanted, answers)
        leaked = await leftovers(line.parts.router, line.schedulers, line.database, plan.patience_s)
        rows.append(row_of(mode, calls, leaked, crowd.chaos.records))
        worst += [told for call in calls if (told := described(call)) is not None]
    own = line.database.own
    return {
        "store": line.database.name,
        "store_faults": "made" if own else "left out: the database is not the benchmark's own",
        "damaged": sum(_damage(row) for row in rows),
        "rows": rows,
        "damaged_requests": worst[:_DESCRIBED],
        "faults": [record.as_dict() for record in crowd.chaos.records],
        "plan": asdict(plan),
    }


def _damage(row: Mapping[str, Any]) -> int:
    tokens = sum(row[name] for name in ("failed_requests", "lost", "duplicated", "spliced", "reordered"))
    return int(tokens + sum(row["leaked"].values()))


class Crowd:
    """The clients of a run, and the one who breaks things among them."""

    def __init__(self, plan: FaultPlan, line: Line, say: Callable[[str], None], progress: Progress) -> None:
        self._plan = plan
        self._line = line
        self._say = say
        self._progress = progress
        self._name = f"fault-{random.SystemRandom().getrandbits(32):08x}"
        self._clients: list[CarefulClient] = []
        self._live: dict[Call, None] = {}
        self._changed = asyncio.Event()
        self._begun = 0
        self._limit = 0
        self._holding = False
        self.chaos = Chaos(plan, line.parts, line.database, self._cut)

    async def undisturbed(self, wanted: Sequence[generation_pb2.GenerationSpec]) -> list[Answer]:
        """What each request gets when nothing happens. Raises FaultBenchError when one gets nothing."""
        calls = [undisturbed_call(spec, f"{self._name}-calm-{number}") for number, spec in enumerate(wanted)]
        self._limit = len(calls)
        async with self._sessions():
            await self._all(lambda number: calls[number], len(calls), "undisturbed")
        return [_answer_of(call) for call in calls]

    async def disturbed(
        self, mode: str, wanted: Sequence[generation_pb2.GenerationSpec], answers: Sequence[Answer]
    ) -> list[Call]:
        """The requests of one durability mode, under its faults."""
        count, calls = self._plan.share(mode), []
        rng = random.Random(f"{self._plan.seed} {mode} requests")
        long = [number for number, answer in enumerate(answers) if len(answer.ids) >= _HELD_TOKENS]

        def make(number: int) -> Call:
            held = self._holding and sum(map(_is_held, self._live)) < self._plan.held
            which = rng.choice(long) if held and long else rng.randrange(len(wanted))
            name = f"{self._name}-{mode}-{number}"
            call = make_call(wanted[which], answers[which], mode, name, held=held)
            calls.append(call)
            return call

        self._holding, self._begun, self._limit = True, 0, 0
        async with self._sessions(), asyncio.TaskGroup() as group:
            group.create_task(self._break_things(mode, count))
            await self._all(make, count, mode)
        return calls

    async def _all(self, make: Callable[[int], Call], count: int, stage: str) -> None:
        """Have `count` calls made and followed to their ends, a bounded number at once."""
        numbers, done = iter(range(count)), 0

        async def work() -> None:
            nonlocal done
            for number in numbers:
                await self._until(lambda number=number: number < self._limit)  # type: ignore[misc]
                call = make(number)
                self._begun += 1
                await self._follow(call, self._clients[number % len(self._clients)])
                done += 1
                self._progress(stage, done, count)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._plan.at_once):
                group.create_task(work())

    async def _follow(self, call: Call, client: CarefulClient) -> None:
        self._live[call] = None
        client.begin(call)
        try:
            async with asyncio.timeout(self._plan.patience_s):
                await call.done.wait()
        except TimeoutError:
            client.drop(call, f"no end within {self._plan.patience_s:g} s")
        del self._live[call]
        self._wake()

    async def _break_things(self, mode: str, count: int) -> None:
        """One planned fault after the other. The next one waits for its number of requests, and for the held clients
        to stand in the middle of their streams. Requests of a later fault do not begin before."""
        planned = schedule(self._plan, mode, own_store=self._line.database.own)
        ends = [due.at_request for due in planned[1:]] + [count]
        for place, due in enumerate(planned):
            self._limit = min(due.at_request + self._plan.at_once, ends[place])
            self._wake()
            await self._until(lambda due=due: self._begun >= due.at_request and self._ripe())  # type: ignore[misc]
            self._holding = place < len(planned) - 1
            streaming = sum(0 < call.count < _wanted(call) for call in self._live)
            record = await self.chaos.inject(
                due.fault, mode, self._begun, len(self._live), streaming, self._release
            )
            who = ", ".join(f"{name} (pid {pid})" for name, pid in record.hit.items())
            self._say(
                f"{record.at_s:6.1f} s  {mode:5s} {due.fault.value}{': ' + who if who else ''}; {record.live} under "
                f"way, {record.streaming} of them streaming; all back after {record.back_s:.1f} s"
            )
        self._holding, self._limit = False, count
        self._wake()

    def _ripe(self) -> bool:
        waiting = sum(call.waits for call in self._live)
        nothing_else_moves = self._begun >= self._limit and waiting == len(self._live)
        return waiting >= self._plan.held or nothing_else_moves

    def _release(self) -> None:
        for client in self._clients:
            client.release()

    def _cut(self, rng: random.Random) -> None:
        for client in rng.sample(self._clients, max(1, len(self._clients) // 2)):
            client.cut()

    @asynccontextmanager
    async def _sessions(self) -> AsyncIterator[None]:
        router = self._line.parts.router
        self._clients = [CarefulClient(router, self._wake) for _ in range(self._plan.sessions)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.run(), name="careful client") for client in self._clients]
            yield
            for task in tasks:
                task.cancel()

    def _wake(self) -> None:
        self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


def _is_held(call: Call) -> bool:
    return call.behaviour is Behaviour.HELD and call.token_limit > 0


def _wanted(call: Call) -> int:
    return len(call.answer.ids) if call.answer is not None else 0


def _answer_of(call: Call) -> Answer:
    if call.finished is None or call.finished.HasField("failure"):
        why = call.problem or (call.finished.failure.message if call.finished is not None else "no end")
        raise FaultBenchError(f"an undisturbed request did not end well: {why}")
    return Answer(tuple(call.received.ids), bytes(call.received.text), call.finished.finish_reason)

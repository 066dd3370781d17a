"""Takes attempts into the engine. One that comes with a KV ticket pulls the state first, in the background."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from paceline.common.v1 import attempt_pb2
from paceline_executor.contract import NO_IDS, AttemptSpec, AttemptState, Engine, Ids, LiveAttempt
from paceline_executor.pull import PullError

_log = logging.getLogger(__name__)
# Past this many waiting pulls a replay is sooner done than its turn would come.
_MAX_WAITING = 64
# Tokenizing more text than this takes long enough to leave the event loop for.
_LONG_TEXT_CHARS = 4096

Pull = Callable[[attempt_pb2.KvTicket], Awaitable[bytes]]


@dataclass
class _Pulling:
    spec: AttemptSpec
    task: "asyncio.Task[None] | None" = None
    forced: list[tuple[int, Ids, bool]] = field(default_factory=list)


class Landing:
    """The way in. It outlives control streams, because a pull does."""

    def __init__(self, engine: Engine, pull: Pull, *, max_pulls: int) -> None:
        self._engine = engine
        self._pull = pull
        self._turn = asyncio.Semaphore(max_pulls)
        self._pulling: dict[int, _Pulling] = {}
        self.counters: Counter[str] = Counter()
        """States pulled, and pulls given up by reason: the attempt replays instead."""

    async def add(self, spec: AttemptSpec, ticket: attempt_pb2.KvTicket | None) -> None:
        """Take an attempt in, at once or when its state has come."""
        if spec.attempt_key in self._pulling:
            return
        if ticket is None:
            await self._hand_over(spec, None)
        elif len(self._pulling) >= _MAX_WAITING:
            self._give_up(spec, "TOO_MANY_PULLS", f"{_MAX_WAITING} are waiting")
            await self._hand_over(spec, None)
        else:
            entry = self._pulling[spec.attempt_key] = _Pulling(spec)
            entry.task = asyncio.create_task(self._land(entry, ticket), name=f"pull-{spec.attempt_key}")

    def cancel(self, attempt_key: int) -> None:
        """End an attempt wherever it is."""
        entry = self._pulling.pop(attempt_key, None)
        if entry is not None:
            if entry.task is not None:
                entry.task.cancel()
            # Through the engine, so that it is confirmed like any other.
            self._engine.add(entry.spec)
        self._engine.cancel(attempt_key)

    def extend_forced(self, attempt_key: int, first_index: int, ids: Ids, *, final: bool) -> None:
        """Pass forced ids on, or keep them until the attempt has landed."""
        entry = self._pulling.get(attempt_key)
        if entry is not None:
            entry.forced.append((first_index, ids, final))
        else:
            self._engine.extend_forced(attempt_key, first_index, ids, final=final)

    def waiting(self) -> list[LiveAttempt]:
        """Attempts whose state has not come yet, for the live table."""
        return [
            LiveAttempt(entry.spec, AttemptState.QUEUED, NO_IDS, 0, len(entry.spec.forced_ids))
            for entry in self._pulling.values()
        ]

    async def close(self) -> None:
        """Give all pulls up."""
        tasks = [entry.task for entry in self._pulling.values() if entry.task is not None]
        self._pulling.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _land(self, entry: _Pulling, ticket: attempt_pb2.KvTicket) -> None:
        spec = entry.spec
        state: bytes | None = None
        try:
            try:
                async with self._turn:
                    state = await self._pull(ticket)
                self.counters["pulled"] += 1
            except PullError as error:
                self._give_up(spec, error.reason, str(error))
            await self._hand_over(spec, state)
        finally:
            # Not before the engine knows it: forced ids and cancels go one way or the other.
            landed = self._pulling.pop(spec.attempt_key, None) is not None
        if landed:
            for first_index, ids, final in entry.forced:
                self._engine.extend_forced(spec.attempt_key, first_index, ids, final=final)

    async def _hand_over(self, spec: AttemptSpec, state: bytes | None) -> None:
        if state is None and len(spec.prompt_text or "") <= _LONG_TEXT_CHARS:
            self._engine.add(spec)
        else:
            await asyncio.to_thread(self._engine.add, spec, state)

    def _give_up(self, spec: AttemptSpec, reason: str, message: str) -> None:
        self.counters[f"replayed:{reason}"] += 1
        _log.warning(
            "no KV state, replaying",
            extra={"attempt_key": spec.attempt_key, "reason": reason, "cause": message},
        )

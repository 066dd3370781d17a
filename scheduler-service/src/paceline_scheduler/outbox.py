"""What goes down to the executor next: commands merged until the stream can take them."""

import asyncio
from collections import deque

from paceline.common.v1 import attempt_pb2
from paceline.executor.v1 import executor_pb2

_ADDS_BYTES = 4 * 1024 * 1024
"""Prompts sent in one message, but for the last one: well below the transport's largest message."""


class CommandOutbox:
    """Merges commands into one batch. Bounded by the live table: an attempt is in it at most once per kind, and a
    newer plan replaces an older one."""

    def __init__(self) -> None:
        self._commands = executor_pb2.Commands()
        self._adds: deque[executor_pb2.AddAttempt] = deque()
        self._cancels: dict[int, None] = {}
        self._releases: dict[int, None] = {}
        self._tickets: dict[int, None] = {}
        self._republish: dict[int, int] = {}
        self._full = False
        self._wake = asyncio.Event()

    def add(self, add: executor_pb2.AddAttempt) -> None:
        """Take an attempt in."""
        self._adds.append(add)
        self._touch()

    def cancel(self, key: int) -> None:
        """End an attempt."""
        self._cancels[key] = None
        self._touch()

    def release(self, key: int) -> None:
        """Forget an ended attempt."""
        self._releases[key] = None
        self._touch()

    def republish(self, key: int, from_index: int) -> None:
        """Publish tokens again; the lowest index asked for wins."""
        self._republish[key] = min(from_index, self._republish.get(key, from_index))
        self._touch()

    def forced(self, forced: attempt_pb2.ForcedTokens) -> None:
        """Hand forced ids to an attempt that awaits them."""
        self._commands.forced.append(forced)
        self._touch()

    def ticket(self, key: int) -> None:
        """Issue a KV ticket."""
        self._tickets[key] = None
        self._touch()

    def plan(self, plan: executor_pb2.Plan) -> None:
        """Replace the plan."""
        self._commands.plan.CopyFrom(plan)
        self._touch()

    def clear(self) -> None:
        """Forget everything: the stream is gone, and the next one starts from the live table."""
        self._commands.Clear()
        self._adds.clear()
        for pending in (self._cancels, self._releases, self._tickets, self._republish):
            pending.clear()
        self._full = False
        self._wake.clear()

    async def take(self) -> executor_pb2.RunRequest:
        """Wait until there is something, and take it all; of very many prompts, as many as a message holds."""
        await self._wake.wait()
        adds: list[executor_pb2.AddAttempt] = []
        size_bytes = 0
        while self._adds and size_bytes < _ADDS_BYTES:
            adds.append(self._adds.popleft())
            size_bytes += adds[-1].ByteSize()
        if self._adds:
            # What names an attempt must not come before the command that takes it in: only prompts for now.
            return executor_pb2.RunRequest(commands=executor_pb2.Commands(adds=adds))
        self._wake.clear()
        self._full = False
        commands, self._commands = self._commands, executor_pb2.Commands()
        commands.adds.extend(adds)
        commands.cancels.extend(self._cancels)
        commands.releases.extend(self._releases)
        commands.tickets.extend(self._tickets)
        for key, index in self._republish.items():
            commands.republishes.add(attempt_key=key, from_index=index)
        for pending in (self._cancels, self._releases, self._tickets, self._republish):
            pending.clear()
        return executor_pb2.RunRequest(commands=commands)

    def flush(self) -> None:
        """Let the writer take what is there. Called once per turn of the loop, so that a turn is one message."""
        if self._full:
            self._wake.set()

    def _touch(self) -> None:
        self._full = True

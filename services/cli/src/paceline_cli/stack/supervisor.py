"""Keeps the processes of the stack alive, and ends them in order."""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from itertools import groupby

import psutil

from paceline_cli.stack.backoff import Backoff
from paceline_cli.stack.child import Child, ChildSpec, ChildState
from paceline_cli.stack.logs import tail
from paceline_cli.stack.settings import UpConfig
from paceline_cli.stack.statefile import ServiceEntry, StackState, StateDir

log = logging.getLogger(__name__)

_PUBLISH_S = 0.5
_TAIL_LINES = 12


class StackStartError(RuntimeError):
    """A process of the stack does not start."""


class Supervisor:
    """Starts all children at once, starts again what dies, and publishes the state file.

    `run` returns after `stop` was called and every child has ended; it raises `StackStartError` when a child never
    got ready.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        up: UpConfig,
        state: StateDir,
        *,
        gateway: str,
        router: str,
        model: str,
    ) -> None:
        self._up = up
        self._state = state
        self._gateway, self._router, self._model = gateway, router, model
        self.children = [Child(spec, log_bytes=up.log_bytes, log_files=up.log_files) for spec in specs]
        self.ready = asyncio.Event()
        """Set by the owner once the stack answers; published."""
        self.on_event: Callable[[str], None] = lambda text: log.info("%s", text)
        self._stopping = asyncio.Event()
        self._failure: StackStartError | None = None

    def stop(self) -> None:
        """Ask `run` to end the stack."""
        self._stopping.set()

    def is_stopping(self) -> bool:
        """True once `stop` was called."""
        return self._stopping.is_set()

    async def stopped_or_asked(self) -> None:
        """Wait until `stop` is called, by the owner or because a child does not start."""
        await self._stopping.wait()

    async def run(self) -> None:
        """Keep the stack until `stop`."""
        try:
            async with asyncio.TaskGroup() as group:
                for child in self.children:
                    group.create_task(self._keep(child))
                publisher = group.create_task(self._publish_always())
                try:
                    await self._stopping.wait()
                finally:
                    await self._stop_children()
                publisher.cancel()
        finally:
            for child in self.children:
                child.close()
        if self._failure is not None:
            raise self._failure

    def all_ready(self) -> bool:
        """True while every process says it serves."""
        return all(child.state is ChildState.READY for child in self.children)

    async def _keep(self, child: Child) -> None:
        up = self._up
        backoff = Backoff(up.restart_delay_ms / 1000, up.restart_delay_max_s, up.stable_after_s)
        was_ready, exits = False, 0
        while not self.is_stopping():
            lived_s = await child.run_once()
            if self.is_stopping():
                break
            was_ready = was_ready or child.state is ChildState.READY
            exits += 1
            if not was_ready and exits >= up.start_attempts:
                self._give_up(child)
                break
            wait_s = backoff.next_wait_s(lived_s)
            child.state = ChildState.WAITING
            child.restarts += 1
            self.on_event(
                f"{child.spec.name} ended ({child.last_exit}) after {lived_s:.1f} s: "
                + (f"restart in {wait_s:.1f} s" if wait_s else "restarting now")
            )
            await self._pause(wait_s)
        child.state = ChildState.STOPPED

    async def _pause(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _give_up(self, child: Child) -> None:
        lines = "\n  ".join(tail(child.spec.log, _TAIL_LINES)) or "(its log is empty)"
        self._failure = StackStartError(
            f"{child.spec.name} does not start ({child.last_exit}); the end of {child.spec.log}:\n  {lines}"
        )
        self.stop()

    async def _stop_children(self) -> None:
        ordered = sorted(self.children, key=lambda child: child.spec.stop_rank)
        for _, rank in groupby(ordered, key=lambda child: child.spec.stop_rank):
            members = list(rank)
            async with asyncio.TaskGroup() as group:
                ends = [group.create_task(child.stop(self._up.stop_timeout_s)) for child in members]
            for child, end in zip(members, ends, strict=True):
                if not end.result():
                    self.on_event(
                        f"{child.spec.name} did not end in {self._up.stop_timeout_s:g} s and was killed"
                    )

    async def _publish_always(self) -> None:
        last = None
        while True:
            state = self.snapshot()
            if state != last:
                self._state.write(state)
                last = state
            await asyncio.sleep(_PUBLISH_S if self.ready.is_set() else _PUBLISH_S / 5)

    def snapshot(self) -> StackState:
        """The state to publish."""
        own = psutil.Process(os.getpid())
        services = tuple(
            ServiceEntry(
                child.spec.name,
                child.pid,
                child.spec.address,
                child.state.value,
                child.restarts,
                str(child.spec.log),
            )
            for child in self.children
        )
        return StackState(
            own.pid,
            own.create_time(),
            self.ready.is_set(),
            self._gateway,
            self._router,
            self._model,
            services,
        )

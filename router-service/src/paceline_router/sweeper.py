"""What happens because time passes: waits end, graces end, retained requests go."""

import asyncio
import logging
from collections.abc import Callable

from paceline_router.clock import Clock
from paceline_router.dispatch import Dispatcher
from paceline_router.fleet_control import FleetControl
from paceline_router.ledger import Ledger
from paceline_router.lifecycle import Lifecycle
from paceline_router.mover import Mover
from paceline_router.open_decisions import OpenDecisions
from paceline_router.readers import Readers
from paceline_router.tasks import TaskBook

log = logging.getLogger(__name__)

INTERVAL_S = 0.05


class Sweeper:
    """Looks at everything that has a time limit, twenty times a second. Each part keeps its own short list."""

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        lifecycle: Lifecycle,
        readers: Readers,
        tasks: TaskBook,
        fleet_control: FleetControl,
        mover: Mover,
        open_decisions: OpenDecisions,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._readers = readers
        self._tasks = tasks
        self._fleet_control = fleet_control
        self._mover = mover
        self._open_decisions = open_decisions
        self._clock = clock
        self.on_fenced: Callable[[], None] = lambda: None

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            self.sweep()
            if self._fleet_control.fenced:
                self.on_fenced()

    def sweep(self) -> None:
        """One look."""
        for request in self._dispatcher.take_expired():
            self._lifecycle.expire(request)
        self._readers.expire()
        self._fleet_control.sweep()
        self._mover.sweep()
        self._open_decisions.expire()
        self._tasks.expire()
        self._ledger.expire(self._clock.now_ms())

"""Keeps the shadow prices of the engines' time up to date, beside the event loop."""

import asyncio
import time
from typing import Final

from paceline_core.placement.demand import DemandWindow
from paceline_core.placement.margin import Margin
from paceline_core.placement.prices import frozen, reprice
from paceline_core.placement.view import RequestView
from paceline_router.clock import Clock
from paceline_router.fleet import Fleet

_INTERVAL_S: Final = 1.0
_LEISURE: Final = 9.0
"""Prices that took t seconds are followed by a pause of at least so many t: they never take more than a tenth of a
core, however large the fleet is."""


class Pricer:
    """Remembers what was asked for lately. A policy without prices has none of this."""

    def __init__(self, fleet: Fleet, policy: Margin, clock: Clock) -> None:
        self._fleet = fleet
        self._policy = policy
        self._clock = clock
        self._demand = DemandWindow()
        self._asked = False

    def asked(self, request: RequestView, now_ms: float) -> None:
        """A request is being placed."""
        self._asked = True
        self._demand.add(request, now_ms, self._policy.value(request))

    async def run(self) -> None:
        """Renew the prices until cancelled; while nothing is asked for, the last ones stand."""
        while True:
            began = time.perf_counter()
            if self._asked:
                self._asked = False
                await self.renew()
            await asyncio.sleep(max(_INTERVAL_S, _LEISURE * (time.perf_counter() - began)))

    async def renew(self) -> None:
        """New prices from the last ones, worked out in a thread over a copy of the fleet's columns."""
        now_ms, table = self._clock.now_ms(), self._fleet.table
        fleet, demand = frozen(table.view(now_ms)), self._demand.demand(now_ms)
        # Prices for engines that joined meanwhile are missing: the view leaves such prices out until the next round.
        table.prices = await asyncio.to_thread(reprice, table.prices, fleet, demand)

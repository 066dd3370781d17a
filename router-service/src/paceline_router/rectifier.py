"""Asks the placement policy which live requests should be elsewhere, and has them moved."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from paceline.scheduler.v1 import scheduler_pb2
from paceline_core.placement.moves import Move as Wanted
from paceline_router.clock import Clock
from paceline_router.config import RectifyConfig
from paceline_router.fleet import Fleet
from paceline_router.ledger import Ledger
from paceline_router.mover import Mover
from paceline_router.placement import Placer

log = logging.getLogger(__name__)

_SOONEST_S: Final = 0.05
"""Between two looks, however many requests come to be at risk."""
_LEISURE: Final = 9.0
"""A look that took the event loop t seconds is followed by a pause of at least so many t."""
_EVENT: Final = "at_risk"


class Rectifier:
    """Looks every `interval_ms`, and soon after a scheduler says that a request is at risk."""

    def __init__(
        self, config: RectifyConfig, placer: Placer, ledger: Ledger, fleet: Fleet, mover: Mover, clock: Clock
    ) -> None:
        self._config = config
        self._placer = placer
        self._ledger = ledger
        self._fleet = fleet
        self._mover = mover
        self._clock = clock
        self._risky = asyncio.Event()

    @property
    def on(self) -> bool:
        """True if moves are made, and the policy has any to ask for."""
        return self._config.mode == "policy" and self._placer.rectifies

    async def run(self) -> None:
        """Look until cancelled. Ends at once when it is off."""
        if self._config.mode == "policy" and not self._placer.rectifies:
            log.warning("the placement policy makes no moves", extra={"policy": self._placer.policy})
        while self.on:
            self._risky.clear()
            try:
                async with asyncio.timeout(self._config.interval_ms / 1000):
                    await self._risky.wait()
            except TimeoutError:
                pass
            began = time.perf_counter()
            self.look()
            await asyncio.sleep(max(_SOONEST_S, _LEISURE * (time.perf_counter() - began)))

    def risks(self, risks: Sequence[scheduler_pb2.Risk]) -> None:
        """Schedulers say that these are at risk: they are looked at next, whatever they wrote since the last look."""
        for risk in risks:
            attempt = self._ledger.attempts.get(risk.attempt_key)
            if attempt is None or attempt.request.attempt is not attempt:
                continue
            detail = f"P(meet) {risk.p_meet:.2f}, laxity {risk.laxity_ms:.0f} ms"
            attempt.request.note(self._clock.now_ms(), _EVENT, detail)
            self._fleet.suspect(attempt)
            self._risky.set()

    def look(self) -> int:
        """Ask the policy once, and begin what it wants and nothing stands against. Returns how many moves began."""
        return sum(self._begin(wanted) for wanted in self._placer.rectify())

    def _begin(self, wanted: Wanted) -> bool:
        attempt = self._ledger.attempts.get(wanted.key)
        if attempt is None or attempt.landing or attempt.request.attempt is not attempt:
            return False
        request, target = attempt.request, self._fleet.at(wanted.target)
        refusal = self._mover.refusal(request, target)
        if refusal is not None:
            self._mover.counts["refused"] += 1
            return False
        self._mover.start(request, target, f"{self._placer.policy}: {wanted.reason}", wanted.gain)
        return True

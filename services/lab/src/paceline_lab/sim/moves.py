"""Moves of live calls between simulated engines, in two phases as the router makes them.

The landing engine prefills the prompt and what is out while the other one goes on; then that one stops, the landing one
prefills what was written meanwhile, and goes on from there. Token ids travel, no KV. A move that fails changes nothing.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Final

from paceline_core.placement.moves import Move
from paceline_lab.sim.call import SimCall
from paceline_lab.sim.engine import SimEngine
from paceline_lab.sim.fleet import Fleet

LOOK_MS: Final = 250.0
"""How often the policy is asked, as in the live router."""
_MOST: Final = 2
"""Moves of one call, failed ones included."""
_PER_ENGINE: Final = 2
"""Moves under way from, and to, one engine."""


class Moves(StrEnum):
    """Whether calls move."""

    OFF = "off"
    STALE = "stale"
    """The policy decides by the length estimates of the arrival."""
    REFRESHED = "refreshed"
    """The policy decides by the estimates that come with progress."""


class Mover:
    """Moves under way, as the placement policy asks for them."""

    def __init__(
        self, fleet: Fleet, engines: Sequence[SimEngine], again: Callable[[SimEngine], None]
    ) -> None:
        """`again`: an engine has something new to plan for."""
        self._fleet = fleet
        self._engines = engines
        self._again = again
        self._now = 0.0
        self.counts: Counter[str] = Counter()

    def look(self, now_ms: float) -> None:
        """Ask the policy, and begin what it wants and nothing stands against."""
        self._now = now_ms
        for wanted in self._fleet.rectify(now_ms):
            call = self._fleet.live(wanted.key)
            if call is not None:
                self._begin(call, wanted)

    def landed(self, landing: SimCall, now_ms: float) -> None:
        """A landing has what it needs: it goes on, and the call it came from stops."""
        origin = landing.origin
        assert origin is not None
        source, target = self._engines[origin.engine], self._engines[landing.engine]
        out = source.written_of(origin, now_ms)
        if out + 1 >= origin.call.output_tokens:  # the step under way is its last one
            self.drop(origin, now_ms, planned=True)
            return
        target.take_over(landing, source, out, now_ms)
        landing.origin = origin.landing = None
        landing.preemptions += origin.preemptions
        landing.recomputed_tokens += origin.recomputed_tokens + origin.call.prompt_tokens + out
        landing.p_meet = origin.p_meet
        origin.moved = True
        origin.job.calls[origin.place] = landing
        source.cancel(origin)
        self._fleet.left(origin, now_ms)
        self._again(source)
        self.counts["made"] += 1

    def drop(self, origin: SimCall, now_ms: float, *, planned: bool = False) -> None:
        """Give a move up: the call stays, or has ended. `planned`: the landing engine is about to plan anyway."""
        landing = origin.landing
        if landing is None:
            return
        target = self._engines[landing.engine]
        target.cancel(landing)
        origin.landing = landing.origin = None
        landing.moved = True
        self._fleet.left(landing, now_ms)
        if not planned:
            self._again(target)
        self.counts["given up"] += 1

    def _begin(self, call: SimCall, wanted: Move) -> None:
        target = self._engines[wanted.target]
        if call.landing is not None or call.origin is not None or call.moves >= _MOST or call.moved:
            return
        if call.key in target.table:  # what it left there ends with the step under way
            return
        if max(self._under_way(call.engine), self._under_way(wanted.target)) >= _PER_ENGINE:
            self.counts["refused"] += 1
            return
        source = self._engines[call.engine]
        out = source.written_of(call, self._now)
        total = call.call.prompt_tokens + call.call.output_tokens
        if out + 1 >= call.call.output_tokens or total >= target.capacity.max_context_tokens:
            return
        landing = replace(call, row=-1, moves=call.moves + 1, origin=call, preemptions=0, recomputed_tokens=0)
        call.landing = landing
        target.land(landing, source, out)
        self._fleet.lands(landing, wanted.target, out, self._now)
        self._again(target)
        self.counts["begun"] += 1

    def _under_way(self, engine: int) -> int:
        calls = self._fleet.calls()
        return sum(
            call.landing is not None and engine in (call.engine, call.landing.engine) for call in calls
        )

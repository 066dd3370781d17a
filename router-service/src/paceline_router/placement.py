"""Asks the placement policy about live requests, and remembers why it answered what it did."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from paceline_core import lengths
from paceline_core.placement.margin import Margin
from paceline_core.placement.moves import Move, Rectifier
from paceline_core.placement.policy import Placement
from paceline_core.placement.registry import make_policy
from paceline_core.placement.view import FleetView, RequestView
from paceline_core.prefix import prefix_hashes
from paceline_router.attempt import Explained
from paceline_router.clock import Clock
from paceline_router.engine import Engine
from paceline_router.fleet import Fleet
from paceline_router.pricer import Pricer
from paceline_router.request import LiveRequest
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import PLACE_DURATION, PLACEMENTS

_UNKNOWN_LENGTH = lengths.cdf_from_probabilities(np.full(lengths.K, 1.0 / lengths.K))[0]


@dataclass(frozen=True, slots=True)
class Placed:
    """The engine to go to, None when there is none, why, and the request as the policy saw it."""

    engine: Engine | None
    placement: Placement
    explained: Explained
    view: RequestView


class Placer:
    """One placement policy over one fleet."""

    def __init__(
        self, fleet: Fleet, policy: str, params: Mapping[str, Any], instruments: Instruments, clock: Clock
    ) -> None:
        """Raises ValueError on an unknown policy or parameter."""
        self._fleet = fleet
        self._policy = make_policy(policy, params)
        self._instruments = instruments
        self._clock = clock
        self._rectifier = cast(Rectifier, self._policy) if hasattr(self._policy, "rectify") else None
        self.pricer = Pricer(fleet, self._policy, clock) if isinstance(self._policy, Margin) else None
        """Of a policy that reads prices; it is to be run by the owner."""

    @property
    def rectifies(self) -> bool:
        """True if the policy also looks at requests under way."""
        return self._rectifier is not None

    def rectify(self) -> tuple[Move, ...]:
        """Moves that the policy wants now, best first. What it has looked at is noted."""
        now_ms, table = self._clock.now_ms(), self._fleet.table
        if self._rectifier is None or table.residents is None:
            return ()
        found = self._rectifier.rectify(table.view(now_ms), now_ms)
        table.residents.checked(found.checked)
        return found.moves

    @property
    def policy(self) -> str:
        """Name of the policy."""
        return self._policy.name

    def place(self, request: LiveRequest) -> Placed:
        """The engine for the next attempt of a request."""
        return self.decide(self.view_of(request))

    def decide(self, view: RequestView) -> Placed:
        """The engine for a request in numbers."""
        started = time.perf_counter()
        engine, placement, fleet = self.choose(view, self._clock.now_ms())
        explained = Explained.of(self.policy, placement, fleet.engine_ids)
        self.count({} if engine is None else {engine.engine_id: 1}, time.perf_counter() - started)
        return Placed(engine, placement, explained, view)

    def choose(self, view: RequestView, now_ms: float) -> tuple[Engine | None, Placement, FleetView]:
        """The policy's answer, the engine it names, and the fleet that it saw; nothing is counted."""
        if self.pricer is not None:
            self.pricer.asked(view, now_ms)
        fleet = self._fleet.table.view(now_ms)
        placement = self._policy.place(view, fleet, now_ms)
        return self._fleet.at(placement.engine) if placement.found else None, placement, fleet

    def count(self, placed: Mapping[str, int], duration_s: float) -> None:
        """Decisions by engine, and what one of them took."""
        self._instruments.record(PLACE_DURATION, duration_s, policy=self.policy)
        for engine_id, times in placed.items():
            self._instruments.add(PLACEMENTS, times, policy=self.policy, engine=engine_id)

    def view_of(self, request: LiveRequest) -> RequestView:
        """A live request in numbers. The engine that is to lose it is left out as a whole while it drains."""
        estimate = request.latest_estimate
        hashes = prefix_hashes(request.text, cache_salt(request).encode())
        return RequestView(
            model=request.spec.model,
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.max_tokens,
            length_cdf=_UNKNOWN_LENGTH if estimate is None else estimate.cdf,
            slo=request.slo,
            elapsed_ms=self._clock.now_ms() - request.arrival.ms,
            replayed_tokens=request.output.count,
            excluded=request.excluded,
            excluded_ids=self._fleet.without(request.spec.adapter) if request.spec.adapter else frozenset(),
            prefix_hashes=hashes,
            tenant=request.tenant,
            request_id=request.request_id,
            budget_ms=request.budget_ms or float("inf"),
            cached_tokens=self._fleet.table.cached_tokens(hashes, request.prompt_tokens),
        )


def cache_salt(request: LiveRequest) -> str:
    """Prefixes are shared within a tenant, a salt and an adapter."""
    spec = request.spec
    salt = f"{request.tenant}/{spec.cache_salt}" if request.tenant or spec.cache_salt else ""
    return f"{salt}/{spec.adapter}" if spec.adapter else salt

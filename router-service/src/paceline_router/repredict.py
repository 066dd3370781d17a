"""Estimates of requests under way, revised every so many output tokens with what was written since."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from paceline_core.lengths import FloatArray
from paceline_router.attempt import Attempt
from paceline_router.clock import Clock
from paceline_router.estimate import Estimate
from paceline_router.ledger import Ledger
from paceline_router.outcomes import length_query
from paceline_router.predictor_link import PredictorLink
from paceline_router.request import LiveRequest
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import REPREDICTIONS

INTERVAL_S: Final = 0.05
MAX_DUE: Final = 256
"""Requests revised in one round."""
MAX_BATCH: Final = 32
"""Requests of one call: questions of new requests wait behind it in the predictor."""
_LOOKS: Final = 2048
"""Live requests looked at in one round; the next one goes on where it ended."""
_REST_S: Final = 1.0
_EVENT: Final = "reestimated"
_LEISURE: Final = 9.0
"""A round that took the event loop t seconds is followed by a pause of at least so many t."""


class Repredictor:
    """Looks for requests that wrote `every_tokens` more, asks for all of them together, and passes the answers on.

    Tokens do not come by here: a round looks at counts, a bounded number of them, and takes at most a tenth of the
    event loop.
    """

    def __init__(
        self,
        ledger: Ledger,
        predictor: PredictorLink,
        instruments: Instruments,
        clock: Clock,
        every_tokens: int,
    ) -> None:
        """`every_tokens`: 0 switches it off."""
        self._ledger = ledger
        self._predictor = predictor
        self._instruments = instruments
        self._clock = clock
        self._every_tokens = every_tokens
        self._looking: Iterator[LiveRequest] = iter(())
        self._busy_s = 0.0
        self.on_revised: Callable[[Attempt, FloatArray], None] = lambda attempt, cdf: None

    async def run(self) -> None:
        """Revise until cancelled. Ends at once when there is nothing to ask."""
        while self._every_tokens and self._predictor.configured:
            await asyncio.sleep(max(INTERVAL_S, _LEISURE * self._busy_s))
            self._busy_s = 0.0
            if self._predictor.answers and not await self.revise():
                await asyncio.sleep(_REST_S)

    async def revise(self) -> bool:
        """One round. False when the predictor did not answer."""
        began = time.perf_counter()
        due = self._due()
        self._busy_s += time.perf_counter() - began
        for start in range(0, len(due), MAX_BATCH):
            if not await self._ask(due[start : start + MAX_BATCH]):
                return False
        return True

    def _due(self) -> list[LiveRequest]:
        look = list(islice(self._looking, _LOOKS))
        due = [
            request
            for request in look
            if request.output.count // self._every_tokens > request.repredicted
            and request.attempt is not None
            and not request.ended
        ]
        if len(look) < _LOOKS:
            self._looking = self._ledger.live()
        return due[:MAX_DUE]  # the others are still due in the next round over all

    async def _ask(self, due: Sequence[LiveRequest]) -> bool:
        began = time.perf_counter()
        due = [request for request in due if not request.ended]
        queries = []
        for request in due:
            request.repredicted = request.output.count // self._every_tokens
            queries.append(length_query(request, request.output.count))
        self._busy_s += time.perf_counter() - began
        if not queries:
            return True
        messages = await self._predictor.revise(queries)
        began = time.perf_counter()
        estimates = None
        if messages is not None:
            estimates = Estimate.many(messages, [query.max_tokens for query in queries])
        if estimates is None:
            self._instruments.add(REPREDICTIONS, len(due), outcome="failed")
            return False
        late = 0
        for request, estimate in zip(due, estimates, strict=True):
            late += not self._revised(request, estimate)
        self._instruments.add(REPREDICTIONS, len(due) - late, outcome="revised")
        self._instruments.add(REPREDICTIONS, late, outcome="late")
        self._busy_s += time.perf_counter() - began
        return True

    def _revised(self, request: LiveRequest, estimate: Estimate) -> bool:
        """Take an estimate over; False when the request has no use for it any more."""
        attempt = request.attempt
        if request.ended or attempt is None:
            return False
        request.revised = estimate
        self.on_revised(attempt, estimate.cdf)
        attempt.engine.link.reestimate(attempt.key, estimate.message)
        detail = (
            f"at {estimate.message.generated_tokens} tokens: P50 {estimate.p50:.0f}, P90 {estimate.p90:.0f}"
        )
        if request.events and request.events[-1][1] == _EVENT:
            request.events.pop()  # a long answer must not push everything else out
        request.note(self._clock.now_ms(), _EVENT, f"{detail} ({estimate.source})")
        return True

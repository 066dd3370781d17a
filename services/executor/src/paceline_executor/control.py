"""Who holds the engine: one scheduler at a time, the newest; and what becomes of attempts when there is none."""

import asyncio
import logging
from typing import Protocol

from paceline_executor.contract import Engine
from paceline_runtime.errors import PacelineError, Reason

_log = logging.getLogger(__name__)


class Holder(Protocol):
    """A control stream."""

    def fence(self) -> None:
        """A newer one took over: end."""


class Control:
    """Fencing and the orphan time-to-live. Used on the event loop only."""

    def __init__(self, engine: Engine, *, orphan_ttl_s: float) -> None:
        self._engine = engine
        self._orphan_ttl_s = orphan_ttl_s
        self._highest_token = 0
        self._holder: Holder | None = None
        self._orphaned: asyncio.TimerHandle | None = None
        self.orphans_dropped = 0
        """Attempts cancelled because no scheduler came back for them."""

    @property
    def held(self) -> bool:
        """True while a scheduler is attached."""
        return self._holder is not None

    def take(self, holder: Holder, fencing_token: int) -> None:
        """Make `holder` the one in charge; raises FENCED for a scheduler older than one seen before.

        An equal token is the same scheduler on a new stream. The engine runs nothing until the next plan.
        """
        if fencing_token < self._highest_token:
            raise PacelineError(
                Reason.FENCED,
                f"fencing token {fencing_token} is older than {self._highest_token}: a newer scheduler has the engine",
            )
        self._highest_token = fencing_token
        self._stop_timer()
        previous, self._holder = self._holder, holder
        if previous is not None:
            previous.fence()
        self._engine.clear_plan()

    def leave(self, holder: Holder) -> None:
        """The stream is over. Unless another one has taken over, the engine pauses and attempts become orphans."""
        if self._holder is not holder:
            return
        self._holder = None
        self._engine.clear_plan()
        self._stop_timer()
        self._orphaned = asyncio.get_running_loop().call_later(self._orphan_ttl_s, self._drop_orphans)

    def close(self) -> None:
        """Forget the timer and end the stream."""
        self._stop_timer()
        if self._holder is not None:
            self._holder.fence()

    def _stop_timer(self) -> None:
        if self._orphaned is not None:
            self._orphaned.cancel()
            self._orphaned = None

    def _drop_orphans(self) -> None:
        self._orphaned = None
        orphans = [row.spec.attempt_key for row in self._engine.live_table() if row.ended is None]
        for key in orphans:
            self._engine.cancel(key)
        self.orphans_dropped += len(orphans)
        if orphans:
            _log.warning("no scheduler came back: orphans dropped", extra={"attempts": len(orphans)})

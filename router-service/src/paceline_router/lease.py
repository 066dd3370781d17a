"""The right to act under a router id: from the store, or, without one, from the clock."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from paceline_router.clock import Clock
from paceline_runtime.errors import PacelineError
from paceline_store.rows import Lease

log = logging.getLogger(__name__)


class LeaseStore(Protocol):
    """The part of the store that keeps leases."""

    async def acquire_lease(self, router_id: str, holder: str, ttl_s: float) -> Lease: ...

    async def renew_lease(self, lease: Lease) -> bool: ...

    async def release_lease(self, lease: Lease) -> None: ...


class RouterLease:
    """Holds the lease and keeps it. `fencing_token` goes into every Hello."""

    def __init__(
        self, store: LeaseStore | None, router_id: str, holder: str, ttl_s: float, clock: Clock
    ) -> None:
        self._store = store
        self._router_id = router_id
        self._holder = holder
        self._ttl_s = ttl_s
        self.lease: Lease | None = None
        self.fencing_token = clock.unix_ms()

    async def acquire(self) -> None:
        """Take the lease over. A store that is down leaves the token of the clock, which later lives outdo
        too."""
        if self._store is None:
            return
        try:
            self.lease = await self._store.acquire_lease(self._router_id, self._holder, self._ttl_s)
            self.fencing_token = self.lease.fencing_token
        except PacelineError as error:
            log.warning(
                "no lease from the store; the clock gives the fencing token", extra={"reason": error.message}
            )

    async def keep(self, on_lost: Callable[[], None]) -> None:
        """Renew until cancelled; `on_lost` when a newer life has it."""
        while self._store is not None and self.lease is not None:
            await asyncio.sleep(self._ttl_s / 3)
            try:
                if not await self._store.renew_lease(self.lease):
                    log.error(
                        "the lease went to a newer life of this router", extra={"router_id": self._router_id}
                    )
                    on_lost()
                    return
            except PacelineError as error:
                log.warning("the lease was not renewed: the store is down", extra={"reason": error.message})

    async def release(self) -> None:
        """Give it up at the end."""
        if self._store is not None and self.lease is not None:
            try:
                async with asyncio.timeout(2.0):
                    await self._store.release_lease(self.lease)
            except (PacelineError, TimeoutError):
                log.warning("the lease was not released: the store is down")

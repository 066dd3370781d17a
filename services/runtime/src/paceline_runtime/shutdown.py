"""The end of a process: one event that SIGTERM, SIGINT, or the program itself sets."""

import asyncio
import logging
import signal

log = logging.getLogger(__name__)


class Shutdown:
    """Set once, when the process should end. A second signal ends it the hard way."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason = ""

    @property
    def requested(self) -> bool:
        """Whether the process should end."""
        return self._event.is_set()

    def request(self, reason: str) -> None:
        """Ask the process to end; the first reason is kept."""
        if not self._event.is_set():
            self.reason = reason
            log.info("shutting down", extra={"shutdown_reason": reason})
            self._event.set()

    async def wait(self) -> None:
        """Return when the process should end."""
        await self._event.wait()

    def install_signals(self) -> None:
        """Let SIGTERM and SIGINT ask for the end. Needs the main thread."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        self.request(number.name)
        # The default handler for the next one: a drain that hangs can still be interrupted.
        asyncio.get_running_loop().remove_signal_handler(number)

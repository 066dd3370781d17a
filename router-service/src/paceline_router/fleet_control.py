"""Schedulers dialled and lost, engines listed and drained."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable

from paceline.router.v1 import router_pb2
from paceline_router.clock import Clock
from paceline_router.config import RouterConfig
from paceline_router.dispatch import Dispatcher
from paceline_router.engine import Engine
from paceline_router.fleet import Fleet
from paceline_router.lifecycle import Lifecycle
from paceline_router.records import dialled_record, engine_record, engine_state
from paceline_router.scheduler_link import LinkState, SchedulerLink
from paceline_runtime.errors import PacelineError, Reason, invalid

log = logging.getLogger(__name__)

_FORGET_ANNOUNCED_S = 300.0


class FleetControl:
    """Owns the links. `answered` is set once every scheduler has said what lives there, if the configuration names them
    all."""

    def __init__(
        self,
        config: RouterConfig,
        fleet: Fleet,
        dispatcher: Dispatcher,
        lifecycle: Lifecycle,
        make_link: Callable[[str], SchedulerLink],
        clock: Clock,
    ) -> None:
        self._config = config
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._make_link = make_link
        self._clock = clock
        self._links: dict[str, tuple[SchedulerLink, asyncio.Task[None]]] = {}
        self._fixed = frozenset(config.schedulers)
        # Who announces itself, or is found by name, is not known beforehand: then nobody can say "all".
        self._all_known = bool(config.schedulers) and not config.dns
        self.answered = asyncio.Event()

    @property
    def links(self) -> list[SchedulerLink]:
        """All schedulers dialled."""
        return [link for link, _ in self._links.values()]

    @property
    def fenced(self) -> bool:
        """True once a scheduler said that a newer life of this router is at work."""
        return any(link.state is LinkState.FENCED for link in self.links)

    def dial(self, endpoint: str) -> None:
        """Keep a session with this scheduler. Raises QUEUE_FULL over the bound."""
        if endpoint in self._links:
            return
        if len(self._links) >= self._config.max_schedulers:
            raise PacelineError(
                Reason.QUEUE_FULL, f"{len(self._links)} schedulers are dialled, which is the limit"
            )
        link = self._make_link(endpoint)
        task = asyncio.create_task(link.run(), name=f"scheduler {endpoint}")
        self._links[endpoint] = (link, task)

    def announce(self, request: router_pb2.AnnounceRequest) -> router_pb2.AnnounceResponse:
        """A scheduler asks to be dialled."""
        if not request.scheduler_endpoint or len(request.scheduler_endpoint) > 256:
            raise invalid("scheduler_endpoint must be 1 to 256 characters", field="scheduler_endpoint")
        self.dial(request.scheduler_endpoint)
        return router_pb2.AnnounceResponse(interval_ms=self._config.announce_interval_ms)

    async def run_dns(self) -> None:
        """Dial every address that the configured names resolve to, again and again."""
        loop = asyncio.get_running_loop()
        while self._config.dns:
            for name in self._config.dns:
                host, _, port = name.rpartition(":")
                try:
                    found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
                except (OSError, ValueError) as error:
                    log.warning(
                        "a scheduler name does not resolve", extra={"dns_name": name, "cause": str(error)}
                    )
                    continue
                for family, _, _, _, address in found:
                    ip = f"[{address[0]}]" if family == socket.AF_INET6 else str(address[0])
                    self.dial(f"{ip}:{port}")
            await asyncio.sleep(self._config.dns_interval_s)

    def sweep(self) -> None:
        """Move what is left on engines that drain, give up attempts whose engine stayed away for the grace, and
        forget announced schedulers long gone."""
        now_ms = self._clock.now_ms()
        if self._all_known and all(link.open for link in self.links if link.endpoint in self._fixed):
            self.answered.set()
        for engine in self._fleet:
            if engine.move_at_ms is not None and now_ms >= engine.move_at_ms:
                for attempt in list(engine.attempts.values()):
                    self._lifecycle.displace(attempt)
            if engine.up:
                engine.down_ms = None
            elif engine.down_ms is None:
                engine.down_ms = now_ms
            elif engine.attempts and now_ms - engine.down_ms >= 1000 * self._config.scheduler_grace_s:
                self._give_up(engine)
        for endpoint, (link, task) in list(self._links.items()):
            if link.broken_ms is None:
                continue
            away_s = (now_ms - link.broken_ms) / 1000
            if away_s >= _FORGET_ANNOUNCED_S and endpoint not in self._fixed:
                del self._links[endpoint]
                task.cancel()

    def _give_up(self, engine: Engine) -> None:
        """Its scheduler stayed away, or came back without an engine and knows nothing of what lived there."""
        log.warning(
            "an engine stayed away; its requests go elsewhere",
            extra={"engine_id": engine.engine_id, "attempts": len(engine.attempts)},
        )
        engine.lost_attempts += len(engine.attempts)
        for attempt in list(engine.attempts.values()):
            self._lifecycle.attempt_gone(attempt, "scheduler_lost", engine_lost=False)

    async def close(self) -> None:
        """Break all sessions; the schedulers keep their attempts for their grace."""
        tasks = [task for _, task in self._links.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def list_engines(self) -> router_pb2.ListEnginesResponse:
        """The fleet, and schedulers that have not answered yet."""
        now_ms = self._clock.now_ms()
        engines: Iterable[Engine] = self._fleet
        records = [engine_record(e, now_ms, self._config.leave_out_after_ms) for e in engines]
        records += [dialled_record(link) for link in self.links if link.engine is None]
        return router_pb2.ListEnginesResponse(engines=records)

    async def drain(self, request: router_pb2.DrainEngineRequest) -> router_pb2.DrainEngineResponse:
        """Take an engine out of placement, or back in. With a timeout: wait, then replay what is left
        elsewhere."""
        engine = self._fleet.get(request.engine_id)
        if engine is None:
            known = ", ".join(e.engine_id for e in self._fleet) or "none"
            raise PacelineError(Reason.NOT_FOUND, f"no engine {request.engine_id!r}; known: {known}")
        if not 0 <= request.timeout_ms < float("inf"):
            raise invalid(f"timeout_ms must be 0 or more, got {request.timeout_ms:g}", field="timeout_ms")
        engine.draining = not request.resume
        # Kept with the engine: it happens whether the caller waits for it or not.
        wanted = engine.draining and request.timeout_ms
        engine.move_at_ms = self._clock.now_ms() + request.timeout_ms if wanted else None
        self._fleet.refresh(engine)
        log.info("drain" if engine.draining else "resume", extra={"engine_id": engine.engine_id})
        if request.resume:
            self._dispatcher.engine_available()
        elif request.timeout_ms:
            await _idle(engine, request.timeout_ms / 1000 + self._config.cancel_timeout_s)
        state = engine_state(engine, self._clock.now_ms(), self._config.leave_out_after_ms)
        return router_pb2.DrainEngineResponse(state=state, live=len(engine.attempts))


async def _idle(engine: Engine, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await engine.idle.wait()

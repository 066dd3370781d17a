"""Sessions with routers: who is connected with which right, and what goes up to each next."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from paceline.common.v1 import attempt_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_runtime.errors import PacelineError, Reason

log = logging.getLogger(__name__)

_SEAL_BYTES = 2 * 1024 * 1024
"""An update that has grown past this is sent by itself, well below the transport's largest message."""
_TOKEN_ROW_BYTES = 24
_ROUTERS_REMEMBERED = 1024
"""Router ids whose fencing token is kept; past it the one heard of longest ago is forgotten."""


class RouterSession:
    """One open stream to one router. What is put in goes out merged, in order, once the stream can take it."""

    def __init__(self, router_id: str, fencing_token: int, backlog_bytes: int) -> None:
        self.router_id = router_id
        self.fencing_token = fencing_token
        self._ready: deque[scheduler_pb2.SessionResponse] = deque()
        self._open: scheduler_pb2.SessionResponse | None = None
        self._open_bytes = 0
        self._pending_bytes = 0
        self._backlog_bytes = backlog_bytes
        self._wake = asyncio.Event()
        self.closed: asyncio.Future[PacelineError] = asyncio.get_running_loop().create_future()

    def hello_ack(self, ack: scheduler_pb2.HelloAck) -> None:
        """Queue a HelloAck behind what is queued already, in as many parts as the transport needs."""
        self._seal()
        live = list(ack.live)
        ack.ClearField("live")
        size_bytes = 0
        for attempt in live:
            if size_bytes > _SEAL_BYTES:
                ack.more = True
                self._ready.append(scheduler_pb2.SessionResponse(hello_ack=ack))
                ack, size_bytes = scheduler_pb2.HelloAck(), 0
            ack.live.append(attempt)
            size_bytes += attempt.ByteSize()
        self._ready.append(scheduler_pb2.SessionResponse(hello_ack=ack))

    def accepted(self, accepted: attempt_pb2.AttemptAccepted) -> None:
        """An attempt was taken in."""
        self._update(len(accepted.prompt_ids)).accepted.append(accepted)

    def tokens(self, batch: attempt_pb2.TokenBatch) -> None:
        """Tokens, of this router's attempts and perhaps of others."""
        size = len(batch.payload) + _TOKEN_ROW_BYTES * len(batch.attempt_keys)
        self._update(size).tokens.append(batch)

    def ended(self, ended: attempt_pb2.AttemptEnded) -> None:
        """An attempt ended; its tokens were put in before."""
        self._update(64).ended.append(ended)

    def ticket(self, ticket: scheduler_pb2.MoveTicket) -> None:
        """A ticket for a move, or why there is none."""
        self._update(128).tickets.append(ticket)

    def landed(self, key: int) -> None:
        """An attempt that awaits further forced ids has taken in all that came with its submit."""
        self._update(16).landed.append(key)

    def risk(self, risk: scheduler_pb2.Risk) -> None:
        """An attempt is at risk."""
        self._update(32).risks.append(risk)

    def load(self, load: scheduler_pb2.Load) -> None:
        """The newest load replaces one that has not left yet."""
        self._update(0).load.CopyFrom(load)

    def engine_lost(self, lost: scheduler_pb2.EngineLost) -> None:
        """The engine is gone; the ends of its attempts follow."""
        self._seal()
        self._update(64).engine_lost.CopyFrom(lost)

    def flush(self) -> bool:
        """Let the writer take what is there, if anything. Called once per turn of the loop."""
        if self._open is None and not self._ready:
            return False
        self._wake.set()
        return True

    def close(self, error: PacelineError) -> None:
        """End the stream with `error`; the first one counts."""
        if not self.closed.done():
            self.closed.set_result(error)

    async def write_all(self, write: Callable[[scheduler_pb2.SessionResponse], Awaitable[None]]) -> None:
        """Send what comes, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._seal()
            while self._ready:
                message = self._ready.popleft()
                if not self._ready:
                    self._pending_bytes = self._open_bytes if self._open is not None else 0
                await write(message)

    def _update(self, size: int) -> scheduler_pb2.Update:
        if self._open is not None and self._open_bytes > _SEAL_BYTES:
            self._seal()
        if self._open is None:
            self._open = scheduler_pb2.SessionResponse()
            self._open_bytes = 0
            self._open.update.SetInParent()
        self._open_bytes += size
        self._pending_bytes += size
        if self._pending_bytes > self._backlog_bytes:
            self.close(
                PacelineError(Reason.QUEUE_FULL, "this router does not read its session: say hello again")
            )
        return self._open.update

    def _seal(self) -> None:
        if self._open is not None:
            self._ready.append(self._open)
            self._open = None


class SessionRegistry:
    """At most one session per router, and the highest fencing token seen of each."""

    def __init__(self, backlog_bytes: int) -> None:
        self._sessions: dict[str, RouterSession] = {}
        self._tokens: dict[str, int] = {}
        self._backlog_bytes = backlog_bytes

    def __len__(self) -> int:
        return len(self._sessions)

    def all(self) -> list[RouterSession]:
        """Every open session."""
        return list(self._sessions.values())

    def get(self, router_id: str) -> RouterSession | None:
        """The open session of a router."""
        return self._sessions.get(router_id)

    def open(self, router_id: str, fencing_token: int) -> RouterSession:
        """A new session; an older one of the same router is closed. Raises PacelineError (FENCED) on an old token."""
        self._advance(router_id, fencing_token)
        session = RouterSession(router_id, fencing_token, self._backlog_bytes)
        older = self._sessions.get(router_id)
        if older is not None:
            older.close(PacelineError(Reason.FENCED, f"a newer session of router {router_id} took over"))
        self._sessions[router_id] = session
        return session

    def adopt(self, router_id: str, fencing_token: int) -> None:
        """Another router took over the lease of `router_id`: end its session. Raises PacelineError (FENCED)."""
        self._advance(router_id, fencing_token)
        session = self._sessions.pop(router_id, None)
        if session is not None:
            session.close(PacelineError(Reason.FENCED, f"the requests of router {router_id} were taken over"))

    def remove(self, session: RouterSession) -> bool:
        """Forget a session; False when a newer one has its place already."""
        if self._sessions.get(session.router_id) is session:
            del self._sessions[session.router_id]
            return True
        return False

    def flush(self) -> bool:
        """Let all writers take what is there; False when nothing is."""
        flushed = [session.flush() for session in self._sessions.values()]
        return any(flushed)

    def check(self, router_id: str, fencing_token: int) -> None:
        """Raises PacelineError (FENCED) on a token older than the newest one seen of this router."""
        highest = self._tokens.get(router_id, 0)
        if fencing_token < highest:
            raise PacelineError(
                Reason.FENCED, f"fencing token {fencing_token} of router {router_id} is older than {highest}"
            )

    def _advance(self, router_id: str, fencing_token: int) -> None:
        self.check(router_id, fencing_token)
        self._tokens.pop(router_id, None)
        self._tokens[router_id] = fencing_token
        if len(self._tokens) > _ROUTERS_REMEMBERED:
            del self._tokens[next(known for known in self._tokens if known not in self._sessions)]

"""One request on the router session, as the HTTP side reads it: each token once, in order, credits as it is taken."""

import asyncio
import codecs
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2 as pb
from paceline_runtime.errors import ATTAINABLE_MS, PacelineError, Reason, reason_of

_GOOD_ENDS = frozenset(
    {
        attempt_pb2.FINISH_REASON_STOP,
        attempt_pb2.FINISH_REASON_STOP_STRING,
        attempt_pb2.FINISH_REASON_LENGTH,
    }
)


class Phase(Enum):
    """Where a request stands with the router."""

    SUBMITTED = "submitted"
    """Handed in for the first time, no answer yet."""
    RESUBMITTED = "resubmitted"
    """Handed in again after a broken session: the router may know it already."""
    ATTACHING = "attaching"
    """Asked to go on with it, no answer yet."""
    LIVE = "live"
    ENDED = "ended"


class Commands(Protocol):
    """What a stream asks of its session."""

    def grant(self, stream: "RequestStream") -> None:
        """Tell the router the stream's new `token_limit`."""

    def cancel(self, stream: "RequestStream") -> None:
        """End the request."""


@dataclass(frozen=True, slots=True)
class Output:
    """Text that came since the last look, and how many tokens it is."""

    text: str
    tokens: int
    token_ids: tuple[int, ...] = ()
    """Their ids, for a reader that asked for them."""


class RequestStream:
    """The session writes into it, one HTTP handler reads from it; all on one event loop.

    `window_tokens`: how far the router may send ahead of what the reader took; 0: no bound, for readers that hold the
    whole answer anyway. What is buffered here is never more than that, apart from what was under way.
    """

    def __init__(
        self, spec: pb.GenerationSpec, commands: Commands, *, window_tokens: int, give_up_at: float
    ) -> None:
        self.spec = spec
        self.request_id = spec.request_id
        self.window_tokens = window_tokens
        self.token_limit = window_tokens
        self.phase = Phase.SUBMITTED
        self.stream_id = 0
        self.accepted: pb.Accepted | None = None
        self.finished: pb.Finished | None = None
        self.error: PacelineError | None = None
        self.cancelling = False
        self.opened_unix_ms = int(time.time() * 1000)
        self.next_index = 0
        # Kept by the session: when to stop waiting for a router that is away, when to ask again, whether asking helps.
        self.give_up_at = give_up_at
        self.retry_at: float | None = None
        self.fruitless_attaches = 0
        self._commands = commands
        self._discarding = False
        self._taken_index = 0
        self._texts: list[str] = []
        self.keeps_ids = False
        """Set by a reader that wants ids beside the text."""
        self._ids: list[int] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._news = False
        self._waiter: asyncio.Future[None] | None = None

    # For the reader.

    @property
    def ended(self) -> bool:
        """True when nothing more will come; output that came before may still wait to be taken."""
        return self.phase is Phase.ENDED

    def failure(self) -> PacelineError | None:
        """Why it ended badly; None while it runs and after a good end."""
        if self.error is not None:
            return self.error
        return None if self.finished is None else failure_of(self.finished)

    async def news(self, timeout_s: float) -> bool:
        """Wait for acceptance, output or the end; False when the time was over first."""
        if not self._news and not self.ended:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._waiter
            except TimeoutError:
                return False
            finally:
                self._waiter = None
        self._news = False
        return True

    def take(self) -> Output:
        """All output that came since the last call. It counts as consumed when `consumed` is called."""
        output = Output("".join(self._texts), self.next_index - self._taken_index, tuple(self._ids))
        self._texts.clear()
        self._ids.clear()
        self._taken_index = self.next_index
        return output

    def consumed(self) -> None:
        """What was taken has reached the client: let the router send more."""
        if self.window_tokens == 0 or self.ended:
            return
        limit = self._taken_index + self.window_tokens
        # Half a window at a time: one message for many tokens.
        if limit - self.token_limit >= self.window_tokens // 2:
            self.token_limit = limit
            self._commands.grant(self)

    def cancel(self) -> None:
        """End the request: its reader is gone."""
        if not self.ended:
            self._commands.cancel(self)

    def discard(self) -> None:
        """Let the request run to its end without a reader."""
        self._discarding = True
        self._texts.clear()
        self._ids.clear()
        if not self.ended and self.window_tokens:
            self.window_tokens = self.token_limit = 0
            self._commands.grant(self)

    # For the session.

    def on_accepted(self, accepted: pb.Accepted) -> None:
        """The router took the request in, or answered an attach."""
        if self.ended:
            return
        self.phase = Phase.LIVE
        if self.accepted is None:
            self.accepted = accepted
            self.wake()

    def on_tokens(
        self, first_index: int, lengths: Sequence[int], text: bytes | memoryview, ids: Sequence[int] = ()
    ) -> bool:
        """Tokens `first_index`.. with the bytes of text of each, all in `text`. False: a gap, nothing was taken."""
        if first_index > self.next_index:
            return False
        skip = self.next_index - first_index
        if skip >= len(lengths):
            return True
        self.phase = Phase.LIVE
        self.fruitless_attaches = 0
        piece = self._decoder.decode(bytes(text[sum(lengths[:skip]) :] if skip else text))
        self.next_index = first_index + len(lengths)
        if self._discarding:
            self._taken_index = self.next_index
            return True
        if piece:
            self._texts.append(piece)
        if self.keeps_ids:
            self._ids.extend(ids[skip:])
        self.wake()
        return True

    def on_finished(self, finished: pb.Finished) -> None:
        """The router says that it is over, and all its output is here."""
        self.finished = finished
        self._end()

    def fail(self, error: PacelineError) -> None:
        """It is over without a word from the router."""
        self.error = error
        self._end()

    def wake(self) -> None:
        """Tell the reader to look."""
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        rest = self._decoder.decode(b"", True)
        if rest and not self._discarding:
            self._texts.append(rest)
        self.phase = Phase.ENDED
        self.wake()


def failure_of(finished: pb.Finished) -> PacelineError | None:
    """The error in the end of a request; None when it ended well."""
    if finished.finish_reason in _GOOD_ENDS:
        return None
    if finished.finish_reason == attempt_pb2.FINISH_REASON_CANCELLED:
        return PacelineError(Reason.CANCELLED, "the request was cancelled")
    failure = finished.failure
    default = (
        Reason.DEADLINE_EXCEEDED
        if finished.finish_reason == attempt_pb2.FINISH_REASON_EXPIRED
        else Reason.INTERNAL
    )
    return PacelineError(
        reason_of(failure.reason, default),
        failure.message or "the request failed",
        retryable=failure.retryable,
        retry_after_ms=failure.retry_after_ms or None,
        metadata={ATTAINABLE_MS: f"{failure.attainable_ms:.0f}"} if failure.attainable_ms else None,
    )

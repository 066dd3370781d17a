"""What becomes of attempts, written down once: states, ends and KV, in the table and in the next report."""

from collections.abc import Callable

from paceline_executor.contract import AttemptState, EndReason, KvUse
from paceline_executor.frames.attempt import Attempt
from paceline_executor.frames.reporting import Reporter
from paceline_executor.frames.table import AttemptTable


class Book:
    """Used under the engine's lock. `on_news` is called when there is something to report, `on_end` at each end."""

    def __init__(
        self,
        table: AttemptTable,
        reporter: Reporter,
        on_news: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self.table = table
        self.reporter = reporter
        self.used_tokens = 0
        """KV positions of the attempts that are in the engine."""
        self.resident = 0
        """How many of them there are."""
        self._cached_tokens = 0
        self._on_news = on_news
        self._on_end = on_end

    def tokens(self, attempt: Attempt) -> None:
        """It has tokens that are not published."""
        self.reporter.tokens(attempt)
        self._on_news()

    def entered(self, attempt: Attempt) -> None:
        """It is in the engine now."""
        self.set_cached(attempt, 0)
        self.resident += 1
        self.used_tokens += attempt.known_tokens - 1

    def left(self, attempt: Attempt) -> None:
        """It is not in the engine any more."""
        self.resident -= 1
        self.used_tokens -= attempt.known_tokens - 1

    def set_cached(self, attempt: Attempt, tokens: int) -> None:
        """So many of its positions are believed to be in the cache while it is not in the engine."""
        self._cached_tokens += tokens - attempt.cached_tokens
        attempt.cached_tokens = tokens

    def set_state(self, attempt: Attempt, state: AttemptState) -> None:
        """It stands elsewhere."""
        if attempt.state is not state and attempt.ended is None:
            attempt.state = state
            self.reporter.moved(attempt)

    def bury(self, attempt: Attempt, reason: EndReason, error_reason: str = "", message: str = "",
             *, retryable: bool = False) -> None:  # fmt: skip
        """It is over; once is enough."""
        if attempt.ended is not None:
            return
        self.set_cached(attempt, 0)
        ended = attempt.end(
            reason, self.table.now_s(), error_reason=error_reason, message=message, retryable=retryable
        )
        if attempt.count > attempt.published:
            self.reporter.tokens(attempt)
        self.reporter.ended(ended)
        self.table.bury(ended)
        self._on_news()
        self._on_end()

    def kv_use(self) -> KvUse:
        """KV by the agent's own account."""
        return KvUse(self.used_tokens, self._cached_tokens, self.resident, self.table.live)

    def flush(self) -> None:
        """Report now what is to be reported."""
        if self.reporter.pending:
            self.reporter.flush(self.kv_use())

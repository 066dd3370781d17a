"""How long to wait before a dead process is started again."""

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """First restart at once, then `delay_s` doubling up to `max_s`; a life of `stable_s` forgets the past."""

    delay_s: float
    max_s: float
    stable_s: float
    failures: int = 0

    def next_wait_s(self, lived_s: float) -> float:
        """Seconds to wait after a process that lived `lived_s` seconds."""
        if lived_s >= self.stable_s:
            self.failures = 0
        self.failures += 1
        if self.failures == 1:
            return 0.0
        return min(self.max_s, self.delay_s * 2.0 ** min(self.failures - 2, 60))

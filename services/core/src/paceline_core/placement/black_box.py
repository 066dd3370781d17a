"""Engine times as seen from outside (GoodServe): q, p and d, each smoothed exponentially."""

from typing import Final

import numpy as np

from paceline_core.placement.view import BlackBox, Floats

FACTOR: Final = 0.2
"""Weight of the newest observation. The paper gives no number: this one is ours."""


class BlackBoxTimes:
    """Fed with what the router sees of its requests; one row per engine, grown as they come.

    TTFT is q + p * tokens + one decode step, in one number. p is learned from requests that found the engine idle
    (their q is 0), and from the first one where there is none; q is what is left of the others. An engine that
    reports an empty queue and no work is an observation of q = 0: without it an engine once avoided would be avoided
    for ever (ours; the paper does not say).
    """

    def __init__(self, factor: float = FACTOR) -> None:
        """Raises ValueError unless 0 < factor <= 1."""
        if not 0 < factor <= 1:
            raise ValueError(f"factor must be in (0, 1], got {factor:g}")
        self._factor = factor
        self._times: Floats = np.full((3, 8), np.nan)

    def first_token(self, row: int, ttft_ms: float, prefilled_tokens: float, alone: bool) -> None:
        """A first token came `ttft_ms` after its placement; `alone`: the engine was idle then."""
        self._reserve(row)
        queue, prefill, decode = self._times[:, row]
        step = 0.0 if np.isnan(decode) else float(decode)
        tokens = max(prefilled_tokens, 1.0)
        if alone or np.isnan(prefill):
            self._smooth(1, row, max(ttft_ms - step, 0.0) / tokens)
        if not alone and not np.isnan(prefill):
            self._smooth(0, row, max(ttft_ms - step - prefill * tokens, 0.0))
        elif np.isnan(queue) or alone:
            self._smooth(0, row, 0.0)

    def tokens(self, row: int, count: int, took_ms: float) -> None:
        """`count` further output tokens of a request took so long."""
        if count > 0 and took_ms > 0:
            self._reserve(row)
            self._smooth(2, row, took_ms / count)

    def idle(self, row: int) -> None:
        """The engine reports that it has nothing to do."""
        self._reserve(row)
        if not np.isnan(self._times[0, row]):
            self._smooth(0, row, 0.0)

    def forget(self, row: int) -> None:
        """A new life of the engine: nothing is known of it."""
        self._reserve(row)
        self._times[:, row] = np.nan

    def view(self, engines: int) -> BlackBox:
        """The times of the first `engines` rows; views, to be read only."""
        if engines:
            self._reserve(engines - 1)
        queue, prefill, decode = self._times[:, :engines]
        return BlackBox(queue, prefill, decode)

    def _smooth(self, what: int, row: int, value: float) -> None:
        old = float(self._times[what, row])
        self._times[what, row] = value if np.isnan(old) else old + self._factor * (value - old)

    def _reserve(self, row: int) -> None:
        have = self._times.shape[1]
        if row >= have:
            more = np.full((3, max(have, row + 1 - have)), np.nan)
            self._times = np.concatenate([self._times, more], axis=1)

"""Prompt tokens before an engine has counted them: bytes times a ratio learned per model."""

from typing import Final

_START_BYTES_PER_TOKEN: Final = 4.0
_WEIGHT: Final = 0.05
_BOUNDS: Final = (0.5, 20.0)


class PromptSizes:
    """Bytes per token of each model, a moving average over accepted prompts."""

    def __init__(self) -> None:
        self._bytes_per_token: dict[str, float] = {}

    def estimate(self, model: str, size_bytes: int) -> int:
        """Tokens of a text of this size, at least 1."""
        return max(1, round(size_bytes / self._bytes_per_token.get(model, _START_BYTES_PER_TOKEN)))

    def learn(self, model: str, size_bytes: int, tokens: int) -> None:
        """An engine counted `tokens` in a text of this size. Models come from the fleet, so their number is
        bounded."""
        if size_bytes and tokens:
            old = self._bytes_per_token.get(model, _START_BYTES_PER_TOKEN)
            ratio = min(max(size_bytes / tokens, _BOUNDS[0]), _BOUNDS[1])
            self._bytes_per_token[model] = old + _WEIGHT * (ratio - old)

"""How servers differ that all speak OpenAI's interface: what they take, and where they put token ids.

Only documented names are here. None of these servers was run for this but `paceline`; the others are as their
documentation and sources say.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from paceline_executor.contract import Sampling


@dataclass(frozen=True)
class Dialect:
    """One server's ways with `/v1/completions`."""

    name: str
    health: str
    """Path that answers 200 while all is well."""
    ask_for_ids: dict[str, Any] = field(default_factory=dict)
    """Fields that make it return token ids; empty: it does not, and ids are read out of the text."""
    has_ignore_eos: bool = True
    has_top_k: bool = True
    has_salt: bool = False
    native: bool = False
    """Spoken to by llama.cpp's own interface instead, see `llama_server`."""
    adapters_as_models: bool = False
    """A LoRA adapter is asked for by its name in place of the model's."""
    priority: Callable[[float], float | int] | None = None
    """From 0..1, the most urgent 1, to its own field `priority`."""

    def body(self, sampling: Sampling, priority: float, salt: str) -> dict[str, Any]:
        """Sampling fields of a request."""
        body: dict[str, Any] = {"temperature": sampling.temperature, **self.ask_for_ids}
        if sampling.temperature > 0:
            body |= {"top_p": sampling.top_p, "seed": sampling.seed & 0x7FFFFFFFFFFFFFFF}
            if sampling.top_k:
                body["top_k"] = sampling.top_k
        if sampling.presence_penalty:
            body["presence_penalty"] = sampling.presence_penalty
        if sampling.frequency_penalty:
            body["frequency_penalty"] = sampling.frequency_penalty
        if sampling.repetition_penalty != 1.0:
            body["repetition_penalty"] = sampling.repetition_penalty
        if sampling.logit_bias:
            body["logit_bias"] = {str(token): amount for token, amount in sampling.logit_bias}
        if sampling.ignore_eos:
            body["ignore_eos"] = True
        if sampling.stop_token_ids:
            body["stop_token_ids"] = list(sampling.stop_token_ids)
        if salt and self.has_salt:
            body["cache_salt"] = salt
        if self.priority is not None:
            body["priority"] = self.priority(priority)
        return body


def _lower_is_sooner(priority: float) -> int:
    return round((1.0 - priority) * 1000)


DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect("trtllm", "/health", {"detokenize": False}, has_salt=True, priority=lambda value: value),
        Dialect(
            "vllm",
            "/health",
            {"return_token_ids": True},
            has_salt=True,
            adapters_as_models=True,
            priority=_lower_is_sooner,
        ),
        Dialect("sglang", "/health"),
        Dialect("llama-server", "/health", native=True),
        Dialect("paceline", "/healthz", {"return_token_ids": True}, has_salt=True, adapters_as_models=True),
    )
}

"""llama.cpp's own server, by its own `/completion`: unlike its OpenAI interface it gives the token ids back."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from paceline_executor.contract import Sampling
from paceline_executor.frames.backend import LegEnd, LegFailed, LegItem, LegRequest

PATH = "/completion"
_SEED_MASK = 0x7FFFFFFF


def body(request: LegRequest, *, may_reuse: bool) -> dict[str, Any]:
    """A request. What the server has defaults of its own for is said. `may_reuse`: it may take over earlier KV."""
    wanted: Sampling = request.sampling
    fields: dict[str, Any] = {
        "prompt": request.ids,
        "n_predict": request.max_tokens,
        "stream": True,
        "return_tokens": True,
        "cache_prompt": may_reuse,
        "temperature": wanted.temperature,
        "top_k": wanted.top_k,
        "top_p": wanted.top_p,
        "min_p": 0.0,
        "repeat_penalty": wanted.repetition_penalty,
        "repeat_last_n": len(request.ids) + request.max_tokens,
        "presence_penalty": wanted.presence_penalty,
        "frequency_penalty": wanted.frequency_penalty,
        "ignore_eos": wanted.ignore_eos,
    }
    if wanted.temperature > 0:
        fields["seed"] = wanted.seed & _SEED_MASK
    if wanted.logit_bias:
        fields["logit_bias"] = [[token, amount] for token, amount in wanted.logit_bias]
    return fields


class EventReader:
    """Reads the events of one request.

    A character that several tokens make comes as one event with the id of the last of them alone. The others are read
    out of its text; where that does not fit they are lost, and counted.
    """

    def __init__(self, read_ids: Callable[[str], Sequence[int]], counters: Counter[str]) -> None:
        self._read_ids = read_ids
        self._counters = counters
        self._made = 0

    def item(self, event: dict[str, Any]) -> LegItem | None:
        """News of one event; None for one that tells nothing. Raises LegFailed."""
        if "error" in event:
            raise LegFailed(str(event["error"])[:500])
        if event.get("stop"):
            # What it sends in the end repeats nothing: the tokens were streamed.
            return LegItem((), LegEnd.LENGTH if event.get("stop_type") == "limit" else LegEnd.STOP)
        ids: Sequence[int] = event.get("tokens") or ()
        made = int(event.get("tokens_predicted", self._made + len(ids)))
        if made - self._made > len(ids) > 0:
            read = self._read_ids(event.get("content") or "")
            if len(read) == made - self._made and list(read[-len(ids) :]) == list(ids):
                ids = read
            else:
                self._counters["ids_lost"] += made - self._made - len(ids)
        self._made = made
        return LegItem(ids) if ids else None

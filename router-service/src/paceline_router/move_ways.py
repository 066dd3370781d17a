"""How a request gets to another engine soonest: by its KV or by its tokens. Pure but for what was measured."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, TypeVar

from paceline.common.v1 import attempt_pb2, engine_pb2
from paceline_router.move import Way

_FACTOR: Final = 0.3
"""Weight of the newest measurement."""
_FIRST_BYTES_PER_MS: Final = 100_000.0
"""Rate that is assumed before anything was measured: 100 MB/s."""
_KEPT: Final = 4096
_Key = TypeVar("_Key")
_ROUND_TRIP_MS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be taken over: prompt, output, and its size as KV, tokens and bytes."""

    prompt_tokens: int
    output_tokens: int
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class Costs:
    """The step-time model of the landing engine, milliseconds, and its prefill chunk."""

    a1_ms: float
    c_ms: float
    p0_ms: float
    d_ms: float
    e_ms: float
    chunk_tokens: int

    def prefill_ms(self, tokens: int) -> float:
        """A prompt in chunks."""
        calls = -(-tokens // max(self.chunk_tokens, 1))
        return self.p0_ms * calls + tokens * (self.d_ms + self.e_ms * tokens / 2)

    def decode_ms(self, prompt_tokens: int, tokens: int) -> float:
        """So many tokens, one step each."""
        return tokens * (self.a1_ms + self.c_ms * (prompt_tokens + tokens / 2))


class MoveTimes:
    """What moves took. By pair of engines: KV bytes per millisecond, all waiting included. By engine: how much longer
    a replay took than its model says. Bounded: the pair that was used longest ago goes first."""

    def __init__(self) -> None:
        self._rates: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._slower: OrderedDict[str, float] = OrderedDict()

    def landed(
        self, way: Way, source: str, target: str, kv_bytes: int, model_ms: float, took_ms: float
    ) -> None:
        """A landing took so long. `model_ms`: what the step-time model alone says."""
        if took_ms <= 0:
            return
        if way is Way.KV and kv_bytes:
            _smooth(self._rates, (source, target), kv_bytes / took_ms)
        elif way is not Way.KV and model_ms > 0:
            _smooth(self._slower, target, max(took_ms / model_ms, 0.1))

    def expected_ms(self, way: Way, source: str, target: str, load: Load, costs: Costs) -> float:
        """Until the landing engine is ready."""
        if way is Way.KV:
            return _ROUND_TRIP_MS + load.kv_bytes / self._rates.get((source, target), _FIRST_BYTES_PER_MS)
        return model_ms(way, load, costs) * self._slower.get(target, 1.0)


def model_ms(way: Way, load: Load, costs: Costs) -> float:
    """A replay by the step-time model; 0 for KV."""
    if way is Way.REPLAY_EXACT:
        return costs.prefill_ms(load.prompt_tokens) + costs.decode_ms(load.prompt_tokens, load.output_tokens)
    return costs.prefill_ms(load.prompt_tokens + load.output_tokens) if way is Way.REPLAY_FAST else 0.0


def open_ways(
    source: engine_pb2.EngineCapabilities, target: engine_pb2.EngineCapabilities, *, allow_fast: bool
) -> tuple[Way, ...]:
    """Ways that two engines have in common. Exact replay is always there: an engine that cannot do better does the
    same fast, as after any failure."""
    ways = [Way.REPLAY_EXACT]
    same = ("build", "model_hash", "kv_type")
    if (
        source.kv_transfer
        and target.kv_transfer
        and all(getattr(source, f) == getattr(target, f) for f in same)
    ):
        ways.insert(0, Way.KV)
    if allow_fast and attempt_pb2.REPLAY_MODE_FAST in target.replay_modes:
        ways.append(Way.REPLAY_FAST)
    return tuple(ways)


def _smooth(values: OrderedDict[_Key, float], key: _Key, seen: float) -> None:
    before = values.pop(key, seen)
    values[key] = before + _FACTOR * (seen - before)
    if len(values) > _KEPT:
        values.popitem(last=False)

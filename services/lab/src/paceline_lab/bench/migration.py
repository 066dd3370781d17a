"""What a move costs the client: the pause it sees when its request goes to another engine, by KV and by exact replay.

Each round takes one prompt of every context length, of random token ids that no prefix cache knows, and moves it three
times in streams of their own: by KV, by exact replay, and by the way that the router chooses. Then it runs undisturbed,
for comparison. The pause is the time between the last token of the old engine and the first one of the new, at the
client.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import grpc
import numpy as np

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.router.v1 import generation_pb2, router_pb2, router_pb2_grpc
from paceline_lab.bench.statistics import summary

_CALL_S: Final = 180.0
_VOCABULARY: Final = (1000, 30000)
"""Ids of plain pieces of text in the embedded model."""
_WAYS: Final = {
    "kv": router_pb2.MOVE_WAY_KV,
    "replay": router_pb2.MOVE_WAY_REPLAY_EXACT,
    "chosen": router_pb2.MOVE_WAY_UNSPECIFIED,
}
_NAMES: Final = {router_pb2.MOVE_WAY_KV: "kv", router_pb2.MOVE_WAY_REPLAY_EXACT: "replay"}


class MigrationBenchError(Exception):
    """The run is void; its text says why."""


@dataclass(frozen=True, slots=True)
class MigrationPlan:
    """How much to measure. `move_at`: output tokens at which a move begins; `after`: tokens compared past it."""

    contexts: tuple[int, ...] = (128, 512, 1024, 2048)
    rounds: int = 5
    move_at: int = 32
    after: int = 32
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """One move. `way`: as asked for; `taken`: as done."""

    context: int
    round: int
    way: str
    taken: str
    pause_ms: float
    step_ms: float
    prepare_ms: float
    stop_ms: float
    kv_bytes: int
    from_index: int
    identical: bool


async def measure_migration(
    plan: MigrationPlan, stub: router_pb2_grpc.RouterServiceStub, model: str, say: Callable[[str], None]
) -> list[Trial]:
    """All trials, in turn; a move that fails is said and left out. Raises MigrationBenchError when a stream fails that
    was not to be moved."""
    draw = np.random.default_rng(plan.seed)
    trials: list[Trial] = []
    # The first round is short and not recorded: engines get warm, step-time models are fitted.
    for number in range(-1, plan.rounds):
        for context in plan.contexts if number >= 0 else plan.contexts[:1]:
            prompt = draw.integers(*_VOCABULARY, size=context, dtype=np.int64).astype("<i4").tobytes()
            trial = await _compare(plan, stub, model, prompt, context, number, say)
            if number >= 0:
                trials += trial
            said = ", ".join(f"{t.way} {t.pause_ms:.0f} ms" for t in trial)
            say(f"round {number + 1} of {plan.rounds}, context {context}: {said}")
    return trials


def migration_result(plan: MigrationPlan, trials: Sequence[Trial]) -> dict[str, Any]:
    """The figures: by context and way, and over all."""
    rows = []
    for context in plan.contexts:
        for way in _WAYS:
            some = [t for t in trials if (t.context, t.way) == (context, way)]
            if not some:
                continue
            rows.append(
                {
                    "context_tokens": context,
                    "way": way,
                    "taken": {name: sum(t.taken == name for t in some) for name in ("kv", "replay")},
                    "pause_ms": asdict(summary([t.pause_ms for t in some])),
                    "step_ms": asdict(summary([t.step_ms for t in some])),
                    "prepare_ms": asdict(summary([t.prepare_ms for t in some])),
                    "stop_ms": asdict(summary([t.stop_ms for t in some])),
                    "kv_bytes": int(np.median([t.kv_bytes for t in some])),
                    "identical_share": float(np.mean([t.identical for t in some])),
                }
            )
    return {
        "rows": rows,
        "identical_share": float(np.mean([t.identical for t in trials])) if trials else 0.0,
        "chosen_faster_share": _chosen_faster(trials),
        "moves": len(trials),
        "moves_failed": len(_WAYS) * len(plan.contexts) * plan.rounds - len(trials),
        "plan": asdict(plan),
    }


def _chosen_faster(trials: Sequence[Trial]) -> float:
    """Share of rounds in which the way that the router chose had the shorter pause of the two."""
    pauses = {(t.context, t.round, t.way): t.pause_ms for t in trials}
    right = []
    for t in trials:
        both = {name: pauses.get((t.context, t.round, name), np.inf) for name in ("kv", "replay")}
        if t.way == "chosen" and np.isfinite(list(both.values())).all():
            right.append(both[t.taken] <= min(both.values()))
    return float(np.mean(right)) if right else 0.0


async def _compare(
    plan: MigrationPlan,
    stub: router_pb2_grpc.RouterServiceStub,
    model: str,
    prompt: bytes,
    context: int,
    number: int,
    say: Callable[[str], None],
) -> list[Trial]:
    moved = {}
    for way in _WAYS:
        stream = _Stream(stub, prompt, model, f"m{plan.seed}-{number}-{context}-{way}")
        try:
            moved[way] = stream, await stream.run(plan.move_at, plan.after, _WAYS[way])
        except MigrationBenchError as error:
            say(f"a move by {way} failed at context {context}: {error}")
    if not moved:
        return []
    alone = _Stream(stub, prompt, model, f"m{plan.seed}-{number}-{context}-alone")
    await alone.run(max(len(stream.ids) for stream, _ in moved.values()), 0, None)
    trials = []
    for way, (stream, done) in moved.items():
        assert done is not None
        at = done.from_index
        arrived = np.array(stream.arrived_ms)
        trials.append(
            Trial(
                context=context,
                round=number,
                way=way,
                taken=_NAMES.get(done.way, "other"),
                pause_ms=float(arrived[at] - arrived[at - 1]),
                step_ms=float(np.median(np.diff(arrived[: plan.move_at]))),
                prepare_ms=done.prepare_ms,
                stop_ms=done.stop_ms,
                kv_bytes=done.kv_bytes,
                from_index=at,
                identical=stream.ids == alone.ids[: len(stream.ids)],
            )
        )
    return trials


class _Stream:
    """One request as its client sees it: ids, and when each of them came."""

    def __init__(
        self, stub: router_pb2_grpc.RouterServiceStub, prompt: bytes, model: str, request_id: str
    ) -> None:
        self._stub = stub
        self._spec = generation_pb2.GenerationSpec(
            request_id=request_id,
            model=model,
            token_ids=prompt,
            max_tokens=1024,
            streaming=True,
            slo=slo_pb2.Slo(best_effort=slo_pb2.BestEffortSlo()),
            sampling=attempt_pb2.SamplingParams(ignore_eos=True),
            on_disconnect=generation_pb2.ON_DISCONNECT_CANCEL,
        )
        self.ids: list[int] = []
        self.arrived_ms: list[float] = []

    async def run(
        self, move_at: int, after: int, way: router_pb2.MoveWay.ValueType | None
    ) -> router_pb2.MoveRequestResponse | None:
        """Read up to `move_at` tokens, move, and read `after` more from where the new engine took over."""
        call: Any = self._stub.Generate(router_pb2.GenerateRequest(spec=self._spec), timeout=_CALL_S)
        moving: Any = None
        wanted = move_at
        try:
            async for event in call:
                if event.HasField("finished"):
                    raise MigrationBenchError(f"a stream ended early: {event.finished}")
                now_ms = time.perf_counter() * 1000
                self.ids += event.tokens.token_ids
                self.arrived_ms += [now_ms] * len(event.tokens.token_ids)
                if len(self.ids) < wanted:
                    continue
                if way is None:
                    break
                if moving is None:
                    asked = router_pb2.MoveRequestRequest(
                        request_id=self._spec.request_id, engine_id=await self._other_engine(), way=way
                    )
                    moving = self._stub.MoveRequest(asked, timeout=_CALL_S)
                if moving.done():
                    done: router_pb2.MoveRequestResponse = await moving
                    wanted = done.from_index + after
                    if len(self.ids) >= wanted:
                        return done
        except grpc.RpcError as error:
            raise MigrationBenchError(str(error)) from None
        finally:
            call.cancel()
            await self._stub.Cancel(
                router_pb2.CancelRequest(request_id=self._spec.request_id), timeout=_CALL_S
            )
        return None

    async def _other_engine(self) -> str:
        request = router_pb2.GetRequestRequest(request_id=self._spec.request_id)
        record = (await self._stub.GetRequest(request, timeout=_CALL_S)).request
        engines = (await self._stub.ListEngines(router_pb2.ListEnginesRequest(), timeout=_CALL_S)).engines
        return next(e.engine_id for e in engines if e.engine_id != record.attempts[-1].engine_id)

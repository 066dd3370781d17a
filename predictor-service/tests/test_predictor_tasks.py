"""Patterns learned from finished tasks, and the RPCs that forecast and learn."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from paceline.predictor.v1 import predictor_pb2 as pb
from paceline.predictor.v1 import predictor_pb2_grpc
from paceline_core.tasks.graph import Call, TaskGraph, stages_of
from paceline_core.tasks.pattern import BYTES_A_PATTERN, Pattern, pattern_of
from paceline_core.tasks.shapes import shape_of
from paceline_predictor.app import PredictorApp
from paceline_predictor.config import Config
from paceline_predictor.tasks.desk import SHIPPED
from paceline_predictor.tasks.levels import BINS, RAW_LEVELS, SHARPNESS, LevelMaps, places
from paceline_predictor.tasks.library import LibraryParams, PatternLibrary
from paceline_predictor.tasks.matcher import TaskMatcher
from paceline_predictor.tasks.model import QUANTILES, TaskModel, TaskOutcome
from paceline_predictor.tasks.shapes import ShapeCounts, winner
from paceline_runtime.channel import ChannelConfig, channel
from paceline_runtime.errors import Reason
from paceline_runtime.status import from_rpc_error

HOUR_S = 3600.0
PATIENT = ChannelConfig(unary_timeout_s=100.0)
Stub = Any


def task(*outputs: int, app: str = "app") -> TaskGraph:
    calls = [
        Call(str(i), actor="m", stage=i, input_tokens=50, output_tokens=n) for i, n in enumerate(outputs)
    ]
    return TaskGraph(app, tuple(calls))


def pattern(*outputs: int, app: str = "app") -> Pattern:
    return pattern_of(app, stages_of(task(*outputs, app=app)))


def weights(library: PatternLibrary) -> list[float]:
    return library.table()[0].weights.tolist()


def test_tasks_alike_are_one_pattern_and_fade() -> None:
    library = PatternLibrary()
    for tokens in (100, 101, 99):
        library.add(pattern(tokens, 300), HOUR_S)
    library.add(pattern(900, 300), HOUR_S)
    assert weights(library) == [3.0, 1.0]
    library.add(pattern(100, 300), 3 * HOUR_S)
    assert weights(library) == pytest.approx([3 * 0.81 + 1, 0.81], rel=1e-3)


def test_a_clock_set_back_changes_nothing() -> None:
    library = PatternLibrary()
    library.add(pattern(100), 10 * HOUR_S)
    library.add(pattern(900), 1 * HOUR_S)
    assert weights(library) == [1.0, 1.0]


def test_the_library_stays_bounded_and_keeps_what_is_used() -> None:
    library = PatternLibrary(LibraryParams(capacity=40))
    random = np.random.default_rng(0)
    for _ in range(30):
        library.add(pattern(200, 700, app="steady"), HOUR_S)
    for i in range(300):
        library.add(pattern(*random.integers(1, 5000, 4).tolist(), app=f"noise-{i % 3}"), HOUR_S)
    assert len(library) <= 40
    table, ids = library.table()
    steady = table.apps == pattern(1, app="steady").app
    assert table.weights[steady].tolist() == [30.0]
    assert len(set(ids.tolist())) == len(ids)


def test_an_application_that_is_gone_gives_its_place_up() -> None:
    library = PatternLibrary(LibraryParams(capacity=10))
    library.add(pattern(50, app="gone"), 1.0)
    random = np.random.default_rng(1)
    for _ in range(30):
        library.add(pattern(*random.integers(1, 5000, 3).tolist()), 200 * HOUR_S)
    assert pattern(50, app="gone").app not in library.table()[0].apps


def test_patterns_survive_saving_and_a_damaged_state_is_refused() -> None:
    library = PatternLibrary()
    for n in (10, 100, 1000):
        library.add(pattern(n, 2 * n), 5.0)
    state = library.to_bytes()
    assert len(state) < 3 * 0.2 * 1024 + 200
    again = PatternLibrary.from_bytes(state)
    for mine, theirs in zip(again.table(), library.table(), strict=True):
        columns = mine.__slots__ if hasattr(mine, "__slots__") else None
        pairs = (
            [(mine, theirs)] if columns is None else [(getattr(mine, c), getattr(theirs, c)) for c in columns]
        )
        for a, b in pairs:
            np.testing.assert_array_equal(a, b)
    assert len(PatternLibrary.from_bytes(state, LibraryParams(capacity=2))) == 2
    for bad in (b"", state[:-1], state[:40] + b"\xff" + state[41:]):
        with pytest.raises(ValueError):
            PatternLibrary.from_bytes(bad)


def test_levels_move_to_where_outcomes_fall() -> None:
    maps = LevelMaps()
    truth = np.random.default_rng(2).lognormal(0.7, 1.0, 1500)
    quantiles = np.exp(
        np.array([np.quantile(np.random.default_rng(3).normal(0, 1, 20_000), u) for u in RAW_LEVELS])
    )
    row = np.broadcast_to(quantiles, (1, BINS - 1))
    for value in truth:
        maps.learn(7, places(row, np.array([value])), np.ones(1), np.zeros(len(SHARPNESS)), 1.0)
    raw = float(maps.raw(7, np.array([0.5]))[0])
    assert np.mean(
        truth <= np.quantile(np.random.default_rng(3).lognormal(0, 1, 20_000), raw)
    ) == pytest.approx(0.5, abs=0.05)
    again = LevelMaps.from_json(maps.to_json())
    assert again.raw(7, np.array([0.5, 0.9])).tolist() == maps.raw(7, np.array([0.5, 0.9])).tolist()


def test_the_sharpness_that_loses_least_is_used() -> None:
    maps = LevelMaps()
    assert SHARPNESS[maps.sharpness(1)] == 1.0
    for _ in range(50):
        maps.learn(1, np.zeros((0, BINS)), np.zeros(0), np.array([0.1, 0.3, 0.5]), 1.0)
    assert SHARPNESS[maps.sharpness(1)] == 0.0


def test_one_task_is_not_yet_what_an_application_does() -> None:
    library = PatternLibrary()
    library.add(pattern(100, 300), 1.0)
    assert library.trusted().weights[0] < 0.1
    for tokens in range(20):
        library.add(pattern(100, 300 * tokens), 1.0)
    assert library.trusted().weights.sum() > 0.9 * library.table()[0].weights.sum()


def test_the_vote_that_was_right_is_used_and_counts_fade_and_stay_bounded() -> None:
    counts = ShapeCounts(2)
    for _ in range(3):
        counts.add(1, b"aabb", HOUR_S)
    counts.add(1, b"aacc", HOUR_S)
    assert winner(counts.votes(1, b"aa", running=False)) == (b"aabb", 0.75)
    assert counts.votes(1, b"cc", running=False) == {}
    counts.add(1, b"aacc", 11 * HOUR_S)
    assert counts.votes(1, b"aab", running=False)[b"aabb"] == pytest.approx(3 * 0.9**10)
    assert counts.best_way(1) == 0
    for _ in range(5):
        counts.learn(1, [0.0, 1.0])
    assert counts.best_way(1) == 1
    for number in range(1000):
        counts.add(2, number.to_bytes(4, "big"), HOUR_S)
    assert len(counts.votes(2, b"", running=False)) <= 256
    again = ShapeCounts.from_json(counts.to_json(), 2)
    assert again.best_way(1) == 1
    assert again.votes(1, b"", running=False) == pytest.approx(dict(counts.votes(1, b"", running=False)))
    for bad in ("{}", "[[1]]", counts.to_json().replace("[0.0, ", "[-1, ", 1), "[1"):
        with pytest.raises(ValueError):
            ShapeCounts.from_json(bad, 2)


def test_the_shape_of_a_task_is_foretold_from_those_like_it(matcher: TaskMatcher) -> None:
    model = TaskModel(matcher, clock=lambda: 1.0)
    short, long = task(900, 20, app="mine"), task(30, 20, 700, 800, app="mine")
    for _ in range(10):
        for whole in (short, short, long):
            model.observe(TaskOutcome(whole, completed=True))
    for whole in (short, long):
        foretold = model.likely_shape("mine", stages_of(whole).first(1))
        assert foretold is not None
        assert foretold[0] == shape_of(stages_of(whole))
    assert model.likely_shape("nobody", stages_of(short)) is None
    state = model.snapshot()()
    again = TaskModel(matcher, clock=lambda: 1.0)
    again.decoded(state)()
    begun = stages_of(long).first(1)
    assert again.likely_shape("mine", begun) == model.likely_shape("mine", begun)


@pytest.fixture(scope="module")
def matcher() -> TaskMatcher:
    return TaskMatcher(SHIPPED.read_bytes())


def test_forecasts_come_from_the_prior_and_then_from_what_was_learned(matcher: TaskMatcher) -> None:
    model = TaskModel(matcher, clock=lambda: 1.0)
    whole = task(120, 800, 60, app="mine")
    begun = TaskGraph("mine", whole.calls[:1])
    assert model.forecast([begun])[0].source == "prior"
    for _ in range(12):
        assert model.observe(TaskOutcome(whole, completed=True))
    forecast = model.forecast([begun])[0]
    assert forecast.source == "pattern"
    assert forecast.pattern == "learned-1"
    assert forecast.remaining_stages == pytest.approx(2, abs=0.6)
    assert forecast.critical_tokens[QUANTILES.index(0.5)] == pytest.approx(860, rel=0.25)
    assert forecast.stage_shares[0] == pytest.approx(800 / 860, abs=0.05)
    assert sum(forecast.stage_shares) == pytest.approx(1.0, abs=1e-4)


def test_tasks_that_did_not_end_well_teach_nothing(matcher: TaskMatcher) -> None:
    model = TaskModel(matcher)
    only_tools = TaskGraph("a", (Call("t", tool=True, duration_ms=5.0),))
    assert not model.observe(TaskOutcome(task(5, 5), completed=False))
    assert not model.observe(TaskOutcome(TaskGraph("a", ()), completed=True))
    assert not model.observe(TaskOutcome(only_tools, completed=True))
    assert len(model.library) == 0


def test_five_hundred_patterns_take_less_than_their_share_of_memory() -> None:
    library = PatternLibrary()
    held = [getattr(library, name) for name in ("_cells", "_stages", "_apps", "_weights", "_ids", "_shapes")]
    assert sum(column.nbytes for column in held) <= 500 * 0.2 * 1024
    assert BYTES_A_PATTERN == 168


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[Stub]:
    async with serving(tmp_path) as stub:
        yield stub


class serving:
    """A predictor over a loopback socket, its state in a folder."""

    def __init__(self, folder: Path) -> None:
        self._config = Config.model_validate(
            {
                "predictor": {
                    "listen": "127.0.0.1:0",
                    "length_model": "none",
                    "state_path": str(folder / "state"),
                    "state_interval_s": 3600.0,
                }
            }
        )

    async def __aenter__(self) -> Stub:
        self._app = PredictorApp(self._config)
        await self._app.__aenter__()
        self._channel = channel(self._app.address, PATIENT)
        return predictor_pb2_grpc.PredictorServiceStub(self._channel)

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close()
        await self._app.__aexit__(None, None, None)


def message(*outputs: int, app: str = "mine", ended: int | None = None) -> pb.TaskGraph:
    calls = [
        pb.TaskCall(
            request_id=str(i),
            parent_request_ids=[str(i - 1)] if i else [],
            actor="m",
            prompt_tokens=50,
            output_tokens=n,
            ended=ended is None or i < ended,
        )
        for i, n in enumerate(outputs)
    ]
    return pb.TaskGraph(task_id="t", app=app, calls=calls)


async def tell(stub: Stub, tasks: list[pb.TaskOutcome]) -> pb.ObserveResponse:
    async def stream() -> AsyncIterator[pb.ObserveRequest]:
        yield pb.ObserveRequest(tasks=tasks)

    return await stub.Observe(stream())


async def refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_what_was_learned_of_tasks_outlives_the_process(tmp_path: Path) -> None:
    question = pb.ForecastTaskRequest(tasks=[message(120, 0, ended=1), message(120)])
    async with serving(tmp_path) as stub:
        outcome = pb.TaskOutcome(graph=message(120, 800, 60), completed=True)
        answer = await tell(stub, [outcome] * 12)
        assert (answer.accepted, answer.rejected) == (12, 0)
        before = (await stub.ForecastTask(question)).forecasts
        assert [f.source for f in before] == ["pattern", "pattern"]
        assert before[0].stage_shares[0] == pytest.approx(800 / 860, abs=0.05)
        info = (await stub.GetModelInfo(pb.GetModelInfoRequest())).models[1]
        assert (info.kind, info.observed, info.active) == ("tasks", 12, True)
    async with serving(tmp_path) as stub:
        after = (await stub.ForecastTask(question)).forecasts
        assert [f.critical_path_tokens for f in after] == [f.critical_path_tokens for f in before]


async def test_graphs_past_the_limits_are_refused_and_odd_ones_answered(stub: Stub) -> None:
    many = pb.TaskGraph(calls=[pb.TaskCall()] * 10_000)
    error = await refused(stub.ForecastTask(pb.ForecastTaskRequest(tasks=[many])))
    assert error.reason is Reason.INVALID_ARGUMENT
    assert error.metadata["field"] == "tasks[0].calls"
    error = await refused(stub.ForecastTask(pb.ForecastTaskRequest(tasks=[pb.TaskGraph()] * 257)))
    assert error.reason is Reason.INVALID_ARGUMENT
    nan = pb.TaskGraph(calls=[pb.TaskCall(duration_ms=float("nan"))])
    error = await refused(stub.ForecastTask(pb.ForecastTaskRequest(tasks=[nan])))
    assert error.metadata["field"] == "tasks[0].calls[0].duration_ms"

    circle = [
        pb.TaskCall(request_id="a", parent_request_ids=["b"]),
        pb.TaskCall(request_id="b", parent_request_ids=["a"]),
    ]
    twice = [pb.TaskCall(request_id="a", ended=True, output_tokens=2**32 - 1)] * 3
    long = [pb.TaskCall(request_id=str(i), stage=2**32 - 1 - i, ended=True) for i in range(4096)]
    odd = [pb.TaskGraph(calls=calls, app="") for calls in (circle, twice, long, [])]
    answer = await stub.ForecastTask(pb.ForecastTaskRequest(tasks=odd))
    for forecast in answer.forecasts:
        assert np.isfinite(forecast.critical_path_tokens).all()
        assert sum(forecast.stage_shares) == pytest.approx(1.0, abs=1e-4)
    learned = await tell(stub, [pb.TaskOutcome(graph=many, completed=True), pb.TaskOutcome(graph=message(5))])
    assert (learned.accepted, learned.rejected) == (0, 1)


async def test_forecasts_and_outcomes_at_once_do_not_disturb_each_other(stub: Stub) -> None:
    async def learn(app: str) -> None:
        outcomes = [pb.TaskOutcome(graph=message(50 + i, 400, app=app), completed=True) for i in range(10)]
        assert (await tell(stub, outcomes)).accepted == 10

    async def ask() -> None:
        for _ in range(5):
            request = pb.ForecastTaskRequest(tasks=[message(50, app=f"app-{i}") for i in range(8)])
            assert len((await stub.ForecastTask(request)).forecasts) == 8

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(learn(f"app-{number}"))
            group.create_task(ask())
    for number in range(3):
        request = pb.ForecastTaskRequest(tasks=[message(50, app=f"app-{number}")])
        assert (await stub.ForecastTask(request)).forecasts[0].remaining_stages == pytest.approx(1, abs=0.7)

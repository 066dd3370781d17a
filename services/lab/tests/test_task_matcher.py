"""The matcher's graph against its reference, and what it says of tasks that are easy to foretell."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core.tasks.graph import Call, Stages, TaskGraph, stages_of
from paceline_core.tasks.matching import forecast
from paceline_core.tasks.params import MatcherParams
from paceline_core.tasks.pattern import PatternTable, partials, pattern_of, table_of
from paceline_predictor.onnx_file import ModelFileError
from paceline_predictor.tasks.matcher import Matches, TaskMatcher

pytest.importorskip("onnx", reason="writing a graph needs what `make setup-train` installs")

from paceline_lab.tasks.export import matcher

LEVELS = np.array([0.1, 0.5, 0.9])
APPS = ("", "search", "code", "sql")


def random_stages(random: np.random.Generator) -> Stages:
    """Up to 40 stages of all kinds."""
    n = int(random.integers(1, 40))
    columns = np.exp(random.normal(4.0, 2.0, (6, n)))
    columns[:2] = random.integers(0, 6, (2, n))
    names = random.integers(0, 5, n).astype(np.uint8)
    c = [np.rint(column) for column in columns]
    return Stages(c[0], c[1], c[2], c[3], c[4], c[5], names, np.ones(n, dtype=np.bool_))


def random_table(random: np.random.Generator, size: int) -> PatternTable:
    patterns = [pattern_of(str(random.choice(APPS)), random_stages(random)) for _ in range(size)]
    return table_of(patterns, random.exponential(3.0, size).tolist())


def both(shipped: PatternTable, live: PatternTable) -> PatternTable:
    return PatternTable(
        *(np.concatenate([getattr(shipped, x), getattr(live, x)]) for x in PatternTable.__slots__)
    )


def random_params(random: np.random.Generator) -> MatcherParams:
    return MatcherParams(
        weights=tuple(random.exponential(0.5, 6).tolist()),
        actor_weight=float(random.exponential(1.0)),
        recency=float(random.uniform(0.5, 1.0)),
        growth=float(random.uniform()),
        unlikeness=float(random.uniform()),
        other_app_cost=float(random.uniform(0, 4)),
        background_cost=float(random.uniform(0, 6)),
        spread=float(random.uniform(0.2, 1.0)),
        other_spread=float(random.uniform(0.4, 2.0)),
        scale_carry=float(random.uniform()),
    )


@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), live=st.integers(0, 150), batch=st.integers(1, 6))
def test_the_graph_says_what_the_reference_says(seed: int, live: int, batch: int) -> None:
    random = np.random.default_rng(seed)
    params, shipped, learned = random_params(random), random_table(random, 5), random_table(random, live)
    tasks = []
    for _ in range(batch):
        whole = random_stages(random)
        seen = int(random.integers(1, len(whole) + 1))
        tasks.append(
            (str(random.choice(APPS)), whole.begun(seen) if random.integers(2) else whole.first(seen))
        )
    tasks.append(("search", stages_of(TaskGraph("search", ()))))
    partial = partials(tasks)
    levels = np.tile(LEVELS, (len(tasks), 1))
    sharpness = random.choice([0.0, 1.0, 3.0], len(tasks))

    found = TaskMatcher(matcher(params, shipped, {})).run(
        partial, learned, levels.astype(np.float32), sharpness.astype(np.float32)
    )
    wanted = forecast(partial, both(shipped, learned), params, levels, sharpness)

    summary = (wanted.remaining_stages, wanted.remaining_calls, wanted.last_probability, wanted.similarity)
    np.testing.assert_allclose(found.summary, np.stack(summary, axis=1), rtol=2e-3, atol=2e-3)
    for name in ("tokens", "critical_tokens", "coming", "coming_probability"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=5e-3, atol=5e-3)
    np.testing.assert_allclose(found.shares.sum(axis=1), 1.0, atol=1e-5)
    assert (found.shares >= -1e-6).all()
    # A median may fall on either side of a tie in the last digit.
    alike = np.isclose(found.shares, wanted.shares, atol=5e-3).all(axis=1)
    assert alike.mean() >= 0.8
    assert (np.diff(found.critical_tokens, axis=1) >= -1e-3).all()


def steps(*outputs: int, fan_out: int = 1) -> Stages:
    calls = [
        Call(f"{i}.{j}", stage=i, actor=f"step-{i}", input_tokens=100, output_tokens=n)
        for i, n in enumerate(outputs)
        for j in range(fan_out)
    ]
    return stages_of(TaskGraph("", tuple(calls)))


SHORT, LONG = steps(20, 100), steps(400, 100, 300, 600)
TABLE = table_of([pattern_of("app", SHORT), pattern_of("app", LONG)], [20.0, 20.0])
SHIPPED = table_of([pattern_of("else", steps(50))])


@cache
def sharp_matcher() -> TaskMatcher:
    return TaskMatcher(matcher(MatcherParams(weights=(4.0,) * 6), SHIPPED, {}))


def ask(stages: Stages, app: str = "app") -> Matches:
    return sharp_matcher().run(
        partials([(app, stages)]), TABLE, LEVELS[None].astype(np.float32), np.ones(1, dtype=np.float32)
    )


def test_the_first_stage_tells_which_way_a_task_goes() -> None:
    short, long = ask(SHORT.first(1)), ask(LONG.first(1))
    assert short.summary[0, 0] < 1.3
    assert long.summary[0, 0] > 2.7
    assert short.critical_tokens[0, 1] == pytest.approx(100, rel=0.2)
    assert long.critical_tokens[0, 1] == pytest.approx(1000, rel=0.2)


def test_shares_follow_the_work_to_come() -> None:
    assert ask(LONG.begun(2)).shares[0, :3] == pytest.approx([0.1, 0.3, 0.6], abs=0.04)


def test_a_task_nearly_done_is_recognised() -> None:
    assert ask(SHORT.begun(2)).summary[0, 2] > 0.8
    assert ask(LONG.begun(2)).summary[0, 2] < 0.2
    assert ask(LONG.begun(4)).summary[0, 2] > 0.8


def test_parallel_calls_add_tokens_and_no_critical_path() -> None:
    level, sharp = np.full((1, 1), 0.5, dtype=np.float32), np.ones(1, dtype=np.float32)
    alone, side_by_side = (
        sharp_matcher().run(
            partials([("app", steps(50, fan_out=n))]),
            table_of([pattern_of("app", steps(50, 100, fan_out=n))], [20.0]),
            level,
            sharp,
        )
        for n in (1, 4)
    )
    assert side_by_side.critical_tokens[0, 0] == pytest.approx(alone.critical_tokens[0, 0], rel=0.1)
    assert side_by_side.tokens[0, 0] > 2.5 * alone.tokens[0, 0]


def test_a_task_longer_than_all_that_is_known_still_gets_a_forecast() -> None:
    found = ask(steps(*[50] * 300))
    assert np.isfinite(found.critical_tokens).all()
    assert found.critical_tokens[0, 2] > 1
    assert found.shares.sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_file_is_refused(damage: bytes | None) -> None:
    content = matcher(MatcherParams(), SHIPPED, {})
    with pytest.raises(ModelFileError):
        TaskMatcher(content[: len(content) // 2] if damage is None else damage)


def test_a_matcher_without_patterns_is_not_written() -> None:
    with pytest.raises(ValueError, match="at least one pattern"):
        matcher(MatcherParams(), table_of([]), {})

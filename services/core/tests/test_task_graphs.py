"""Stages, patterns and partial tasks."""

import numpy as np
import pytest

from paceline_core.tasks.forecast import sub_deadline_ms
from paceline_core.tasks.graph import MAX_CALLS, Call, Stages, TaskGraph, stages_of
from paceline_core.tasks.pattern import (
    BYTES_A_PATTERN,
    EDGES,
    INPUT,
    LOG_OF_BYTE,
    OUTPUT,
    A,
    P,
    partials,
    pattern_of,
)
from paceline_core.tasks.shapes import TOLD, begins_with, shape_of


def chain(*outputs: int, app: str = "a") -> TaskGraph:
    return TaskGraph(
        app, tuple(Call(str(i), stage=i, input_tokens=10, output_tokens=n) for i, n in enumerate(outputs))
    )


def test_calls_of_one_stage_share_its_critical_path() -> None:
    calls = (Call("q", output_tokens=5), *(Call(f"w{i}", ("q",), output_tokens=10 * i) for i in range(1, 4)))
    stages = stages_of(TaskGraph("a", calls))
    assert stages.model_calls.tolist() == [1, 3]
    assert stages.output_tokens.tolist() == [5, 60]
    assert stages.critical_tokens.tolist() == [5, 30]


def test_unknown_parents_cycles_and_gaps_change_nothing() -> None:
    calls = (
        Call("a", ("b", "nowhere", "a")),  # b stands later, a is itself
        Call("b", ("a",)),
        Call("c", ("b", "b"), stage=4_000_000_000),
    )
    assert stages_of(TaskGraph("x", calls)).model_calls.tolist() == [1, 1, 1]


def test_a_call_listed_twice_counts_as_it_stands_last() -> None:
    calls = (Call("a", output_tokens=3, ended=False), Call("a", output_tokens=9))
    stages = stages_of(TaskGraph("x", calls))
    assert stages.output_tokens.tolist() == [9]
    assert not stages.running


def test_too_many_calls_are_refused() -> None:
    with pytest.raises(ValueError, match=str(MAX_CALLS)):
        TaskGraph("x", tuple(Call("") for _ in range(MAX_CALLS + 1)))


def test_a_pattern_is_small_and_keeps_numbers_within_four_percent() -> None:
    assert BYTES_A_PATTERN + 4 + 8 + 8 + 8 <= 0.2 * 1024
    tokens = [1, 7, 30, 200, 999, 5000, 40_000]
    pattern = pattern_of("a", stages_of(chain(*tokens)))
    read = np.expm1(pattern.cells[: len(tokens), OUTPUT] * LOG_OF_BYTE[OUTPUT])
    assert np.abs(np.log1p(read) - np.log1p(tokens)).max() < 0.04


def test_a_long_chain_keeps_its_work() -> None:
    tokens = [100] * 3000
    pattern = pattern_of("a", stages_of(chain(*tokens)))
    past = np.minimum(EDGES[1:], pattern.stages)
    width = np.maximum(past - EDGES[:-1], 0)
    work = (width * np.expm1(pattern.cells[:, OUTPUT] * LOG_OF_BYTE[OUTPUT])).sum()
    assert work == pytest.approx(300_000, rel=0.04)


def test_of_a_running_stage_only_prompts_are_known() -> None:
    stages = stages_of(chain(50, 60, 70)).begun(3)
    batch = partials([("a", stages)])
    assert batch.running[0] == 1
    assert batch.known[0, 2].tolist() == [float(a == INPUT) for a in range(A)]
    assert batch.known[0, :2].all()
    assert not batch.known[0, 3:].any()
    assert batch.done_critical[0] == 110


def test_no_calls_and_absurd_numbers_make_finite_columns() -> None:
    wild = TaskGraph("", (Call("", tool=True, duration_ms=1e300), Call("", input_tokens=2**32)))
    batch = partials([("", stages_of(TaskGraph("", ()))), ("", stages_of(wild))])
    assert batch.stages.tolist() == [0, 1]
    assert np.isfinite(batch.values).all()
    assert batch.values.shape == (2, P, A)


def test_sub_deadlines_deal_out_what_is_left() -> None:
    assert sub_deadline_ms(100.0, 1100.0, (0.2, 0.3, 0.5)) == 300.0
    assert sub_deadline_ms(100.0, 1100.0, (0.2, 0.3, 0.5), stage=2) == 1100.0
    assert sub_deadline_ms(2000.0, 1100.0, (0.2, 0.8)) == 1100.0
    assert sub_deadline_ms(0.0, 500.0, ()) == 500.0


def test_a_shape_tells_who_was_called_and_whether_side_by_side() -> None:
    def chain(actors: str, fan_out: int = 1, tokens: int = 10) -> Stages:
        calls = [
            Call(f"{i}.{j}", stage=i, actor=actor, output_tokens=tokens)
            for i, actor in enumerate(actors)
            for j in range(fan_out)
        ]
        return stages_of(TaskGraph("", tuple(calls)))

    assert shape_of(chain("abc", tokens=7)) == shape_of(chain("abc", tokens=900))
    assert shape_of(chain("abc", 3)) == shape_of(chain("abc", 5)) != shape_of(chain("abc"))
    whole = shape_of(chain("abc"))
    assert begins_with(whole, shape_of(chain("ab")), running=False)
    assert not begins_with(whole, shape_of(chain("ac")), running=False)
    assert not begins_with(whole, shape_of(chain("abcd")), running=True)
    # A running stage may still get calls, one that ended may not.
    assert begins_with(shape_of(chain("ab", 2)), shape_of(chain("a")), running=True)
    assert not begins_with(shape_of(chain("ab", 2)), shape_of(chain("a")), running=False)
    long = chain("a" * (TOLD + 5))
    assert shape_of(long) != shape_of(chain("a" * (TOLD + 6)))
    assert begins_with(shape_of(long), shape_of(long.first(TOLD + 2)), running=False)

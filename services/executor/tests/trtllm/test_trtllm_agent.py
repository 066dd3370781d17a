"""What the agent does with plans: frames, credits, tight requests, priorities, builds that lack something."""

import asyncio
from typing import Any

import pytest

from paceline_executor.contract import AttemptState, DeviationReason, EndReason, Sampling
from paceline_executor.trtllm import emulator
from paceline_executor.trtllm.emulator.blocks import DEFAULT_PRIORITY
from paceline_executor.trtllm.emulator.parameters import Faults
from paceline_executor.trtllm.emulator.virtual_time import run_virtually
from paceline_executor.trtllm.features import detect
from paceline_executor.trtllm.plan_mode import PINNED_VERSIONS, PlanMailbox, PlanModeError, install

from .rig import Rig

GREEDY = Sampling(ignore_eos=True)


def test_a_running_request_leaves_at_a_frames_end_and_comes_back_the_same() -> None:
    async def work() -> None:
        rig = Rig(max_batch=1, max_resident=1, frame_iterations=16, frame_ms=10_000.0)
        rig.add(9, max_tokens=120)
        rig.plan(9)
        await rig.until_ended(9)
        rig.add(1, max_tokens=120)
        rig.plan(1)
        await rig.until_count(1, 3)
        rig.add(2, "another story", max_tokens=10)
        iterations = rig.executor.iter_counter
        rig.plan(2, 1)
        await rig.until_count(2, 1)
        assert rig.executor.iter_counter - iterations <= 20, "a frame, an abort and a prefill"
        await rig.until_ended(1, 2)
        assert rig.tokens[1] == rig.tokens[9]
        assert rig.engine.counters["preemptions"] == 1
        assert rig.engine.counters["resumes"] == 1
        await rig.engine.aclose()

    run_virtually(work())


def test_a_frame_is_not_cut_short_by_plans_that_change_their_mind() -> None:
    async def work() -> None:
        rig = Rig(max_batch=1, max_resident=1, frame_iterations=64, frame_ms=10_000.0)
        for key in (1, 2):
            rig.add(key, f"story {key}", max_tokens=200)
        rig.plan(1, 2)
        await rig.until_count(1, 2)
        for turn in range(40):
            rig.plan(*((2, 1) if turn % 2 == 0 else (1, 2)))
            await asyncio.sleep(0.02)
        assert rig.engine.counters["preemptions"] <= 2
        await rig.engine.aclose()

    run_virtually(work())


def test_requests_are_tight_and_extended_by_resumes() -> None:
    async def work() -> None:
        rig = Rig(reserve_tokens=50)
        rig.add(1, max_tokens=180)
        rig.plan(1)
        await rig.until_count(1, 1)
        (request,) = rig.executor.active_requests
        assert request.sampling.max_tokens == 50
        await rig.until_ended(1)
        assert len(rig.tokens[1]) == 180
        assert rig.engine.counters["resumes"] == 3
        assert not any(step.kv.live == 0 and not rig.ended for step in rig.steps)
        await rig.engine.aclose()

    run_virtually(work())


@pytest.mark.parametrize(
    ("bound", "asked", "resumes"),
    [(0, 50, 3), (300, 180, 0), (120, 120, 2), (4, 32, 3)],
    ids=["unknown", "long", "passed", "short"],
)
def test_a_request_asks_for_what_it_is_expected_to_need_and_for_more_when_it_needs_more(
    bound: int, asked: int, resumes: int
) -> None:
    async def work() -> None:
        rig = Rig(reserve_tokens=50)
        rig.add(1, max_tokens=180, output_bound_tokens=bound)
        rig.add(9, max_tokens=180)
        rig.plan(1)
        await rig.until_count(1, 1)
        (request,) = rig.executor.active_requests
        assert request.sampling.max_tokens == asked
        dear = request.holding.priority > DEFAULT_PRIORITY
        assert dear is (bound == 0), "kept for its return is only what is likely to return"
        await rig.until_ended(1)
        assert rig.engine.counters["resumes"] == resumes
        rig.plan(9)
        await rig.until_ended(9)
        assert rig.tokens[1] == rig.tokens[9], "the bound ends nothing and changes nothing"
        await rig.engine.aclose()

    run_virtually(work())


def test_where_more_wait_than_run_what_runs_is_kept_for_its_return() -> None:
    async def work() -> None:
        rig = Rig(max_batch=1, max_resident=1)
        for key in (1, 2):
            rig.add(key, f"story {key}", max_tokens=100, output_bound_tokens=100)
        rig.plan(1, 2)
        await rig.until_count(1, 1)
        assert rig.executor.active_requests[0].holding.priority > DEFAULT_PRIORITY
        await rig.until_count(2, 1)
        rig.engine.cancel(1)
        rig.engine.cancel(2)
        await rig.until_ended(1, 2)
        await rig.engine.aclose()

    run_virtually(work())


def test_no_bound_asks_for_more_than_the_longest_reserve() -> None:
    async def work() -> None:
        rig = Rig(longest_reserve_tokens=100)
        rig.add(1, max_tokens=180, output_bound_tokens=10_000)
        rig.plan(1)
        await rig.until_count(1, 1)
        assert rig.executor.active_requests[0].sampling.max_tokens == 100
        await rig.until_ended(1)
        assert len(rig.tokens[1]) == 180
        await rig.engine.aclose()

    run_virtually(work())


def test_what_is_reserved_bounds_what_is_let_in() -> None:
    async def work() -> None:
        rig = Rig(kv_capacity_tokens=1024, context_tokens=1024, reserve_tokens=256, max_batch=8)
        for key in range(1, 7):
            rig.add(key, f"{key} " * 100, max_tokens=250)
        rig.plan(*range(1, 7))
        most = 0
        while len(rig.ended) < 6:
            await asyncio.sleep(0.005)
            rig.read()
            most = max(most, len(rig.engine._frames.legs))
            assert len(rig.executor.waiting) == 0
            assert rig.executor.pool.used <= rig.executor.pool.total
        assert most == 2, "each needs some 450 of 1024"
        await rig.engine.aclose()

    run_virtually(work())


def test_several_tokens_in_an_item_are_each_published_once() -> None:
    async def work() -> None:
        rig = Rig(stream_interval=7)
        rig.add(1, max_tokens=50)
        rig.plan(1)
        await rig.until_ended(1)
        assert len(rig.tokens[1]) == 50
        assert rig.ended[1].reason is EndReason.LENGTH
        await rig.engine.aclose()

    run_virtually(work())


def test_attempts_with_penalties_are_never_taken_out_and_that_is_said() -> None:
    async def work() -> None:
        rig = Rig(max_batch=1, max_resident=1, frame_iterations=4)
        rig.add(1, max_tokens=60, sampling=Sampling(ignore_eos=True, presence_penalty=0.5))
        rig.plan(1, token_limits=(20,))
        await rig.until_count(1, 30)
        rig.add(2, "other", max_tokens=5)
        rig.plan(2, 1)
        await rig.until_ended(1, 2)
        assert rig.engine.counters["resumes"] == 0
        reasons = {row.reason for step in rig.steps for row in step.deviations}
        assert reasons == {DeviationReason.UNSUPPORTED}
        await rig.engine.aclose()

    run_virtually(work())


def test_a_sampled_answer_does_not_repeat_itself_after_a_resume() -> None:
    async def work() -> None:
        rig = Rig()
        rig.add(1, max_tokens=60, sampling=Sampling(ignore_eos=True, temperature=1.0, seed=4))
        rig.plan(1, token_limits=(30,))
        await rig.until(lambda: rig.state(1) is AttemptState.PAUSED)
        rig.plan(1)
        await rig.until_ended(1)
        assert rig.tokens[1][30:] != rig.tokens[1][:30]
        await rig.engine.aclose()

    run_virtually(work())


def test_plan_mode_holds_what_frame_mode_aborts() -> None:
    async def work() -> None:
        rig = Rig("plan", max_batch=1, max_resident=4)
        for key in (1, 2):
            rig.add(key, f"story {key}", max_tokens=40)
        rig.plan(1)
        await rig.until_count(1, 10)
        rig.plan(2)
        await rig.until_ended(2)
        assert rig.state(1) is AttemptState.PAUSED
        assert rig.executor.pool.used > 0
        at = len(rig.tokens[1])
        rig.plan(1)
        await rig.until_ended(1)
        assert len(rig.tokens[1]) == 40 > at
        assert rig.engine.counters["resumes"] == 0
        assert sum(bool(step.prefill_calls) for step in rig.steps) == 2
        await rig.engine.aclose()

    run_virtually(work())


def test_plan_mode_on_the_second_manager() -> None:
    async def work() -> None:
        rig = Rig("plan", max_batch=2, max_resident=6, kv_cache_manager_v2=True)
        keys = range(1, 6)
        for key in keys:
            rig.add(key, f"story {key}", max_tokens=30)
        for turn in range(12):
            rig.plan(*((turn + offset) % 5 + 1 for offset in range(5)))
            await asyncio.sleep(0.06)
        rig.plan(*keys)
        await rig.until_ended(*keys)
        assert all(len(rig.tokens[key]) == 30 for key in keys)
        assert max(step.decode_batch for step in rig.steps if step.merged_reports == 1) <= 2
        rig.assert_nothing_left()
        await rig.engine.aclose()

    run_virtually(work())


@pytest.mark.parametrize(
    "change", [{"version": "1.2.1"}, {"ranks": 2}, {"overlap": True}], ids=lambda change: next(iter(change))
)
def test_plan_mode_refuses_what_it_was_not_made_for(change: dict[str, Any]) -> None:
    async def work() -> None:
        llm = emulator.FakeLLM()
        before = llm._executor.scheduler
        asked = {"version": PINNED_VERSIONS[0], "ranks": 1, "overlap": False, **change}
        with pytest.raises(PlanModeError):
            install(llm, PlanMailbox(), **asked)
        assert llm._executor.scheduler is before

    run_virtually(work())


def test_a_build_without_priorities_is_found_out_by_its_signature() -> None:
    class OlderLLM:
        def generate_async(
            self, inputs: Any, sampling_params: Any = None, streaming: bool = False
        ) -> None: ...

    def older_parameters(end_id: int, max_tokens: int) -> None: ...

    found = detect(OlderLLM(), older_parameters)
    assert found.missing() == [
        "priority", "cache_salt", "retention", "lora", "stats", "health", "prompt_ignore_length",
    ]  # fmt: skip


def test_rows_without_the_nested_fields_are_counted_and_not_read_as_idle() -> None:
    async def work() -> None:
        rig = Rig(faults=Faults(older_build=True))
        rig.add(1, max_tokens=20)
        rig.plan(1)
        await rig.until_ended(1)
        assert len(rig.tokens[1]) == 20
        assert rig.engine._backend.counters["rows_unfit"] > 0  # type: ignore[attr-defined]
        assert all(step.merged_reports > 1 for step in rig.steps), "nothing to fit a step-time model to"
        await rig.engine.aclose()

    run_virtually(work())

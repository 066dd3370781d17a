"""Cancel in every state and mode: confirmed once, nothing left; an engine that does not stop is taken out."""

import asyncio

import pytest

from paceline_executor.contract import ENGINE_FAILED, AttemptState, EndReason, Sampling
from paceline_executor.trtllm.emulator.parameters import Faults
from paceline_executor.trtllm.emulator.virtual_time import run_virtually

from .rig import Rig

MODES = ["frame", "plan"]
STATES = [
    "queued", "awaiting", "just submitted", "prefilling", "running", "paused", "evicted", "leaving", "displaced",
    "stopping", "resumed",
]  # fmt: skip


async def bring_to(rig: Rig, state: str) -> None:
    """Attempt 1 in that state."""
    long = "word " * 400
    rig.add(1, long if state == "prefilling" else "Tell me. " * 10, max_tokens=200,
            await_more_forced=state == "awaiting",
            sampling=Sampling(ignore_eos=True, stop=("e",)) if state == "stopping" else None)  # fmt: skip
    match state:
        case "queued":
            pass
        case "awaiting":
            rig.plan(1)
        case "just submitted":
            rig.plan(1)
            await rig.until(lambda: 1 in rig.engine._frames.legs)
        case "prefilling":
            rig.plan(1)
            await rig.until(lambda: any(r.context_current_position for r in rig.executor.active_requests))
            assert 1 not in rig.tokens
        case "running":
            rig.plan(1)
            await rig.until_count(1, 10)
        case "paused" | "evicted" | "resumed":
            rig.plan(1, token_limits=(8,))
            await rig.until_count(1, 8)
            await rig.until(lambda: rig.state(1) is AttemptState.PAUSED)
            if state == "evicted":
                rig.plan(evict=(1,))
                await rig.until(lambda: rig.state(1) is AttemptState.EVICTED)
            if state == "resumed":
                rig.plan(1)
                await rig.until_count(1, 12)
        case "leaving":
            rig.plan(1)
            await rig.until_count(1, 5)
            rig.engine.clear_plan()
            await asyncio.sleep(0)
        case "displaced":
            rig.plan(1)
            await rig.until_count(1, 5)
            for key in range(2, 12):
                rig.add(key, f"other {key}", max_tokens=4)
            rig.plan(*range(2, 12), 1)
            await rig.until(lambda: len(rig.ended) >= 2)
        case "stopping":
            rig.plan(1)
            await rig.until(
                lambda: (
                    any(s.aborted_s is not None for s in rig.engine._frames.legs.values()) or 1 in rig.ended
                )
            )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("state", STATES)
def test_cancel_leaves_nothing(mode: str, state: str) -> None:
    async def work() -> None:
        rig = Rig(mode, max_num_tokens=64, frame_iterations=4)
        await bring_to(rig, state)
        rig.engine.cancel(1)
        rig.engine.cancel(1)
        await rig.until_ended(1)
        if state == "stopping":
            assert rig.ended[1].reason is EndReason.STOP_STRING, "it had come to its own end before"
        else:
            assert rig.ended[1].reason is EndReason.CANCELLED
        assert rig.ended[1].output_tokens == len(rig.tokens.get(1, []))
        others = [row.spec.attempt_key for row in rig.engine.live_table() if row.ended is None]
        for key in others:
            rig.engine.cancel(key)
        await rig.until_ended(*others)
        await rig.until(lambda: not rig.engine._frames.legs)
        rig.assert_nothing_left()
        # And the engine goes on.
        rig.add(99, max_tokens=5)
        rig.plan(99)
        await rig.until_ended(99)
        assert rig.ended[99].reason is EndReason.LENGTH
        rig.assert_nothing_left()
        await rig.engine.aclose()

    run_virtually(work())


@pytest.mark.parametrize("mode", MODES)
def test_an_engine_that_does_not_stop_is_taken_out(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        rig = Rig(
            mode,
            faults=Faults(ignore_aborts=True),
            abort_timeout_s=3.0,
            context_tokens=4096,
            reserve_tokens=4096,
        )
        rig.add(1, max_tokens=3500)
        rig.add(2, max_tokens=3500)
        rig.plan(1, 2)
        await rig.until_count(1, 5)
        began_s = asyncio.get_running_loop().time()
        rig.engine.cancel(1)
        await rig.until(lambda: not rig.engine.alive)
        waited_s = asyncio.get_running_loop().time() - began_s
        assert 3.0 <= waited_s <= 6.0, "the limit, and a look every two seconds"
        await rig.until_ended(1, 2)
        for key in (1, 2):
            assert (rig.ended[key].reason, rig.ended[key].error_reason) == (EndReason.FAILED, ENGINE_FAILED)
        assert rig.engine.counters["alarms"] == 1
        rig.add(3)
        await rig.until_ended(3)
        assert rig.ended[3].reason is EndReason.REJECTED
        await rig.engine.aclose()

    run_virtually(work())
    assert any("taken out" in record.message for record in caplog.records)


def test_an_engine_that_hangs_and_says_it_is_well_is_taken_out() -> None:
    async def work() -> None:
        rig = Rig(faults=Faults(hang_after_iterations=20), progress_timeout_s=5.0)
        rig.add(1, max_tokens=200)
        rig.plan(1)
        await rig.until_count(1, 15)
        assert rig.llm._check_health()
        await rig.until_ended(1)
        assert rig.ended[1].error_reason == ENGINE_FAILED
        assert not rig.engine.alive
        await rig.engine.aclose()

    run_virtually(work())


def test_an_engine_that_waits_for_work_is_left_alone() -> None:
    async def work() -> None:
        rig = Rig(progress_timeout_s=5.0)
        rig.add(1, max_tokens=50)
        rig.plan(1, token_limits=(10,))
        await rig.until_count(1, 10)
        await asyncio.sleep(60)
        assert rig.engine.alive
        rig.plan(1)
        await rig.until_ended(1)
        assert len(rig.tokens[1]) == 50
        await rig.engine.aclose()

    run_virtually(work())


def test_a_fatal_error_takes_the_engine_out() -> None:
    async def work() -> None:
        rig = Rig(faults=Faults(fatal_after_iterations=10))
        rig.add(1, max_tokens=200)
        rig.plan(1)
        await rig.until_ended(1)
        assert rig.ended[1].error_reason == ENGINE_FAILED
        assert not rig.engine.alive
        await rig.engine.aclose()

    run_virtually(work())

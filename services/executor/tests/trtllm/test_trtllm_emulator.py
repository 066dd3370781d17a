"""The emulator's traps: each is one that an agent for TensorRT-LLM can fall into."""

import asyncio
from typing import Any

import pytest

from paceline_executor.trtllm.emulator import (
    FakeLLM,
    KvCacheConfig,
    KvCacheRetentionConfig,
    SamplingParams,
    SchedulerConfig,
)
from paceline_executor.trtllm.emulator.parameters import Faults
from paceline_executor.trtllm.emulator.result import GenerationResult, RequestError
from paceline_executor.trtllm.emulator.virtual_time import run_virtually

V1 = KvCacheConfig(use_kv_cache_manager_v2=False)


def greedy(tokens: int, **fields: Any) -> SamplingParams:
    return SamplingParams(end_id=0, max_tokens=tokens, ignore_eos=True, **fields)


def prompt(length: int, first: int = 300) -> list[int]:
    return [first + (place * 7) % 200 for place in range(length)]


async def finish(result: GenerationResult) -> list[int]:
    await result.aresult()
    return result.outputs[0].token_ids


@pytest.mark.parametrize(
    ("inputs", "fields", "error"),
    [
        ([], {}, ValueError),
        ("text", {}, ValueError),
        (7, {}, TypeError),
        ([5], {"priority": 1.5}, ValueError),
        ([5] * 5000, {}, ValueError),
        ([5], {"sampling_params": SamplingParams()}, ValueError),
        ([5], {"disaggregated_params": object()}, NotImplementedError),
    ],
)
def test_errors_are_raised_at_the_call(inputs: Any, fields: dict[str, Any], error: type[Exception]) -> None:
    async def work() -> None:
        llm = FakeLLM()
        with pytest.raises(error):
            llm.generate_async(inputs, **{"sampling_params": greedy(4), "streaming": True, **fields})

    run_virtually(work())


def test_token_ids_grow_and_several_come_at_once() -> None:
    async def work() -> None:
        llm = FakeLLM(stream_interval=4)
        lengths = []
        result = llm.generate_async(prompt(10), greedy(18), streaming=True)
        async for item in result:
            assert item is result
            lengths.append(len(item.outputs[0].token_ids))
        assert lengths == [1, 5, 9, 13, 17, 18]
        assert result.outputs[0].finish_reason == "length"

    run_virtually(work())


def test_a_stop_token_is_taken_back_and_told() -> None:
    async def work() -> None:
        llm = FakeLLM()
        answer = await finish(llm.generate_async(prompt(10), greedy(20)))
        stop = next(token for place, token in enumerate(answer) if place > 8 and token not in answer[:place])
        result = llm.generate_async(prompt(10), greedy(20, stop_token_ids=[stop]), streaming=True)
        assert await finish(result) == answer[: answer.index(stop)]
        assert (result.outputs[0].finish_reason, result.outputs[0].stop_reason) == ("stop", stop)

    run_virtually(work())


def test_a_greedy_answer_goes_on_from_its_own_ids_and_a_seeded_one_does_not() -> None:
    async def work() -> None:
        llm = FakeLLM()
        for fields, same in (({}, True), ({"temperature": 1.0, "seed": 3}, False)):
            whole = await finish(llm.generate_async(prompt(50), greedy(40, **fields)))
            rest = await finish(llm.generate_async(prompt(50) + whole[:15], greedy(25, **fields)))
            assert (rest == whole[15:]) is same

    run_virtually(work())


def test_an_abort_takes_effect_at_the_end_of_an_iteration() -> None:
    async def work() -> None:
        llm = FakeLLM(kv_cache_config=V1)
        loop = asyncio.get_running_loop()
        result = llm.generate_async(prompt(10), greedy(500), streaming=True)
        for _ in range(3):
            await anext(result)
        before, began_s = llm._executor.iter_counter, loop.time()
        result.abort()
        assert result.aborted()
        assert not result.finished
        await result.aresult()
        assert result.outputs[0].finish_reason == "cancelled"
        assert 1 <= llm._executor.iter_counter - before <= 2
        assert loop.time() > began_s
        assert llm._executor.pool.used == 0
        with pytest.raises(StopAsyncIteration):
            await anext(result)

    run_virtually(work())


def test_a_waiting_request_can_be_aborted() -> None:
    async def work() -> None:
        llm = FakeLLM(max_batch_size=1)
        first = llm.generate_async(prompt(10), greedy(50), streaming=True)
        second = llm.generate_async(prompt(12), greedy(50), streaming=True)
        await anext(first)
        second.abort()
        assert await finish(second) == []
        assert second.outputs[0].finish_reason == "cancelled"
        assert len(await finish(first)) == 50

    run_virtually(work())


def test_statistics_have_one_reader_and_end_when_nothing_comes() -> None:
    async def work() -> None:
        llm = FakeLLM(enable_iter_perf_stats=True)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        assert [row async for row in llm.get_stats_async(timeout=3)] == []
        assert loop.time() - began_s == pytest.approx(3)
        await finish(llm.generate_async(prompt(10), greedy(20)))
        one, two = llm.get_stats_async(timeout=1), llm.get_stats_async(timeout=1)
        seen = [(await anext(reader))["iter"] for reader in (one, two, one, two)]
        assert seen == [1, 2, 3, 4], "two readers steal from each other"

    run_virtually(work())


def test_worst_cases_are_reserved_and_nobody_is_evicted() -> None:
    async def work() -> None:
        kv = KvCacheConfig(max_tokens=32 * 10, use_kv_cache_manager_v2=False)
        llm = FakeLLM(kv_cache_config=kv, enable_iter_perf_stats=True)
        # Each may need 5 blocks of 10, and takes 2.
        greedy_ones = [llm.generate_async(prompt(32, 300 + n), greedy(120), streaming=True) for n in range(3)]
        await asyncio.gather(*(anext(result) for result in greedy_ones[:2]))
        rows = llm.get_stats_async(timeout=1)
        assert (await anext(rows))["inflightBatchingStats"]["numContextRequests"] == 2
        assert len(await finish(greedy_ones[2])) == 120
        used = [row["inflightBatchingStats"]["numGenRequests"] async for row in rows]
        assert max(used) == 2

    run_virtually(work())


def test_decodes_go_first_and_long_prompts_in_chunks() -> None:
    async def work() -> None:
        llm = FakeLLM(max_num_tokens=128, enable_iter_perf_stats=True, kv_cache_config=V1)
        first = llm.generate_async(prompt(10), greedy(100), streaming=True)
        await anext(first)
        await finish(llm.generate_async(prompt(400, 500), greedy(2)))
        rows = [row["inflightBatchingStats"] async for row in llm.get_stats_async(timeout=1)]
        chunked = [row for row in rows if row["numCtxTokens"]]
        assert [row["numCtxTokens"] for row in chunked] == [10, 96, 96, 96, 112]
        assert [row["numGenRequests"] for row in chunked] == [0, 1, 1, 1, 1]

    run_virtually(work())


@pytest.mark.parametrize("second", [False, True])
def test_whole_blocks_are_reused_and_the_oldest_go_first(second: bool) -> None:
    async def work() -> None:
        kv = KvCacheConfig(max_tokens=32 * 8, use_kv_cache_manager_v2=second)
        llm = FakeLLM(kv_cache_config=kv)

        async def cached(ids: list[int], **fields: Any) -> int:
            result = llm.generate_async(ids, greedy(2), streaming=True, **fields)
            await result.aresult()
            return result.cached_tokens

        assert await cached(prompt(100)) == 0
        assert await cached(prompt(100)) == 96
        assert await cached(prompt(96)) == 64, "the last token is always computed"
        assert await cached(prompt(100), cache_salt="other") == 0
        for first in range(3):
            await cached(prompt(100, 1000 * (first + 2)))
        assert await cached(prompt(100)) == 0, "others needed the room"

    run_virtually(work())


def test_dear_blocks_outlast_cheap_ones() -> None:
    async def work() -> None:
        llm = FakeLLM(kv_cache_config=KvCacheConfig(max_tokens=32 * 8, use_kv_cache_manager_v2=False))
        dear = KvCacheRetentionConfig(decode_retention_priority=80)
        await finish(llm.generate_async(prompt(64), greedy(2), kv_cache_retention_config=dear))
        for first in range(5):
            await finish(llm.generate_async(prompt(100, 1000 * (first + 2)), greedy(2)))
        again = llm.generate_async(prompt(64), greedy(2))
        await again.aresult()
        assert again.cached_tokens == 32

    run_virtually(work())


@pytest.mark.parametrize(("policy", "order"), [("fcfs", [1, 2, 3]), ("priority", [2, 3, 1])])
def test_priority_is_of_the_waiting_queue_alone(policy: str, order: list[int]) -> None:
    async def work() -> None:
        llm = FakeLLM(max_batch_size=1, scheduler_config=SchedulerConfig(waiting_queue_policy=policy))
        ended: list[int] = []

        async def run(number: int, priority: float) -> None:
            await llm.generate_async(
                prompt(10, number), greedy(5), streaming=True, priority=priority
            ).aresult()
            ended.append(number)

        running = asyncio.create_task(run(0, 0.0))
        await asyncio.sleep(0.02)
        await asyncio.gather(running, run(1, 0.1), run(2, 0.9), run(3, 0.9))
        assert ended == [0, *order], "what runs is not displaced"

    run_virtually(work())


def test_a_fatal_error_breaks_every_stream_and_closes_the_door() -> None:
    async def work() -> None:
        llm = FakeLLM(emulated_faults=Faults(fatal_after_iterations=3))
        result = llm.generate_async(prompt(10), greedy(50), streaming=True)
        with pytest.raises(RequestError):
            await result.aresult()
        with pytest.raises(RuntimeError):
            llm.generate_async(prompt(10), greedy(5))
        assert not llm._check_health()

    run_virtually(work())


def test_under_pressure_the_second_manager_recomputes_the_newest() -> None:
    async def work() -> None:
        kv = KvCacheConfig(max_tokens=32 * 8, use_kv_cache_manager_v2=True)
        llm = FakeLLM(kv_cache_config=kv)
        whole = [await finish(llm.generate_async(prompt(60, 300 + n), greedy(120))) for n in range(2)]
        both = await asyncio.gather(
            *(finish(llm.generate_async(prompt(60, 300 + n), greedy(120))) for n in range(2))
        )
        assert both == whole

    run_virtually(work())

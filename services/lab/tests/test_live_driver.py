"""The driver against a client whose answers take as long as it is told: open loop, stages, grace, records."""

import asyncio
import time

import numpy as np
import pytest

from paceline_core.slo import SloClass
from paceline_lab.live.calibrate import CalibrationError, decode_rate_of, mean_job_tokens
from paceline_lab.live.client import CallResult, CallSpec
from paceline_lab.live.driver import Driver
from paceline_lab.live.http_client import slo_headers, spread
from paceline_lab.live.objectives import IdleTimes, Multiples, Objectives, objectives_from
from paceline_lab.live.report import LiveReport
from paceline_lab.live.score import score_job
from paceline_lab.live.workload import Job, WorkloadSpec
from paceline_lab.prompts.library import load_library
from paceline_lab.prompts.model import Family, Message, Prompt, TaskCall, TaskPrompt

OBJECTIVES = Objectives(ttft_ms=10_000.0, tbt_ms=10_000.0, deadline_ms=60_000.0, task_stage_ms=60_000.0)
PROMPT = Prompt("p", Family.CHAT, SloClass.LATENCY, 8, (Message("user", "hello"),))
TASK = TaskPrompt(
    "t",
    (
        TaskCall("a", 0, 8, "first"),
        TaskCall("b", 1, 8, "left of {a}"),
        TaskCall("c", 1, 8, "right of {a}"),
        TaskCall("d", 2, 8, "{b} and {c}"),
    ),
)


class FakeClient:
    """Answers `re: <prompt>` in two tokens once `gate` is open; prompts that contain `fail` fail."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.specs: list[CallSpec] = []
        self.live = 0
        self.most_live = 0

    async def call(self, spec: CallSpec, result: CallResult) -> None:
        self.specs.append(spec)
        self.live += 1
        self.most_live = max(self.most_live, self.live)
        try:
            asked = spec.messages[-1].content
            if "fail" in asked:
                result.error = "QUEUE_FULL: try later"
                return
            await self.gate.wait()
            result.prompt_tokens = 5
            for piece in ("re: ", asked):
                result.token_s.append(time.perf_counter())
                result.text.append(piece)
                await asyncio.sleep(0)
            result.finish = "stop"
        finally:
            self.live -= 1

    async def close(self) -> None:
        """Nothing is open."""


def job(number: int, work: Prompt | TaskPrompt, at: float = 0.0) -> Job:
    slo_class = SloClass.TASK if isinstance(work, TaskPrompt) else SloClass.LATENCY
    return Job(number, at, slo_class, work)


async def test_open_loop_sends_all_though_none_answers_and_counts_them_as_misses() -> None:
    client = FakeClient()
    client.gate.clear()
    driver = Driver(client, OBJECTIVES, run_id="run")
    records = await driver.run([job(n, PROMPT, n * 0.01) for n in range(10)], duration_s=0.1, grace_s=0.2)
    assert client.most_live == 10
    assert client.live == 0  # cancelled, not left behind
    assert [record.completed for record in records] == [False] * 10
    assert [record.number for record in records] == list(range(10))
    assert all(len(record.calls) == 1 and record.calls[0].ended_ms is None for record in records)
    assert len(driver.lag_ms) == 10


async def test_stages_wait_for_each_other_and_use_the_answers() -> None:
    client = FakeClient()
    records = await Driver(client, OBJECTIVES, run_id="run").run([job(3, TASK)], duration_s=0.1, grace_s=5.0)
    asked = [spec.messages[0].content for spec in client.specs]
    assert asked[0] == "first"
    assert set(asked[1:3]) == {"left of re: first", "right of re: first"}
    assert asked[3] == "re: left of re: first and re: right of re: first"
    last = client.specs[3]
    assert last.slo is not None
    assert (last.slo.task_final, last.slo.task_id, last.slo.e2e_ms) == (True, "run-3", 180_000.0)
    assert set(last.parents) == {"run-3-b", "run-3-c"}
    assert [spec.slo.task_final for spec in client.specs[:3] if spec.slo] == [False] * 3
    (record,) = records
    assert record.completed
    assert [call.stage for call in record.calls] == [0, 1, 1, 2]
    assert score_job(record).attained


async def test_failed_call_ends_its_task_and_is_counted_by_reason() -> None:
    client = FakeClient()
    broken = TaskPrompt("t", (TaskCall("a", 0, 8, "please fail"), TaskCall("b", 1, 8, "after {a}")))
    driver = Driver(client, OBJECTIVES, run_id="run")
    (record,) = await driver.run([job(0, broken)], duration_s=0.1, grace_s=5.0)
    assert not record.completed
    assert len(client.specs) == 1
    assert driver.errors == {"QUEUE_FULL": 1}


async def test_report_scores_only_what_arrived_after_the_warm_up_and_is_json() -> None:
    import json

    client = FakeClient()
    workload = WorkloadSpec(10.0, 0.4, seed=1)
    records = await Driver(client, OBJECTIVES, run_id="run").run(
        [job(0, PROMPT, 0.0), job(1, PROMPT, 0.3), job(2, TASK, 0.35)], workload.duration_s, grace_s=5.0
    )
    report = LiveReport(
        workload, 0.2, 5.0, "given", "label", "fake", (), None, OBJECTIVES, tuple(records), (0.1,), {}
    )
    assert [record.number for record in report.scored] == [1, 2]
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert document["classes"]["latency"]["jobs"] == 1
    assert document["total"]["attainment"] == 1.0
    assert document["workload"]["seed"] == 1
    assert document["machine"]["versions"]["numpy"] == np.__version__


async def test_plot_is_written(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from paceline_lab.live.plot import save_plot

    client = FakeClient()
    workload = WorkloadSpec(10.0, 0.1, seed=1)
    records = await Driver(client, OBJECTIVES, run_id="run").run(
        [job(0, PROMPT), job(1, TASK)], 0.1, grace_s=5.0
    )
    report = LiveReport(workload, 0.0, 5.0, "given", "", "fake", (), None, OBJECTIVES, tuple(records), (), {})
    save_plot(report, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_objectives_are_multiples_of_idle_times() -> None:
    library = load_library()
    idle = IdleTimes(ttft_base_ms=20.0, ttft_per_token_ms=2.0, tbt_ms=8.0, tokens_per_char=0.25)
    once = objectives_from(idle, Multiples(1, 1, 1, 1), library)
    thrice = objectives_from(idle, Multiples(3, 3, 3, 3), library)
    assert once.tbt_ms == 8.0
    assert thrice.deadline_ms == pytest.approx(3 * once.deadline_ms)
    assert thrice.ttft_ms == pytest.approx(3 * once.ttft_ms)
    assert once.deadline_ms > once.ttft_ms > 20.0
    task = library.tasks[0]
    assert thrice.slo(SloClass.TASK, task, "x").e2e_ms == pytest.approx(thrice.task_stage_ms * task.stages)


def test_tokens_of_a_chunked_stream_are_spread_over_its_chunks() -> None:
    assert spread([(1.0, 4), (2.0, 4)], 2) == [1.0, 2.0]
    assert spread([(1.0, 4), (2.0, 12)], 6) == [1.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    assert spread([(1.0, 4), (2.0, 4), (3.0, 1)], 2) == [1.0, 3.0]
    assert spread([], 5) == []


def test_objectives_travel_as_headers() -> None:
    slo = OBJECTIVES.slo(SloClass.TASK, TASK, "job-1")
    headers = slo_headers(CallSpec("r", (), 8, slo, "app", stage="b", parents=("x", "y")))
    assert headers["x-slo-program-id"] == "job-1"
    assert headers["x-slo-program-deadline-ms"] == "180000"
    assert headers["x-slo-program-parents"] == "x,y"
    assert slo_headers(CallSpec("r", (), 8, None, "app")) == {}


def test_decode_rate_counts_only_while_all_calls_decode() -> None:
    # from 2.0 (the second call's first token) to 4.0 (the first one's last): 2 and 4 tokens in 2 seconds
    assert decode_rate_of([[1.0, 2.0, 3.0, 4.0], [2.0, 2.5, 3.0, 3.5, 4.0, 9.0]]) == 3.0
    assert (
        decode_rate_of([[0.0, 1.0], [2.0, 4.0]]) == 0.75
    )  # never side by side: three tokens after the first, in 4 s
    with pytest.raises(CalibrationError):
        decode_rate_of([[1.0], [1.0]])


def test_mean_job_of_a_mix_lies_between_its_classes() -> None:
    library = load_library()
    prompt_only = mean_job_tokens(library, ((SloClass.LATENCY, 1.0),), 0.25)
    task_only = mean_job_tokens(library, ((SloClass.TASK, 3.0),), 0.25)
    both = mean_job_tokens(library, ((SloClass.LATENCY, 1.0), (SloClass.TASK, 1.0)), 0.25)
    assert task_only[1] == pytest.approx(np.mean([sum(c.max_tokens for c in t.calls) for t in library.tasks]))
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(prompt_only, task_only, strict=True)])

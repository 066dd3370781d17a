"""The scheduler over a real llama.cpp engine with the tiny random model: the schedule never changes an answer."""

import numpy as np
import pytest

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_executor.app import ExecutorApp
from paceline_executor.config import ExecutorConfig, ExecutorServiceConfig

TEXTS = [
    "Once upon a time",
    "The sky is",
    "def main():",
    "SELECT * FROM",
    "Dear all,",
    "1 2 3 4 5 6 7 8 " * 20,
]


@pytest.fixture
async def tiny():
    config = ExecutorConfig(
        listen="127.0.0.1:0",
        engine_id="tiny-1",
        model_path="tiny",
        max_batch=3,
        max_resident=4,
        context_tokens=512,
        server={"drain_grace_s": 0.0},
    )
    async with ExecutorApp(ExecutorServiceConfig(executor=config)) as app:
        yield app


def requests(first_key, **fields):
    """One request per text; equal requests of different keys have equal answers."""
    made = []
    for i, text in enumerate(TEXTS):
        spec = attempt_pb2.AttemptSpec(
            attempt_key=first_key + i,
            request_id=f"request-{first_key + i}",
            text=text,
            max_tokens=40 + 5 * i,
            sampling=attempt_pb2.SamplingParams(seed=i, temperature=0.8 if i % 2 else 0.0, ignore_eos=True),
        )
        slo = slo_pb2.Slo(latency=slo_pb2.LatencySlo(ttft_ms=1000 + 10 * i, tbt_ms=100))
        made.append(scheduler_pb2.Submit(spec=spec, slo=slo, **fields))
    return made


async def answers(router, submits):
    await router.run_all(*submits)
    for submit in submits:
        ended = router.ended[submit.spec.attempt_key]
        assert ended.finish_reason == attempt_pb2.FINISH_REASON_LENGTH, ended
        assert ended.output_tokens == submit.spec.max_tokens
    return [router.ids[s.spec.attempt_key] for s in submits]


async def test_answers_do_not_depend_on_policy_credit_or_interruptions(bench, tiny):
    plain = await bench.scheduler(tiny.address, policy="fcfs")
    router = await bench.router(plain)
    expected = []
    for submit in requests(100):
        expected += await answers(router, [submit])
    assert all(len(ids) == 40 + 5 * i for i, ids in enumerate(expected))
    await router.send(releases=range(100, 106))
    await bench.until(lambda: not tiny.engine.live_table())
    await plain.stop(0.0)

    edf = await bench.scheduler(tiny.address, policy="edf")
    router = await bench.router(edf)
    submits = requests(200, token_limit=15)
    await router.send(submits=submits)
    await router.until(lambda: all(len(router.ids.get(k, [])) >= 15 for k in range(200, 206)))
    edf.link.interrupt()
    await bench.attached(edf, attached=False)
    await bench.attached(edf)
    await router.send(credits=[attempt_pb2.Credit(attempt_key=k, token_limit=30) for k in range(200, 206)])
    await router.until(lambda: all(len(router.ids[k]) >= 30 for k in range(200, 206)))
    told = {k: list(router.ids[k]) for k in range(200, 206)}
    await edf.stop(0.0)

    heir_app = await bench.scheduler(tiny.address, policy="sarathi")
    heir = await bench.router(heir_app)
    live = {a.spec.attempt_key: a for a in heir.acks[0].live}
    assert live.keys() == told.keys()
    for key, attempt in live.items():
        assert attempt.output_tokens >= len(told[key])
        assert attempt.spec.token_ids == attempt.prompt_ids
    heir.ids = told
    await heir.send(
        republishes=[attempt_pb2.Republish(attempt_key=k, from_index=len(told[k])) for k in told],
        credits=[attempt_pb2.Credit(attempt_key=k, token_limit=0) for k in told],
    )
    await heir.until(lambda: told.keys() <= heir.ended.keys())
    assert [heir.ids[k] for k in sorted(told)] == expected
    await heir.send(releases=told)
    await bench.until(lambda: not tiny.engine.live_table() and not len(heir_app.loop.state.table))
    model = heir_app.loop.state.fitter.model
    assert model.decode_samples > 0
    assert model.decode_ms(2, 100) > 0


async def test_a_replay_takes_forced_ids_over(bench, tiny):
    scheduler = await bench.scheduler(tiny.address)
    router = await bench.router(scheduler)
    (whole,) = await answers(router, requests(1)[:1])
    again = requests(50)[0]
    again.spec.forced_ids = np.asarray(whole[:13], dtype="<i4").tobytes()
    router.ids[50] = whole[:13]
    await router.run_all(again)
    assert router.ids[50] == whole
    row = (await router.stub.ListRequests(scheduler_pb2.ListRequestsRequest())).requests
    assert {r.attempt_key: r.output_tokens for r in row} == {1: 40, 50: 40}

"""LoRA adapters asked for by name: which engine, under which names, and who is refused."""

import json

import pytest

from paceline_runtime.errors import PacelineError, Reason

ENDLESS = {"backend": "trtllm", "max_batch": 4, "max_resident": 4}


@pytest.fixture
async def router(line, tmp_path):
    """Three engines of one model, the adapter on the middle one."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "target_modules": ["q_proj"]}))
    for number in range(3):
        adapters = {"sql": str(tmp_path)} if number == 1 else {}
        section = {"emulated": True, "time_scale": 0.01, "adapters": adapters}
        await line.engine(f"e{number}", trtllm=section, **ENDLESS)
    return await line.router(placement="round-robin")


def spec_on(line, engine_id):
    (row,) = line.executors[engine_id].engine.live_table()
    return row.spec


async def test_an_adapters_name_finds_its_engine_and_its_model(line, router, spec):
    client = await router.session()
    for _ in range(3):
        answer = await client.submit(spec(model="sql", tokens=8))
        await client.ended(answer)
        assert (answer.accepted.engine_id, answer.accepted.model) == ("e1", "sql")
        assert len(answer.ids) == 8
    by_both = await client.submit(spec(model="sim", adapter="sql", tokens=8))
    plain = await client.submit(spec(model="sim", tokens=8))
    await client.ended(by_both, plain)
    assert by_both.accepted.engine_id == "e1"
    assert plain.accepted.model == "sim"
    assert plain.ids != by_both.ids == answer.ids


async def test_the_engine_is_told_the_adapter_by_name(line, router, spec):
    client = await router.session()
    answer = await client.submit(spec(model="sql", tokens=1500), token_limit=4)
    await client.until(lambda: len(answer.ids) >= 4)
    told = spec_on(line, "e1")
    assert told.adapter == "sql"
    assert told.cache_salt.endswith("/sql"), "prefixes are not shared with other weights"
    await client.cancel(answer)
    await client.ended(answer)


@pytest.mark.parametrize("asked", [{"model": "law"}, {"model": "sim", "adapter": "law"}])
async def test_a_name_that_nobody_serves_is_refused(router, spec, asked):
    with pytest.raises(PacelineError) as refused:
        await router.generate(spec(**asked))
    assert refused.value.reason is Reason.UNKNOWN_MODEL

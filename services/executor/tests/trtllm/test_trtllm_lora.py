"""LoRA adapters by name: what the engine is told, what a request may name, and that caches are kept apart."""

import json
from pathlib import Path

import pytest

from paceline_executor.contract import EndReason
from paceline_executor.trtllm import emulator
from paceline_executor.trtllm.emulator.virtual_time import run_virtually
from paceline_executor.trtllm.lora import adapters_of, lora_config

from .rig import Rig


def adapter(folder: Path, rank: int = 8, modules: tuple[str, ...] = ("q_proj",)) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "target_modules": list(modules)}))
    return str(folder)


def test_the_engine_is_told_what_adapters_change(tmp_path: Path) -> None:
    folders = {
        "sql": adapter(tmp_path / "a", 8, ("q_proj", "v_proj")),
        "tone": adapter(tmp_path / "b", 32, ("v_proj", "down_proj")),
    }
    several = lora_config(emulator, adapters_of(folders), on_gpu=1)
    assert several.lora_target_modules == ["attn_q", "attn_v", "mlp_4h_to_h"]
    assert (several.max_lora_rank, several.max_loras, several.max_cpu_loras) == (32, 1, 2)
    one = lora_config(emulator, adapters_of({"sql": folders["sql"]}), on_gpu=8)
    assert (one.lora_dir, one.lora_target_modules) == ([folders["sql"]], [])


@pytest.mark.parametrize("content", [None, "{}", '{"r": 8, "target_modules": ["lm_head"]}'])
def test_an_adapter_that_cannot_be_served_is_found_at_the_start(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match="LoRA adapter sql"):
        lora_config(emulator, adapters_of({"sql": str(tmp_path)}), on_gpu=8)


def test_requests_name_their_adapter(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(adapters={"sql": adapter(tmp_path / "a"), "tone": adapter(tmp_path / "b")})
        assert rig.engine.capabilities.adapters == ("sql", "tone")
        for key, name in enumerate(("", "sql", "tone", "sql"), 1):
            rig.add(key, adapter=name)
        rig.plan(1, 2, 3)
        await rig.until_ended(1, 2, 3)
        assert len({tuple(rig.tokens[key]) for key in (1, 2, 3)}) == 3, "each has weights of its own"
        rig.plan(4)
        await rig.until_count(4, 1)
        cached = [r.cached_tokens for r in rig.executor.active_requests]
        assert cached[0] > 0, "what the same adapter computed is found again"
        await rig.until_ended(4)
        assert rig.tokens[4] == rig.tokens[2]
        rig.add(5, adapter="gone")
        await rig.until_ended(5)
        assert (rig.ended[5].reason, rig.ended[5].error_reason) == (EndReason.REJECTED, "UNKNOWN_MODEL")
        await rig.engine.aclose()

    run_virtually(work())


def test_an_adapter_stays_with_its_request_across_a_resume(tmp_path: Path) -> None:
    async def work() -> None:
        rig = Rig(adapters={"sql": adapter(tmp_path / "a")})
        rig.add(1, adapter="sql", max_tokens=60)
        rig.add(2, adapter="sql", max_tokens=60)
        rig.plan(1)
        await rig.until_ended(1)
        rig.plan(2, token_limits=(25,))
        await rig.until_count(2, 25)
        rig.plan(2)
        await rig.until_ended(2)
        assert rig.engine.counters["resumes"] == 1
        assert rig.tokens[2] == rig.tokens[1]
        await rig.engine.aclose()

    run_virtually(work())

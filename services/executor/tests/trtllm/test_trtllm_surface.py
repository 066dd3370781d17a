"""The surface: the emulator has it, and sources are held against it without being imported."""

import dataclasses
import inspect
from pathlib import Path

import pytest

from paceline_executor.trtllm import emulator
from paceline_executor.trtllm.conformance import Verdict, check_sources
from paceline_executor.trtllm.emulator import executor, parameters, request, result, scheduler
from paceline_executor.trtllm.surface import Entry, surface

EMULATED = {
    "LLM": emulator.FakeLLM,
    "GenerationResult": result.GenerationResult,
    "CompletionOutput": result.CompletionOutput,
    "SamplingParams": parameters.SamplingParams,
    "KvCacheConfig": parameters.KvCacheConfig,
    "SchedulerConfig": parameters.SchedulerConfig,
    "LoRARequest": parameters.LoRARequest,
    "LoraConfig": parameters.LoraConfig,
    "RequestScheduler": scheduler.RequestScheduler,
    "SimpleScheduler": scheduler.SimpleScheduler,
    "BindMicroBatchScheduler": scheduler.BindMicroBatchScheduler,
    "KVCacheV2Scheduler": scheduler.KVCacheV2Scheduler,
    "LlmRequest": request.LlmRequest,
    "BaseLlmArgs": emulator.FakeLLM,
}


@pytest.mark.parametrize("entry", surface().entries, ids=lambda entry: entry.name)
def test_the_emulator_has_the_surface(entry: Entry) -> None:
    if entry.constant:
        assert hasattr(parameters, entry.constant)
        return
    owner = next(EMULATED[name] for name in entry.owners if name in EMULATED)
    if entry.method:
        found = inspect.signature(getattr(owner, entry.method)).parameters
        for name, default in entry.parameters:
            written = found[name].default
            assert ("required" if written is inspect.Parameter.empty else str(written)) == default
        known = {"self", *dict(entry.parameters)}
        assert all(p.default is not p.empty for name, p in found.items() if name not in known)
    elif entry.property_name:
        assert isinstance(inspect.getattr_static(owner, entry.property_name), property)
    elif entry.name == "LLM arguments":
        assert set(entry.fields) <= set(inspect.signature(owner.__init__).parameters)
    elif entry.fields:
        assert dataclasses.is_dataclass(owner)
        assert set(entry.fields) <= {field.name for field in dataclasses.fields(owner)}
    else:
        source = inspect.getsource(owner)
        assert all(name in source for name in entry.attributes)


def test_the_emulators_statistics_have_the_fields() -> None:
    source = inspect.getsource(inspect.getmodule(executor.stats_row))  # type: ignore[arg-type]
    wanted = surface().stats
    assert all(f'"{name}"' in source for name in (*wanted.required, *wanted.kv, *wanted.inflight))


SOURCES = {
    "tensorrt_llm/llmapi/llm.py": '''
class BaseLLM:
    def generate_async(self, inputs, sampling_params=None, lora_request=None, streaming: bool = False,
                       kv_cache_retention_config=None, cache_salt=None,
                       priority: float = DEFAULT_REQUEST_PRIORITY, newer=None): ...
    def get_stats_async(self, timeout=2): ...
    def get_kv_cache_events_async(self, timeout=2): ...
    def shutdown(self): ...
    def _check_health(self): ...
class LLM(BaseLLM): ...
''',
    "tensorrt_llm/executor/result.py": '''
class CompletionOutput:
    index: int
    token_ids: list = None
    finish_reason: str = None
    stop_reason: int = None
class GenerationResult:
    def abort(self): ...
    def aborted(self): ...
    @property
    def finished(self): ...
    @property
    def request_id(self): ...
    async def __anext__(self): ...
''',
}  # fmt: skip


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def verdicts(root: Path) -> dict[str, Verdict]:
    return {check.entry: check.verdict for check in check_sources(root)}


def test_sources_that_fit_are_ok_and_missing_files_are_told(sources: Path) -> None:
    found = verdicts(sources)
    assert found["LLM.generate_async: priority"] is Verdict.OK, "a named constant counts as its value"
    assert found["GenerationResult.finished: finished"] is Verdict.OK
    assert found["CompletionOutput: stop_reason"] is Verdict.OK
    assert found["SimpleScheduler"] is Verdict.DIFFERS


@pytest.mark.parametrize(
    ("old", "new", "entry", "verdict"),
    [
        ("DEFAULT_REQUEST_PRIORITY", "0.7", "LLM.generate_async: priority", Verdict.DIFFERS),
        ("priority: float = DEFAULT_REQUEST_PRIORITY, ", "", "LLM.generate_async: priority", Verdict.ABSENT),
        ("streaming: bool = False", "stream: bool = False", "LLM.generate_async: streaming", Verdict.DIFFERS),
        ("newer=None", "*, newer", "LLM.generate_async: newer", Verdict.DIFFERS),
        ("def shutdown", "def stop", "LLM.shutdown", Verdict.DIFFERS),
    ],
)
def test_what_changed_upstream_is_found(
    sources: Path, old: str, new: str, entry: str, verdict: Verdict
) -> None:
    path = sources / "tensorrt_llm/llmapi/llm.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert verdicts(sources)[entry] is verdict

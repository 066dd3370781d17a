"""Makes the engine of a configuration: the real LLM class in its image, or the emulator."""

import asyncio
import importlib
import logging
from dataclasses import replace
from types import ModuleType
from typing import Any

from paceline_core.engines.shipped import load_profile
from paceline_executor.contract import PrefixReuse
from paceline_executor.frames.backend import BackendFacts, Vocabulary
from paceline_executor.frames.config import FrameConfig
from paceline_executor.frames.engine import FrameEngine
from paceline_executor.frames.spoken import SpokenVocabulary
from paceline_executor.simulated.driver import LoopDriver
from paceline_executor.simulated.language import language
from paceline_executor.trtllm import emulator
from paceline_executor.trtllm.arguments import EngineSizes, llm_arguments
from paceline_executor.trtllm.backend import TrtllmBackend
from paceline_executor.trtllm.config import TrtllmSection
from paceline_executor.trtllm.emulator.parameters import Faults
from paceline_executor.trtllm.hf_vocabulary import HfVocabulary
from paceline_executor.trtllm.lora import adapters_of
from paceline_executor.trtllm.plan_mode import PlanMailbox, install

_log = logging.getLogger(__name__)
_EMULATED_BUILD = "emulated-1"
_RESUME_COST_STEPS = 1.0


def build_emulated(
    section: TrtllmSection,
    model: str,
    sizes: EngineSizes,
    faults: Faults | None = None,
    words: Vocabulary | None = None,
) -> tuple[FrameEngine, emulator.FakeLLM]:
    """An agent on an emulated engine. On the event loop that both live on.

    `words`: the vocabulary of a real model, so that the engine can take over from engines that have it.
    """
    profile = load_profile(section.profile)
    capacity = section.kv_capacity_tokens or profile.kv_capacity_tokens
    spoken: list[int] = []
    if words is None:
        words = SpokenVocabulary(language(section.seed))
    else:
        spoken = [
            token for token in range(words.vocab_size) if words.piece(token).isascii() and words.piece(token)
        ]
    llm = emulator.FakeLLM(
        section.profile,
        **llm_arguments(section, emulator, sizes),
        emulated_driver=LoopDriver(),
        emulated_time_scale=section.time_scale,
        emulated_seed=section.seed,
        emulated_output_median_tokens=section.output_median_tokens,
        emulated_words=spoken,
        emulated_end_id=words.eos_token_id,
        emulated_faults=faults,
    )
    facts = BackendFacts(
        backend="trtllm-emulated",
        build=_EMULATED_BUILD,
        device=profile.device.replace("simulated", "emulated"),
        model_hash=f"{words.tokenizer_id}/emulated/{section.seed}/{section.output_median_tokens:g}",
        kv_type="none",
        kv_bytes_per_token=section.kv_bytes_per_token or profile.kv_bytes_per_token,
        tokens_per_block=section.tokens_per_block,
        prefix_reuse=PrefixReuse.FAST,
        priority=True,
        has_rows=True,
    )
    step_ms = profile.decode_ms(sizes.max_batch, 0) * section.time_scale
    engine = _agent(
        section, llm, emulator, facts, words, sizes,
        model=model or "emulated", capacity=capacity, resume_ms=step_ms * _RESUME_COST_STEPS, version=_EMULATED_BUILD,
    )  # fmt: skip
    return engine, llm


async def build_real(section: TrtllmSection, model_path: str, model: str, sizes: EngineSizes) -> FrameEngine:
    """An agent on TensorRT-LLM itself. Loading takes minutes, off the loop. Raises ValueError without the package."""
    try:
        tensorrt_llm = importlib.import_module("tensorrt_llm")
        llmapi = importlib.import_module("tensorrt_llm.llmapi")
    except ImportError as error:
        raise ValueError(f"TensorRT-LLM is not installed here: run in its image ({error})") from error
    arguments = llm_arguments(section, llmapi, sizes)
    words = await asyncio.to_thread(HfVocabulary, model_path)
    llm = await asyncio.to_thread(lambda: tensorrt_llm.LLM(model=model_path, **arguments))
    capacity = section.kv_capacity_tokens or _capacity_of(llm, sizes.max_batch * sizes.context_tokens)
    version = str(tensorrt_llm.__version__)
    facts = BackendFacts(
        backend="trtllm",
        build=f"tensorrt_llm-{version}",
        device=f"cuda x{section.tensor_parallel * section.pipeline_parallel}",
        model_hash=words.model_hash,
        kv_type="engine",
        kv_bytes_per_token=section.kv_bytes_per_token,
        tokens_per_block=section.tokens_per_block,
        prefix_reuse=PrefixReuse.FAST,
        priority=True,
        has_rows=True,
    )
    return _agent(
        section, llm, llmapi, facts, words, sizes,
        model=model or words.name, capacity=capacity, resume_ms=0.0, version=version,
    )  # fmt: skip


def _agent(
    section: TrtllmSection, llm: Any, api: ModuleType, facts: BackendFacts, words: Vocabulary, sizes: EngineSizes,
    *, model: str, capacity: int, resume_ms: float, version: str,
) -> FrameEngine:  # fmt: skip
    adapters = adapters_of(section.adapters)
    facts = replace(facts, adapters=tuple(adapter.name for adapter in adapters))
    backend = TrtllmBackend(llm, api, facts, end_id=words.eos_token_id, adapters=adapters)
    mailbox = None
    if section.mode == "plan":
        mailbox = PlanMailbox()
        install(
            llm, mailbox, version=version, ranks=section.tensor_parallel * section.pipeline_parallel, overlap=False,
            emulated=api is emulator,
        )  # fmt: skip
    config = FrameConfig(
        model_name=model,
        max_batch=sizes.max_batch,
        max_resident=sizes.max_resident,
        context_tokens=min(sizes.context_tokens, capacity),
        kv_capacity_tokens=capacity,
        frame_iterations=section.frame_iterations,
        frame_ms=section.frame_ms,
        reserve_tokens=section.reserve_tokens,
        longest_reserve_tokens=section.longest_reserve_tokens,
        abort_timeout_s=section.abort_timeout_s,
        progress_timeout_s=section.progress_timeout_s,
        health_interval_s=section.health_interval_s,
        run_set_change_cost_ms=0.0 if mailbox is not None else resume_ms,
        prefill_chunk_tokens=section.tokens_per_block,
    )
    return FrameEngine(config, backend, words, mailbox)


def _capacity_of(llm: Any, fallback: int) -> int:
    """KV memory in tokens as recent builds tell it; else what the batch could want at most."""
    ask = getattr(llm, "get_kv_cache_capacity", None)
    if callable(ask):
        try:
            return int(ask())
        except (TypeError, ValueError, RuntimeError) as error:
            _log.warning("the engine does not tell its KV capacity: %s", error)
    _log.warning("KV capacity unknown: set executor.trtllm.kv_capacity_tokens; %d assumed", fallback)
    return fallback

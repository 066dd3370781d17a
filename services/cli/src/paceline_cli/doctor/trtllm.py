"""Checks of `paceline doctor trtllm`: sources against the surface, and a live engine where there is one."""

import asyncio
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from paceline_cli.doctor.finding import Finding, ok, problem, warning
from paceline_executor.trtllm.arguments import EngineSizes, llm_arguments
from paceline_executor.trtllm.config import TrtllmSection
from paceline_executor.trtllm.conformance import Verdict, check_sources
from paceline_executor.trtllm.live_checks import LiveCheck, LiveChecks, Outcome

_PACKAGE = "tensorrt_llm"
_NO_SOURCES = "give --sources a folder that holds tensorrt_llm/, or run this in the vendor's image"
_PROMPT_TOKENS = 200


def find_sources() -> Path | None:
    """The folder that holds an installed `tensorrt_llm`, without importing it."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).parent


def source_findings(root: Path | None) -> list[Finding]:
    """Every name of the surface that sources have, lack or have changed. Without sources that is said, loudly."""
    root = root or find_sources()
    if root is None:
        return [warning("sources", "NOT CHECKED: there are none here", _NO_SOURCES)]
    findings = []
    for check in check_sources(root):
        where = f"{check.entry} (private)" if check.private else check.entry
        if check.verdict is Verdict.OK:
            findings.append(ok(where, check.found))
        elif check.verdict is Verdict.ABSENT:
            findings.append(warning(where, check.found, "Paceline does without it on this build"))
        elif check.private:
            findings.append(
                warning(where, check.found, "plan mode and the health probe do not fit this build")
            )
        else:
            findings.append(problem(where, check.found, "the agent does not fit this build"))
    return findings


def live_findings(model: str, *, emulated: bool) -> list[Finding]:
    """The GPU checks on a model folder; with `emulated` on the emulator, which proves nothing of a GPU."""
    if emulated:
        label = "emulated, no GPU: "
        checks = asyncio.run(_emulated())
    elif find_sources() is None:
        return [warning("live", "NOT RUN: TensorRT-LLM is not installed here", _NO_SOURCES)]
    else:
        label = f"tensorrt_llm {importlib.metadata.version(_PACKAGE)}: "
        checks = asyncio.run(_real(model))
    return [
        ok(check.name, label + check.measured)
        if check.outcome is Outcome.PASS
        else problem(check.name, label + check.measured, "do not rely on this on this build")
        for check in checks
    ]


async def _emulated() -> list[LiveCheck]:
    from paceline_executor.trtllm import emulator

    section = TrtllmSection(emulated=True, time_scale=0.05)
    arguments = llm_arguments(section, emulator, EngineSizes(4, 4, 1024))
    llm = emulator.FakeLLM(section.profile, **arguments, emulated_time_scale=section.time_scale)
    prompt = [300 + place for place in range(_PROMPT_TOKENS)]
    return await LiveChecks(llm, emulator, prompt, end_id=0, tokens_per_block=section.tokens_per_block).run()


async def _real(model: str) -> list[LiveCheck]:
    from paceline_executor.trtllm.hf_vocabulary import HfVocabulary

    section = TrtllmSection()
    api = importlib.import_module(f"{_PACKAGE}.llmapi")
    words = await asyncio.to_thread(HfVocabulary, model)
    arguments = llm_arguments(section, api, EngineSizes(4, 4, 1024))
    llm: Any = await asyncio.to_thread(lambda: api.LLM(model=model, **arguments))
    try:
        text = "Tell me what a queue is, and then what it is not. " * 20
        prompt = words.tokenize_prompt(text).tolist()[:_PROMPT_TOKENS]
        work: Coroutine[Any, Any, list[LiveCheck]] = LiveChecks(
            llm, api, prompt, end_id=words.eos_token_id, tokens_per_block=section.tokens_per_block
        ).run()
        return await work
    finally:
        await asyncio.to_thread(llm.shutdown)

"""Makes the agent for a remote server. The vocabulary is read here, from a file: the servers do not give theirs out."""

import logging
from collections.abc import Sequence
from typing import Any

import httpx

from paceline_executor.frames.backend import Backend, Vocabulary
from paceline_executor.frames.config import FrameConfig
from paceline_executor.frames.engine import FrameEngine
from paceline_executor.remote.config import RemoteSection
from paceline_executor.remote.dialects import DIALECTS
from paceline_executor.remote.facts import remote_facts
from paceline_executor.remote.openai_backend import OpenAiBackend
from paceline_executor.remote.smg_backend import connect_smg
from paceline_executor.trtllm.arguments import EngineSizes
from paceline_executor.trtllm.vocabulary import load_vocabulary

_log = logging.getLogger(__name__)


async def build_remote(
    section: RemoteSection, model_path: str, model: str, sizes: EngineSizes
) -> FrameEngine:
    """An agent in front of a server. Raises ValueError without a vocabulary or when the server cannot be asked."""
    by_name = section.protocol == "openai" and DIALECTS[section.dialect].adapters_as_models
    if section.adapters and not by_name:
        raise ValueError("remote.adapters: this server takes no LoRA adapter in place of the model's name")
    words = load_vocabulary(model_path)
    if section.protocol == "smg-trtllm":
        backend, name = await connect_smg(section, words)
    else:
        backend, name = await _openai(section, words)
    config = FrameConfig(
        model_name=model or name,
        max_batch=sizes.max_batch,
        max_resident=sizes.max_resident,
        context_tokens=min(sizes.context_tokens, section.kv_capacity_tokens),
        kv_capacity_tokens=section.kv_capacity_tokens,
        frame_iterations=section.frame_iterations,
        frame_ms=section.frame_ms,
        reserve_tokens=section.reserve_tokens,
        progress_timeout_s=section.progress_timeout_s,
        health_interval_s=section.health_interval_s,
    )
    return FrameEngine(config, backend, words)


async def _openai(section: RemoteSection, words: Vocabulary) -> tuple[Backend, str]:
    dialect = DIALECTS[section.dialect]
    key = section.api_key.get_secret_value()
    client = httpx.AsyncClient(
        base_url=section.url,
        headers={"authorization": f"Bearer {key}"} if key else {},
        # Reading the certificates takes longer than many a request.
        verify=section.url.startswith("https:"),
        timeout=httpx.Timeout(section.read_timeout_s, connect=section.connect_timeout_s),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
    )
    try:
        name = section.model or await _first_model(client)
    except (httpx.HTTPError, ValueError, LookupError) as error:
        await client.aclose()
        raise ValueError(
            f"{section.url} does not tell its models: {type(error).__name__}: {error}"
        ) from error
    facts = remote_facts(section, words, name, priority=dialect.priority is not None)
    if not dialect.ask_for_ids and not dialect.native:
        _log.warning(
            "%s returns no token ids: they are read out of its text, and counts may differ", dialect.name
        )
    backend = OpenAiBackend(
        client, name, dialect, facts, _reader(words), health_failures=section.health_failures
    )
    return backend, name


async def _first_model(client: httpx.AsyncClient) -> str:
    answer = await client.get("/v1/models")
    answer.raise_for_status()
    models: list[dict[str, Any]] = answer.json()["data"]
    return str(models[0]["id"])


def _reader(words: Vocabulary) -> Any:
    """Ids of a stretch of an answer: as a prompt, without the token that begins prompts."""
    begins = words.tokenize_prompt("")

    def read(text: str) -> Sequence[int]:
        ids: list[int] = words.tokenize_prompt(text).tolist()
        head = begins.tolist()
        return ids[len(head) :] if head and ids[: len(head)] == head else ids

    return read

"""What remote servers send as events, and what the agent takes it for."""

from collections import Counter
from typing import Any

import httpx
import pytest

from paceline_executor.frames.backend import LegEnd, LegFailed
from paceline_executor.remote.config import RemoteSection
from paceline_executor.remote.dialects import DIALECTS
from paceline_executor.remote.facts import remote_facts
from paceline_executor.remote.llama_server import EventReader
from paceline_executor.remote.openai_backend import OpenAiBackend
from paceline_executor.trtllm.vocabulary import load_vocabulary


def by_byte(text: str) -> list[int]:
    return list(text.encode())


def chunk(**choice: Any) -> dict[str, Any]:
    return {"choices": [{"finish_reason": None, **choice}]}


async def test_ids_come_from_the_event_and_else_from_its_text() -> None:
    words = load_vocabulary("simulated")
    facts = remote_facts(RemoteSection(), words, "m", priority=False)
    async with httpx.AsyncClient() as client:
        backend = OpenAiBackend(client, "m", DIALECTS["sglang"], facts, by_byte, health_failures=3)
        read = backend._read_item
        assert read(chunk(text="ab", token_ids=[7])).ids == [7]  # type: ignore[union-attr]
        assert read(chunk(text="ab")).ids == [97, 98]  # type: ignore[union-attr]
        assert backend.counters["ids_read_from_text"] == 2
        last = read(chunk(text="", finish_reason="length"))
        assert last is not None
        assert last.end is LegEnd.LENGTH
        assert read({"choices": []}) is None
        with pytest.raises(LegFailed):
            read({"error": {"message": "no"}})


def test_llamas_ids_of_one_character_are_read_from_its_text() -> None:
    counters: Counter[str] = Counter()
    reader = EventReader(by_byte, counters)

    def ids(content: str, tokens: list[int], made: int) -> list[int] | None:
        item = reader.item({"content": content, "tokens": tokens, "tokens_predicted": made})
        return None if item is None else list(item.ids)

    assert ids("a", [97], 1) == [97]
    assert ids("\u00e9", [0xA9], 3) == [0xC3, 0xA9], "two tokens, one character"
    assert not counters
    assert ids("\ufffdb", [98], 5) == [98], "what was no character cannot be read"
    assert counters["ids_lost"] == 1
    end = reader.item({"content": "", "tokens": [], "stop": True, "stop_type": "eos"})
    assert end is not None
    assert end.end is LegEnd.STOP

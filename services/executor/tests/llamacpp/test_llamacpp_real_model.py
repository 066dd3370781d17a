"""The default model: a sensible answer, and the same one under every schedule."""

import random
from pathlib import Path

import numpy as np
import pytest

from paceline_executor.contract import AttemptSpec, Sampling, StateRequirements
from paceline_executor.llamacpp.model_fetch import ModelFetchError, fetch_model

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600)]

QUESTIONS = [
    "What is a queue in computer science?",
    "Write a short poem about the sea.",
    "List three uses of copper, and say why copper is good for each of them.",
    "Explain in simple words how a plant makes sugar out of light, water and air. " * 4,
]


@pytest.fixture(scope="module")
def real_model() -> Path:
    try:
        return fetch_model(print)
    except ModelFetchError as error:
        pytest.skip(f"NOT TESTED, the default model cannot be had: {error}")


def rendered(question: str) -> str:
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_no_schedule_changes_an_answer(start, real_model) -> None:
    """Alone, batched with pauses and evictions, replayed exactly, moved with its KV: token for token the same.

    An engine takes seconds to start: the one that runs them alone also takes the replays and the move.
    """
    rng = random.Random(5)
    greedy = Sampling(ignore_eos=True)
    settings = {"model_path": real_model, "context_tokens": 512, "max_resident": 6, "max_batch": 4}
    tokens = [24, 32, 22, 40]
    alone = start(**settings)
    for key, question in enumerate(QUESTIONS):
        alone.run(AttemptSpec(key, "r", tokens[key], prompt_text=rendered(question), sampling=greedy))
    expected = [alone.output(key) for key in range(4)]
    assert "<|im_start|>assistant" in alone.engine.capabilities.chat_template
    assert "queue" in alone.text(0).lower()
    assert len(alone.text(0).split()) > 10
    assert "\ufffd" not in alone.text(0)

    mixed = start(**settings)
    for key, question in enumerate(QUESTIONS):
        mixed.engine.add(AttemptSpec(key, "r", tokens[key], prompt_text=rendered(question), sampling=greedy))
    for goal in (6, 12, 18):
        order = rng.sample(range(4), 4)
        evict = (order[0],) if goal == 12 else ()
        mixed.plan(
            *order, limits=tuple(goal + key for key in order), evict=evict, max_batch=rng.randint(2, 4)
        )
        for key in order:
            mixed.until_count(key, goal + key)

    own = alone.engine.capabilities
    requirements = StateRequirements(own.build, own.model_hash, own.kv_type, own.max_context_tokens)
    state = mixed.engine.export_state(mixed.engine.issue_ticket(0).token, requirements).data
    forced = {0: mixed.output(0), 1: mixed.output(1), 2: expected[2][:5]}
    for key, ids in forced.items():
        alone.engine.add(
            AttemptSpec(
                key + 10,
                "r",
                tokens[key],
                prompt_text=rendered(QUESTIONS[key]),
                forced_ids=np.array(ids, np.int32),
                sampling=greedy,
            ),
            state if key == 0 else None,
        )
    mixed.plan(3, 1, 0, 2)
    alone.plan(10, 11, 12)
    mixed.until_ended(0, 1, 2, 3)
    alone.until_ended(10, 11, 12)
    assert alone.engine.counters["imports"] == 1
    for key in range(4):
        assert mixed.output(key) == expected[key]
    for key, ids in forced.items():
        assert alone.output(key + 10) == expected[key][len(ids) :]

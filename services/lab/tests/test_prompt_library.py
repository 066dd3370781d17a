"""The prompts: enough, different, sane."""

import re
from collections import Counter

import pytest
import yaml

from paceline_core.slo import SloClass
from paceline_lab.live.driver import ANSWER_LIMIT_CHARS
from paceline_lab.prompts import library as library_module
from paceline_lab.prompts.library import PromptError, load_library
from paceline_lab.prompts.model import Family, TaskCall

CONTEXT_TOKENS = 2048
# English text of these prompts has 4 to 5 characters a token; SQL and code fewer. Three is on the safe side.
SAFE_CHARS_PER_TOKEN = 3.0
TEMPLATE_TOKENS = 64


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def test_there_are_enough_of_every_family() -> None:
    library = load_library()
    assert len(library.prompts) + len(library.tasks) >= 200
    counts = Counter(prompt.family for prompt in library.prompts)
    assert {family for family in Family if family is not Family.TASK} == counts.keys()
    assert min(counts.values()) >= 20
    assert len(library.tasks) >= 12
    assert library.of_class(SloClass.LATENCY)
    assert library.of_class(SloClass.DEADLINE)


def test_no_prompt_repeats_another() -> None:
    library = load_library()
    asked = [prompt.messages[-1].content for prompt in library.prompts]
    asked += [call.template for task in library.tasks for call in task.calls]
    normal = [" ".join(words(text)) for text in asked]
    assert len(set(normal)) == len(normal)
    # Not by template either: no eight words in a row begin two prompts.
    beginnings = Counter(" ".join(words(text)[:8]) for text in asked)
    repeated = {start for start, count in beginnings.items() if count > 1 and len(start.split()) == 8}
    headline_task = (
        "write one headline for an article about a"  # three voices on the same subject, on purpose
    )
    assert repeated <= {headline_task}


def test_lengths_vary_and_fit_the_context() -> None:
    library = load_library()
    tokens = sorted(len(prompt.text) / SAFE_CHARS_PER_TOKEN for prompt in library.prompts)
    assert tokens[0] < 30
    assert tokens[-1] > 1000
    assert tokens[len(tokens) * 9 // 10] > 5 * tokens[len(tokens) // 10]
    for prompt in library.prompts:
        assert 30 <= prompt.max_tokens <= 300, prompt.prompt_id
        assert prompt.messages[-1].role == "user"
        assert len(prompt.text) / SAFE_CHARS_PER_TOKEN + prompt.max_tokens + TEMPLATE_TOKENS < CONTEXT_TOKENS


def test_tasks_build_on_earlier_answers_and_fit_even_with_the_longest() -> None:
    for task in load_library().tasks:
        assert task.stages >= 2, task.prompt_id
        names = [call.name for call in task.calls]
        assert len(set(names)) == len(names)
        for call in task.calls:
            assert bool(call.references) == (call.stage > 0), f"{task.prompt_id}: {call.name}"
            longest = call.render(dict.fromkeys(call.references, "x" * 5000), limit_chars=ANSWER_LIMIT_CHARS)
            assert "{" not in longest
            assert len(longest) / SAFE_CHARS_PER_TOKEN + call.max_tokens + TEMPLATE_TOKENS < CONTEXT_TOKENS


def test_answers_go_into_later_prompts_cut_to_the_limit() -> None:
    call = TaskCall("final", 1, 50, "A: {first}\nB: {second} {first}")
    assert call.references == ("first", "second")
    assert call.render({"first": " one ", "second": "abcdef"}, limit_chars=3) == "A: on\nB: abc on"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"family": "poetry", "slo_class": "latency", "prompts": []}, "poetry"),
        ({"family": "chat", "slo_class": "latency", "prompts": [{"id": "a", "text": "hi"}]}, "max_tokens"),
        (
            {
                "family": "chat",
                "slo_class": "latency",
                "prompts": [{"id": "a", "text": "x", "max_tokens": 9, "source": "no"}],
            },
            "no",
        ),
        (
            {
                "family": "task",
                "tasks": [{"id": "t", "stages": [[{"name": "a", "max_tokens": 9, "text": "{later}"}]]}],
            },
            "later",
        ),
    ],
)
def test_malformed_files_are_refused_by_name(
    document: dict[str, object], said: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("prompts") / "broken.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(PromptError, match=r"broken\.yaml") as caught:
        library_module._read_file(file, [], [])
    assert said in str(caught.value)

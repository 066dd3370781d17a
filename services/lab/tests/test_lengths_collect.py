"""Collecting outputs: real engine, tiny model, prompt sets written here in the shapes of the public ones."""

import json
import lzma
from collections import Counter
from pathlib import Path

import pytest

from paceline_lab.lengths.collect.draw import draws
from paceline_lab.lengths.collect.outputs import Output, OutputFile, OutputsBusyError, read_outputs
from paceline_lab.lengths.collect.prompts import Prompt, load_prompts, prompt_id
from paceline_lab.lengths.collect.run import CollectSpec, NothingToCollectError, Progress, collect

QUESTIONS = [f"What is {n} and {n}?" for n in range(12)]
TOO_LONG = "word " * 400


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True)
    with lzma.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    arena = [{"prompt": q, "model": m, "response": ""} for q in QUESTIONS[:6] for m in ("a", "b")]
    _write(folder / "arena-hard" / "answers.jsonl.xz", arena)
    _write(
        folder / "self-instruct-eval" / "predictions.jsonl.xz",
        [{"prompt": q} for q in [*QUESTIONS[4:], TOO_LONG]],
    )
    functions = [{"name": "f"}]
    _write(folder / "bfcl-toolcalls" / "prompts.jsonl.xz", [{"question": "Call f.", "functions": functions}])
    code = [{"bench": "leetcode-hard-py", "prompt": "no"}, {"bench": "mbpp-py", "prompt": "def f():"}]
    _write(folder / "code-responses" / "reflexion_code.jsonl.xz", code)
    return folder


def _spec(data: Path, out: Path, **settings: object) -> CollectSpec:
    base: dict[str, object] = {"max_tokens": (5, 9), "max_prompt_tokens": 1000, "model_path": "tiny"}
    return CollectSpec(data, out, **{**base, "batch": 4, **settings})  # type: ignore[arg-type]


def _silent(_: object) -> None:
    pass


def _output(prompt: str = "p", seed: int = 1) -> Output:
    return Output("m", prompt_id(prompt), "s", 0.0, seed, 8, 3, 8, True, "text\n\u2028 ü")


def test_every_text_is_read_once_and_missing_sets_are_named(data: Path) -> None:
    found = load_prompts(data)
    assert Counter(p.source for p in found.prompts) == {
        "arena-hard": 6, "self-instruct-eval": 7, "bfcl-toolcalls": 1, "code-responses": 1,
    }  # fmt: skip
    assert {p.text for p in found.prompts} >= {*QUESTIONS, TOO_LONG, "def f():"}
    assert any('{"name": "f"}' in p.text for p in found.prompts)
    assert [line.split(":")[0] for line in found.missing] == [
        "gsm8k", "reasoning-prompts", "lmcache-agent-trace",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no such prompt set: nonsense"):
        load_prompts(data, ["nonsense"])


def test_a_head_of_the_order_is_a_fair_sample_of_the_sets() -> None:
    small = [Prompt(prompt_id(f"s{n}"), "small", "chat", f"s{n}") for n in range(50)]
    large = [Prompt(prompt_id(f"l{n}"), "large", "chat", f"l{n}") for n in range(5000)]
    order = draws([*large, *small], (0.0, 1.0), (8,), seed=3)
    assert sorted(d.prompt.text for d in order) == sorted(p.text for p in [*large, *small])
    head = Counter(d.prompt.source for d in order[:110])
    assert 7 <= head["small"] <= 13
    assert order == draws([*small, *large], (0.0, 1.0), (8,), seed=3)
    assert order[:20] != draws([*small, *large], (0.0, 1.0), (8,), seed=4)[:20]
    cold = sum(d.temperature == 0.0 for d in order)
    assert 0.45 < cold / len(order) < 0.55


def test_outputs_are_made_once_and_a_second_run_goes_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "outputs.jsonl"
    first = collect(_spec(data, out, limit=5), _silent, _silent)
    assert (first.done, first.collected) == (5, 5)
    five = list(read_outputs(out))
    seen: list[Progress] = []
    second = collect(_spec(data, out), seen.append, _silent)
    rows = list(read_outputs(out))
    assert rows[:5] == five
    assert len({r.prompt_id for r in rows}) == len(rows) == second.done == 14
    assert second.too_long + first.too_long >= 1
    assert prompt_id(TOO_LONG) not in {r.prompt_id for r in rows}
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert {r.max_tokens for r in rows} == {5, 9}
    for row in rows:
        assert row.model == "tiny"
        assert 1 <= row.output_tokens <= row.max_tokens
        assert row.censored == (row.output_tokens == row.max_tokens)
        assert row.prompt_tokens > 10
    assert "prompt" not in json.loads(out.read_text().splitlines()[0])


def test_answers_do_not_depend_on_the_batch(data: Path, tmp_path: Path) -> None:
    alone, full = tmp_path / "alone.jsonl", tmp_path / "full.jsonl"
    collect(_spec(data, alone, batch=1), _silent, _silent)
    collect(_spec(data, full, batch=6), _silent, _silent)
    by_id = {r.prompt_id: r for r in read_outputs(alone)}
    assert {r.prompt_id: r for r in read_outputs(full)} == by_id
    assert len(by_id) == 14


def test_a_half_written_line_is_cut_and_its_output_made_again(tmp_path: Path) -> None:
    path = tmp_path / "outputs.jsonl"
    with OutputFile(path) as file:
        file.append(_output(seed=1))
        file.append(_output(seed=2))
    path.write_bytes(path.read_bytes()[:-7])
    assert [o.seed for o in read_outputs(path)] == [1]
    with OutputFile(path) as file:
        assert {seed for _, _, seed in file.known} == {1}
        file.append(_output(seed=2))
    assert list(read_outputs(path)) == [_output(seed=1), _output(seed=2)]


def test_a_line_that_is_no_output_is_named_and_a_compressed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "outputs.jsonl"
    with OutputFile(path) as file:
        file.append(_output())
    packed = tmp_path / "outputs.jsonl.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    assert list(read_outputs(packed)) == [_output()]
    with path.open("a") as text:
        text.write('{"model": "m"}\n')
    with pytest.raises(ValueError, match="line 2"):
        list(read_outputs(path))


def test_two_writers_of_one_file_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "outputs.jsonl"
    with OutputFile(path) as file:
        file.append(_output())
        with pytest.raises(OutputsBusyError), OutputFile(path):
            pass
        file.append(_output(seed=2))
    assert len(list(read_outputs(path))) == 2


def test_without_prompts_it_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(NothingToCollectError):
        collect(_spec(tmp_path / "nowhere", tmp_path / "out.jsonl"), _silent, said.append)
    assert len(said) == 7

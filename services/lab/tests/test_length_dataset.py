"""The corpus: what is read of small files in the public formats, and how training rows are made of it."""

import gzip
import json
import lzma
from collections.abc import Iterable
from pathlib import Path

import pytest

from paceline_lab.lengths.collect.prompts import prompt_id
from paceline_lab.lengths.dataset import as_served, load, with_progress, without_app
from paceline_lab.lengths.example import PART_BYTES, Example, as_sent, head_and_tail
from paceline_lab.lengths.loaders import MEASURING, TRAINING, WITHOUT_TEXT
from paceline_predictor.model import LengthQuestion


def write_rows(path: Path, rows: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_table(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def arena(data: Path, **more: object) -> None:
    row = {
        "qid": "1",
        "model": "gpt-4-0314",
        "in_tok": 4,
        "out_tok": 9,
        "prompt": "Hi?",
        "response": "Hello.",
    }
    write_rows(data / "arena-hard" / "answers.jsonl.xz", [row, {**row, "model": "gpt-3.5-turbo", **more}])


def example(**more: object) -> Example:
    fields: dict[str, object] = {
        "question": LengthQuestion("m", "chat", prompt_head="x"),
        "output_tokens": 100,
        "censored": False,
        "source": "s",
        "family": "chat",
        "prompt_id": "p",
        "weight": 1.0,
        "output": "ab" * 100,
    }
    return Example(**{**fields, **more})  # type: ignore[arg-type]


def test_nothing_there_is_said_plainly(tmp_path: Path) -> None:
    corpus = load(tmp_path, collected=tmp_path / "own.jsonl")
    assert corpus.examples == ()
    assert len(corpus.missing) == len(TRAINING) + 1
    assert "arena-hard: there is no " in corpus.missing[0]
    assert "github.com/lm-sys/arena-hard-auto" in corpus.missing[0]
    assert "paceline lengths collect" in corpus.missing[-1]


def test_an_unknown_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such set: nonsense; there are arena-hard"):
        load(tmp_path, sets=["nonsense"])


@pytest.mark.parametrize(
    "content", [b"", b"not xz", lzma.compress(b"{broken\n"), lzma.compress(b'{"model": 1}\n')]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "arena-hard").mkdir()
    (tmp_path / "arena-hard" / "answers.jsonl.xz").write_bytes(content)
    corpus = load(tmp_path, sets=["arena-hard"])
    assert corpus.examples == ()
    assert len(corpus.missing) == 1
    assert "cannot be read" in corpus.missing[0]


def test_rows_of_a_prompt_share_its_weight_and_id(tmp_path: Path) -> None:
    arena(tmp_path)
    first, second = load(tmp_path, sets=["arena-hard"]).examples
    assert first.weight == second.weight == pytest.approx(2**-0.5)
    assert first.prompt_id == second.prompt_id == prompt_id("Hi?")
    assert (first.family, first.question.app, first.output_tokens, first.output) == (
        "chat",
        "chat",
        9,
        "Hello.",
    )


def test_rows_without_a_length_are_left_out(tmp_path: Path) -> None:
    arena(tmp_path, out_tok=None)
    assert [e.question.model for e in load(tmp_path, sets=["arena-hard"]).examples] == ["gpt-4-0314"]


def test_provider_caps_are_censored_and_empty_answers_have_one_token(tmp_path: Path) -> None:
    rows = [
        {"model": "davinci", "prompt": "a", "response": "", "in_tok": 1, "out_tok": 0},
        {"model": "davinci", "prompt": "b", "response": "x", "in_tok": 1, "out_tok": 1018},
    ]
    write_rows(tmp_path / "self-instruct-eval" / "predictions.jsonl.xz", rows)
    empty, capped = load(tmp_path, sets=["self-instruct-eval"]).examples
    assert (empty.output_tokens, empty.censored) == (1, False)
    assert (capped.output_tokens, capped.censored) == (1018, True)


def test_what_people_wrote_is_no_model_answer(tmp_path: Path) -> None:
    row = {"id": 1, "prompt": "2+2?", "in_tok": 5, "human": 48, "6b_finetuning": "4", "6b_finetuning_tok": 2}
    write_rows(tmp_path / "gsm8k" / "test_4models.jsonl.xz", [row])
    (only,) = load(tmp_path, sets=["gsm8k"]).examples
    assert only.question.model == "gsm8k-6b-finetuning"


def test_contest_statements_are_not_trained_on(tmp_path: Path) -> None:
    row = {
        "bench": "mbpp-py",
        "model": "gpt-4",
        "name": "n",
        "prompt": "def f():",
        "response": "x",
        "out_tok": 3,
    }
    rows = [row, {**row, "out_tok": 0}, {**row, "bench": "leetcode-hard-py"}]
    write_rows(tmp_path / "code-responses" / "reflexion_code.jsonl.xz", rows)
    corpus = load(tmp_path, sets=["code-responses", "leetcode-responses"])
    assert [(e.source, e.permissive) for e in corpus.examples] == [
        ("code-responses", True),
        ("leetcode-responses", False),
    ]
    assert [e.source for e in corpus.permissive().examples] == ["code-responses"]


def test_agent_calls_get_back_what_they_share(tmp_path: Path) -> None:
    call = {"f": "magagent", "s": "s1", "i": 0, "t": 0, "in_tok": 9, "out_tok": 20, "lcp_chars": 0}
    rows = [
        {**call, "new_input": "system: be good. user: hi", "output": "hello"},
        {**call, "i": 1, "lcp_chars": 16, "new_input": " user: bye", "output": "x", "out_tok": 10_000},
        {**call, "i": 2, "in_tok": 0, "new_input": "", "output": "x"},
        {**call, "i": 3, "f": "taubench", "new_input": "q", "output": "", "out_tok": 0},
    ]
    write_rows(tmp_path / "lmcache-agent-trace" / "calls_text.jsonl.xz", rows)
    first, second = load(tmp_path, sets=["lmcache-agent-trace"]).examples
    assert second.question.prompt_head == "system: be good. user: bye"
    assert (first.censored, second.censored) == (False, True)
    assert first.prompt_id == second.prompt_id == "lmcache/s1"
    assert second.question.task_stage == 1


def test_tau_bench_joins_turns_with_their_lengths(tmp_path: Path) -> None:
    folder = tmp_path / "tau-bench"
    tool = {"function": {"name": "get", "arguments": "{}"}}
    run = {
        "task_id": 3,
        "trial": 0,
        "traj": [
            {"role": "user", "content": "change it"},
            {"role": "assistant", "content": "which?"},
            {"role": "user", "content": "mine"},
            {"role": "assistant", "content": None, "tool_calls": [tool]},
        ],
    }
    write_rows(folder / "gpt4o_airline_text.jsonl.xz", [run])
    write_table(folder / "system_prompt.txt.gz", "You are an agent.")
    write_table(
        folder / "gpt4o_airline_calls.csv.gz",
        "task_id,trial,call,input_tokens_excl_tool_schema,shared_prefix_tokens,output_tokens,kind,reward",
        "3,0,0,1300,0,5,say,0.0",
        "3,0,1,1400,0,7,tool,0.0",
    )
    first, second = load(tmp_path, sets=["tau-bench"]).examples
    assert (first.output_tokens, first.output, first.question.turn_index) == (5, "which?", 1)
    assert (second.output_tokens, second.question.turn_index, second.question.task_stage) == (7, 2, 1)
    assert '"get"' in second.output
    assert "which?" in second.question.prompt_head
    assert second.question.has_tools


def test_sets_of_numbers_and_measured_sets(tmp_path: Path) -> None:
    samples = tmp_path / "length-samples"
    write_table(samples / "wildbench_output_tokens_by_model.csv.gz", "model,aa,bb", "Llama-3,37,", "Yi,5,6")
    write_table(
        samples / "lmsys_per_model_output_lengths.csv.gz", "model,output_tokens", "vicuna,512", "vicuna,9"
    )
    write_table(samples / "sharegpt_8k_llama2_tokens.csv.gz", "input_tokens,output_tokens", "74,918")
    write_table(samples / "arxiv_summarization_llama2_tokens.csv.gz", "input_tokens,output_tokens", "3772,54")
    write_table(
        samples / "alpaca_vicuna7b_lengths_4temps.csv.gz", "alpaca_id,ref_tokens,t0.0,t0.7", "5,160,115,512"
    )
    bfcl = {"cat": "simple", "i": 0, "question": "area?", "functions": [{"name": "area"}], "in_tok": 44}
    write_rows(tmp_path / "bfcl-toolcalls" / "prompts.jsonl.xz", [bfcl])
    write_table(
        tmp_path / "bfcl-toolcalls" / "output_tokens_by_model.csv.gz", "model,simple_0", "Raven,18", "X,"
    )
    sql = {
        "qid": 1,
        "db": "d",
        "question": "how many?",
        "evidence": "e",
        "turbo_output": 33,
        "turbo_output_kg": 41,
    }
    write_rows(tmp_path / "text-to-sql" / "bird_dev_questions147_chatgpt_lengths.jsonl.xz", [sql])
    corpus = load(tmp_path, sets=[*WITHOUT_TEXT, "bfcl-toolcalls", "text-to-sql"])
    assert corpus.missing == ()
    assert corpus.rows_by_source() == {
        "wildbench": 3,
        "lmsys": 2,
        "sharegpt": 1,
        "alpaca": 2,
        "arxiv": 1,
        "bfcl-toolcalls": 1,
        "text-to-sql": 2,
    }
    assert {e.source for e in corpus.examples if not e.permissive} == {
        "alpaca",
        "bfcl-toolcalls",
        "text-to-sql",
    }
    assert [e.censored for e in corpus.examples if e.source in ("lmsys", "alpaca")] == [
        True,
        False,
        False,
        True,
    ]
    assert set(MEASURING) >= {"bfcl-toolcalls", "text-to-sql"}


def test_collected_outputs_are_joined_with_their_prompts(tmp_path: Path) -> None:
    arena(tmp_path)
    row = {
        "model": "smollm2",
        "prompt_id": prompt_id("Hi?"),
        "source": "arena-hard",
        "temperature": 0.7,
        "seed": 1,
        "max_tokens": 64,
        "prompt_tokens": 31,
        "output_tokens": 64,
        "censored": True,
        "output": "Hello",
    }
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (row, {**row, "prompt_id": "0" * 40})))
    corpus = load(tmp_path, sets=["arena-hard"], collected=path)
    own = corpus.examples[-1]
    assert (own.source, own.family, own.censored, own.permissive) == ("collected", "chat", True, True)
    assert (own.question.max_tokens, own.question.temperature) == (64, 0.7)
    assert own.question.prompt_head.endswith("<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n")
    assert own.prompt_id == corpus.examples[0].prompt_id
    assert corpus.missing == (f"collected outputs: 1 answer prompts that are not under {tmp_path}",)


def test_collected_answers_to_an_agents_first_call_stay_with_its_session(tmp_path: Path) -> None:
    call = {"f": "magagent", "s": "s1", "i": 0, "t": 0, "in_tok": 9, "out_tok": 20, "lcp_chars": 0}
    row = {**call, "new_input": "user: plan it", "output": "hello"}
    write_rows(tmp_path / "lmcache-agent-trace" / "calls_text.jsonl.xz", [row])
    own = {
        "model": "smollm2",
        "prompt_id": prompt_id("plan it"),
        "source": "lmcache-agent-trace",
        "temperature": 0.0,
        "seed": 1,
        "max_tokens": 64,
        "prompt_tokens": 31,
        "output_tokens": 5,
        "censored": False,
        "output": "Hello",
    }
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(own) + "\n")
    corpus = load(tmp_path, sets=["lmcache-agent-trace"], collected=path)
    assert [example.prompt_id for example in corpus.examples] == ["lmcache/s1"] * 2


def test_prompts_are_cut_as_the_router_cuts_them() -> None:
    assert head_and_tail("short") == ("short", "")
    head, tail = head_and_tail("é" * PART_BYTES + "x")
    assert len(head.encode()) == PART_BYTES
    assert tail.endswith("éx")
    assert len(tail.encode()) < PART_BYTES + 1


def test_prompts_come_with_and_without_templates() -> None:
    sent = [as_sent("Hi", f"{i}") for i in range(200)]
    plain = sum(text == "Hi" for text in sent)
    assert 60 < plain < 140
    assert sum("SmolLM" in text for text in sent) > 5
    assert all(text == "Hi" or text.endswith("assistant\n") for text in sent)


def test_training_rows_lose_apps_and_get_limits_that_say_nothing() -> None:
    rows = as_served([example(output_tokens=700) for _ in range(400)], seed=1)
    assert 140 < sum(row.question.app == "" for row in rows) < 260
    limited = [row for row in rows if row.question.max_tokens]
    assert 140 < len(limited) < 260
    for row in limited:
        limit = row.question.max_tokens
        assert row.output_tokens == min(700, limit)
        assert row.censored == (limit < 700)
        assert len(row.output) == 200 * row.output_tokens // 700
    assert rows == as_served([example(output_tokens=700) for _ in range(400)], seed=1)
    kept = example(question=LengthQuestion("m", "chat", max_tokens=50), output_tokens=50, censored=True)
    assert all(row.question.max_tokens == 50 for row in as_served([kept] * 20))


def test_without_app() -> None:
    assert [row.question.app for row in without_app([example()])] == [""]


def test_progress_rows_are_those_an_answer_outlasts() -> None:
    rows = with_progress([example(output_tokens=100)], steps=(25, 50, 100, 200), seed=3)
    generated = [row.question.generated_tokens for row in rows]
    assert 20 <= generated[0] <= 30
    assert 40 <= generated[1] <= 60
    assert all(g < 100 for g in generated)
    assert sum(row.weight for row in rows) == pytest.approx(1)
    for row in rows:
        assert row.output_tokens == 100
        assert row.question.output_tail == ("ab" * 100)[: 2 * row.question.generated_tokens]
    assert with_progress([example(output="")]) == []
    assert len(with_progress([example(output="z" * 9000)], steps=(90,))[0].question.output_tail) == 1024

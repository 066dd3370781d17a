"""Features of questions: the same in every process and batch, finite for any text."""

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_predictor.features import APP_BUCKETS, NUMERIC, TEXT_BUCKETS, features
from paceline_predictor.features.words import join, words
from paceline_predictor.model import LengthQuestion

ESSAY = "Write a detailed 500-word essay on Rome, and list 3 reasons why it fell. 漢字 “quoted” naïve?"


def ask(head: str = "", **more: object) -> LengthQuestion:
    return LengthQuestion(model="m", app="chat", prompt_head=head, **more)  # type: ignore[arg-type]


def number(question: LengthQuestion, name: str) -> float:
    return float(features([question]).numeric[0, NUMERIC.index(name)])


def digest(questions: list[LengthQuestion]) -> str:
    found = features(questions)
    return hashlib.sha256(found.text.tobytes() + found.numeric.tobytes()).hexdigest()


def test_same_in_another_process() -> None:
    code = (
        "from test_predictor_features import *\n"
        "print(digest([ask(ESSAY, prompt_tail=ESSAY, output_tail=ESSAY, generated_tokens=9)]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=__file__.rsplit("/", 1)[0],
        env={"PYTHONHASHSEED": "17", "PATH": ""},
        timeout=180,
    )
    mine = digest([ask(ESSAY, prompt_tail=ESSAY, output_tail=ESSAY, generated_tokens=9)])
    assert run.stdout.strip() == mine


any_text = st.text(alphabet=st.characters(), max_size=400) | st.sampled_from(
    [ESSAY, "```py\n<|im_end|>", "漢字"]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(any_text, any_text, any_text), min_size=1, max_size=12))
def test_a_batch_changes_nothing_and_all_is_finite(texts: list[tuple[str, str, str]]) -> None:
    questions = [
        ask(head, prompt_tail=tail, output_tail=output, generated_tokens=3) for head, tail, output in texts
    ]
    together = features(questions)
    assert np.isfinite(together.text).all()
    assert np.isfinite(together.numeric).all()
    for row, question in enumerate(questions):
        alone = features([question])
        np.testing.assert_array_equal(alone.text[0], together.text[row])
        np.testing.assert_array_equal(alone.numeric[0], together.numeric[row])


def test_a_batch_larger_than_one_pass_over_the_arrays() -> None:
    questions = [ask(f"{i} " + "word " * 700, prompt_tail="end " * 900) for i in range(12)]
    together = features(questions)
    assert together.text.shape == (12, TEXT_BUCKETS)
    for row, question in enumerate(questions):
        np.testing.assert_array_equal(features([question]).text[0], together.text[row])


@pytest.mark.parametrize(
    "text",
    ["", " ", "\x00\x01\xff" * 300_000, "a" * 1_000_000, "\ud800 lone", "漢" * 50_000, "7 words " * 5_000],
    ids=["empty", "blank", "binary", "one word", "surrogate", "ideographs", "numbers"],
)
def test_any_text_is_accepted(text: str) -> None:
    found = features([ask(text, prompt_tail=text, output_tail=text, generated_tokens=1)])
    assert np.isfinite(found.text).all()
    assert np.isfinite(found.numeric).all()
    assert found.text[0].sum() < 20_000


def test_absurd_numbers_are_bounded() -> None:
    absurd = ask(
        "x",
        temperature=math.nan,
        prompt_tokens=1 << 62,
        max_tokens=-5,
        turn_index=-1,
        generated_tokens=1 << 62,
        task_stage=1 << 40,
    )
    assert np.abs(features([absurd]).numeric).max() < 100
    assert number(ask("x", temperature=math.inf), "temperature") == 0
    assert number(ask("x", temperature=9.0), "temperature") == 2


def test_no_questions() -> None:
    found = features([])
    assert found.text.shape == (0, TEXT_BUCKETS)
    assert found.numeric.shape == (0, len(NUMERIC))


def test_words_are_told_by_case_folded_letters_and_pairs_by_order() -> None:
    def counts(text: str) -> np.ndarray:
        return features([ask(text)]).text[0]

    np.testing.assert_array_equal(counts("The  Quick, fox!"), counts("the quick fox"))
    np.testing.assert_array_equal(counts("in 1999"), counts("in 2024"))
    assert (counts("the quick fox") != counts("the fox quick")).any()
    assert counts("one two three").sum() == 3 + 2 + 1  # words, pairs, app


def test_words_of_different_texts_make_no_pair() -> None:
    apart = features([ask("alpha", prompt_tail="beta")]).text[0]
    assert apart.sum() == 2 + 1
    assert apart.nonzero()[0][0] < apart.nonzero()[0][1]


def test_few_words_share_a_bucket() -> None:
    """Collisions are those of chance: m words in n buckets fill n (1 - exp(-m/n)) of them."""
    rng = np.random.default_rng(5)
    some = {"".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 7)) for _ in range(2000)}
    hashes = words(*join([" ".join(some).encode()])).hashes[: len(some)]
    assert len(np.unique(hashes)) == len(some)
    filled = len(np.unique((hashes >> np.uint64(32)) * np.uint64(2432) >> np.uint64(32)))
    assert abs(filled - 2432 * (1 - math.exp(-len(some) / 2432))) < 100


def test_hashes_do_not_depend_on_where_a_word_stands() -> None:
    found = words(*join([b"rome fell", b"x y z rome fell"]))
    single = found.hashes[: found.count]
    assert single[0] == single[5]
    assert single[1] == single[6]
    assert found.hashes[found.count] == found.hashes[found.count + 5]
    assert found.bounds.tolist() == [0, 2, 7]


def test_templates_leave_the_prompt_as_it_is() -> None:
    plain = ask("What is Rome?")
    wrapped = ask("<|im_start|>user\nWhat is Rome?<|im_end|>\n<|im_start|>assistant\n")
    llama = ask("<s>[INST] What is Rome? [/INST]")
    for other in (wrapped, llama):
        np.testing.assert_array_equal(features([plain]).text, features([other]).text)
        assert number(other, "ends_with_question") == 1


@pytest.mark.parametrize(
    ("text", "cue"),
    [
        ("Answer in JSON please", "asks_json"),
        ("Write Python CODE for it", "asks_code"),
        ("List the planets", "asks_list"),
        ("Tell me briefly", "asks_brief"),
        ("Give a comprehensive overview", "asks_long"),
        ("Think step by step", "asks_steps"),
        ("How many apples are left?", "asks_maths"),
    ],
)
def test_cues(text: str, cue: str) -> None:
    assert number(ask(text), cue) == 1
    assert number(ask("Hello there"), cue) == 0


def test_a_number_of_words_that_is_asked_for() -> None:
    assert number(ask("a 500-word essay"), "log_tokens_asked") == pytest.approx(math.log1p(650))
    assert number(ask("in 3 sentences, 20 words"), "log_tokens_asked") == pytest.approx(math.log1p(75))
    assert number(ask("in the year 1999"), "asks_count") == 0


def test_the_app_stands_in_columns_of_its_own() -> None:
    chat, other = (
        features([ask("x")]).text[0],
        features([LengthQuestion("m", "tool", prompt_head="x")]).text[0],
    )
    assert chat[APP_BUCKETS].sum() == other[APP_BUCKETS].sum() == 1
    assert (chat[APP_BUCKETS] != other[APP_BUCKETS]).any()
    np.testing.assert_array_equal(chat[: APP_BUCKETS.start], other[: APP_BUCKETS.start])


@pytest.mark.parametrize(
    ("output", "name", "value"),
    [
        ("so:\n```python\nx = 1\n", "code_fence_open", 1.0),
        ("so:\n```python\nx = 1\n```\nDone", "code_fence_open", 0.0),
        ("x\n```\n", "code_fence_open", 0.5),
        ("1. a\n2. b\n12) c", "list_index", 1.2),
        ("no list", "in_list", 0.0),
        ("- a\n- b\n• c", "list_index", 0.3),
        ("it goes on.\nit goes on.\nit goes on.\nit goes on.", "repeated_lines", 2 / 3),
        ("Rome fell.", "ends_sentence", 1.0),
        ("Rome fell", "ends_sentence", 0.0),
        ("In conclusion, Rome", "output_concludes", 1.0),
        ("I hope this helps", "output_says_goodbye", 1.0),
    ],
)
def test_progress(output: str, name: str, value: float) -> None:
    assert number(ask("x", output_tail=output, generated_tokens=50), name) == pytest.approx(value)


def test_output_cues_are_read_in_the_output_alone() -> None:
    assert number(ask("In conclusion, list it"), "output_concludes") == 0
    assert number(ask("x", output_tail="list json", generated_tokens=5), "asks_list") == 0
    assert number(ask("x", generated_tokens=99), "log_generated") == pytest.approx(math.log(100))
    assert number(ask("x", generated_tokens=56, max_tokens=155), "log_limit_left") == pytest.approx(
        math.log(100)
    )

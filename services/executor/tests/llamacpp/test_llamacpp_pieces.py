"""The parts alone: text pieces, slot windows, sampling, the layout canary, the tiny model, tickets' bytes."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_executor.contract import AttemptSpec, EndReason, EngineError, Sampling
from paceline_executor.llamacpp import binding
from paceline_executor.llamacpp.model import Model, ModelLoadError
from paceline_executor.llamacpp.sampling import SampleRow, sample, uniform
from paceline_executor.llamacpp.slots import plan_window
from paceline_executor.llamacpp.tiny import write_tiny_model
from paceline_executor.llamacpp.transfer import SequenceState
from paceline_executor.output_text import OutputText
from paceline_executor.validation import check_sampling

NO_IDS = np.empty(0, np.int32)


# --- text pieces


@given(text=st.text(max_size=40), cuts=st.lists(st.integers(1, 4), min_size=1, max_size=60))
def test_pieces_never_split_a_character_and_add_up(text, cuts) -> None:
    raw = text.encode("utf-8", "surrogatepass") if not any("\ud800" <= c <= "\udfff" for c in text) else b"?"
    output, pieces, start = OutputText(), [], 0
    for cut in cuts * (len(raw) // len(cuts) + 1):
        pieces.append(output.push(raw[start : start + cut])[0])
        start += cut
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in raw.decode()
    assert "".join(pieces) + output.finish() == raw.decode()


@given(
    data=st.binary(max_size=60),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
    letters=st.booleans(),
)
def test_stop_strings_cut_exactly_where_they_begin(data, stops, letters) -> None:
    """Byte by byte: the text ends before the first stop string that completes, and nothing of it leaks earlier."""
    raw = bytes(b"ab"[value % 2] for value in data) if letters else data
    output, released, matched = OutputText(tuple(stops)), "", ""
    fed = 0
    for fed in range(1, len(raw) + 1):
        text, matched = output.push(raw[fed - 1 : fed])
        released += text
        if matched:
            break
    if not matched:
        released += output.finish()
        assert released == raw.decode("utf-8", "replace")
        assert not any(stop in released for stop in stops)
        return
    whole = raw[:fed].decode("utf-8", "replace")
    position = min(whole.find(stop) for stop in stops if stop in whole)
    assert released == whole[:position]
    assert whole[position:].startswith(matched)
    assert not any(stop in raw[: fed - 1].decode("utf-8", "replace") for stop in stops)


# --- slots


@given(st.data())
def test_moves_make_any_run_set_gap_free(data) -> None:
    held = data.draw(st.lists(st.one_of(st.none(), st.integers(0, 300)), min_size=1, max_size=24))
    occupied = [slot for slot, tokens in enumerate(held) if tokens is not None]
    running = data.draw(st.lists(st.sampled_from(occupied), unique=True)) if occupied else []
    owners = [None if tokens is None else slot for slot, tokens in enumerate(held)]
    for move in plan_window(held, running):
        owners[move.source], owners[move.target] = owners[move.target], owners[move.source]
    places = sorted(owners.index(owner) for owner in running)
    assert places == list(range(places[0], places[0] + len(places))) if places else not running
    assert sorted(owner for owner in owners if owner is not None) == occupied, "somebody was lost"


def test_the_cheapest_window_wins() -> None:
    assert plan_window([100, 100, None, 5], [0, 1, 3]) == [type(plan_window([1, None, 1], [0, 2])[0])(3, 2)]
    assert plan_window([1, 2, 3], [0, 1, 2]) == []
    assert plan_window([None, None, 1], [2]) == []


# --- sampling


def draw(logits, sampling: Sampling, index: int = 0, prompt=NO_IDS, output=()) -> int:
    return sample(np.array([logits], np.float32), [SampleRow(sampling, index, prompt, list(output))])[0]


def test_greedy_takes_the_first_largest() -> None:
    assert draw([0.0, 3.0, 3.0, 1.0], Sampling()) == 1


def test_the_random_numbers_are_fixed_for_ever_and_uniform() -> None:
    assert uniform(1, 0) == pytest.approx(uniform(1, 0), abs=0)
    numbers = np.array([uniform(seed, index) for seed in range(20) for index in range(500)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    histogram = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((histogram - 500) ** 2 / 500).sum() < 43.8, "chi-square at 0.1 % with 19 degrees of freedom"
    assert len({uniform(seed, index) for seed in range(50) for index in range(50)}) == 2500


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature) -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    sampling = Sampling(temperature=temperature, seed=11)
    counts = np.bincount([draw(logits, sampling, index) for index in range(4000)], minlength=4)
    expected = np.exp(logits / temperature)
    expected = 4000 * expected / expected.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 16.3, "chi-square at 0.1 % with 3 degrees of freedom"


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15]))
    hot = {"temperature": 1.0, "seed": 5}
    assert {draw(logits, Sampling(top_k=2, **hot), index) for index in range(300)} == {1, 3}
    assert {draw(logits, Sampling(top_p=0.6, **hot), index) for index in range(300)} == {1, 3}
    assert {draw(logits, Sampling(top_p=0.01, **hot), index) for index in range(50)} == {1}
    assert {draw(logits, Sampling(top_k=3, top_p=0.9, **hot), index) for index in range(400)} == {1, 3, 4}
    assert {draw(logits, Sampling(top_k=99, **hot), index) for index in range(900)} == {0, 1, 2, 3, 4}


def test_top_p_over_a_flat_large_vocabulary_reaches_past_the_first_candidates() -> None:
    logits = np.zeros(5000)
    drawn = {draw(logits, Sampling(temperature=1.0, top_p=0.5, seed=1), index) for index in range(400)}
    assert max(drawn) < 2501
    assert max(drawn) > 1500


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-9, 1e-4])
def test_the_coldest_draws_are_the_largest_logit(temperature) -> None:
    cold = Sampling(temperature=temperature, top_p=0.9, top_k=2, logit_bias=((1, 100.0),), seed=3)
    assert draw([90.0, -5.0, 94.0], cold) == 1
    assert draw([90.0, -5.0, 94.0], Sampling(temperature=temperature, top_p=0.9)) == 2


@pytest.mark.parametrize("output", [(), (0, 0, 0, 1)])
def test_the_largest_penalties_leave_something_to_draw(output) -> None:
    for sign in (-1, 1):
        for penalty in (0.01, 100.0):
            hard = Sampling(
                temperature=1e-4,
                top_p=0.5,
                presence_penalty=100.0 * sign,
                frequency_penalty=100.0 * sign,
                repetition_penalty=penalty,
            )
            check_sampling(hard, 3)
            assert draw([50.0, -40.0, 30.0], hard, output=output) in range(3)


def test_penalties_and_bias_come_from_the_ids() -> None:
    logits = [2.0, 1.9, 0.0]
    assert draw(logits, Sampling(presence_penalty=0.2), output=[0]) == 1
    assert draw(logits, Sampling(frequency_penalty=0.05), output=[0]) == 0
    assert draw(logits, Sampling(frequency_penalty=0.06), output=[0, 0]) == 1
    assert draw(logits, Sampling(presence_penalty=0.2), prompt=np.array([0], np.int32)) == 0
    assert draw(logits, Sampling(repetition_penalty=1.2), prompt=np.array([0], np.int32)) == 1
    assert draw([-1.0, -1.1, -9.0], Sampling(repetition_penalty=1.2), output=[0]) == 1
    assert draw(logits, Sampling(logit_bias=((2, 5.0),))) == 2


def test_sampling_leaves_the_logits_alone() -> None:
    logits = np.array([[1.0, 2.0]], np.float32)
    sample(logits, [SampleRow(Sampling(temperature=1, logit_bias=((0, 3.0),)), 0, NO_IDS, [])])
    assert logits.tolist() == [[1.0, 2.0]]


# --- through the engine


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8, seed=42, ignore_eos=True),
        Sampling(temperature=1.0, top_k=20, top_p=0.9, seed=1, presence_penalty=0.5, ignore_eos=True),
        Sampling(frequency_penalty=0.7, repetition_penalty=1.1, ignore_eos=True),
        Sampling(temperature=1.0, seed=3, stop=("\ufffd\ufffd", "q"), ignore_eos=True),
    ],
)
def test_a_replay_draws_the_same_tokens_and_text(start, reference, prompts, sampling) -> None:
    driver = start()
    driver.run(AttemptSpec(1, "r", 60, prompt_ids=prompts[6], sampling=sampling))
    whole, pieces = driver.output(1), driver.pieces[1]
    assert whole == reference.drawn(prompts[6], 60, sampling)[: len(whole)]
    assert driver.run(AttemptSpec(9, "r", 60, prompt_ids=prompts[6], sampling=sampling)) is None
    assert driver.pieces[9] == pieces
    for key, cut in enumerate(sorted({0, 1, len(whole) // 3, len(whole) - 1}), start=10):
        other = start()
        forced = np.array(whole[:cut], np.int32)
        other.run(
            AttemptSpec(key, "r", 60, prompt_ids=prompts[6], forced_ids=forced, sampling=sampling),
            AttemptSpec(2, "neighbour", 9, prompt_ids=prompts[3]),
        )
        assert other.output(key) == whole[cut:]
        assert other.pieces[key] == {index: piece for index, piece in pieces.items() if index >= cut}
        assert other.ended[key].reason is driver.ended[1].reason
        other.engine.republish(key, 0)
        other.until(lambda other=other: bool(other.republished))
        assert other.output(key) == whole
        assert other.text(key) == driver.text(1)


def test_a_stop_string_ends_the_answer_before_it(start, reference, prompts) -> None:
    prompt = prompts[5]
    plain = start()
    plain.run(AttemptSpec(1, "r", 80, prompt_ids=prompt, sampling=Sampling(ignore_eos=True)))
    text = plain.text(1)
    stop = text[20:23]
    driver = start()
    driver.run(AttemptSpec(1, "r", 80, prompt_ids=prompt, sampling=Sampling(stop=(stop,), ignore_eos=True)))
    end = driver.ended[1]
    assert (end.reason, end.stop_string) == (EndReason.STOP_STRING, stop)
    assert driver.text(1) == text[: text.find(stop)]
    assert end.output_tokens == len(driver.output(1)) < 80


def test_stop_tokens_and_end_tokens_end_without_text(start, reference, prompts) -> None:
    answer = reference.answer(prompts[5], 30, stop_at_end=False)
    driver = start()
    end_token = driver.engine._model.eos_token_id
    stop = Sampling(stop_token_ids=(answer[10],), ignore_eos=True)
    driver.run(
        AttemptSpec(1, "r", 30, prompt_ids=prompts[5], sampling=stop),
        AttemptSpec(2, "r", 30, prompt_ids=prompts[5], sampling=Sampling(logit_bias=((end_token, 100.0),))),
    )
    cut = answer.index(answer[10]) + 1
    assert driver.output(1) == answer[:cut]
    assert driver.output(2) == [end_token]
    assert driver.text(2) == ""
    assert {driver.ended[key].reason for key in (1, 2)} == {EndReason.STOP}


# --- binding, model, bytes


def test_the_canary_refuses_a_shifted_layout() -> None:
    """Fields after `type_v` moved by eight bytes are what older releases have; nothing before them differs."""
    library = binding.load_library()
    model = library.llama_model_default_params()
    good = library.llama_context_default_params()
    binding.check_defaults(good, 168, model, 78)
    raw = bytearray(bytes(good))
    raw[128:136], raw[136:144] = raw[136:144], raw[128:136]
    with pytest.raises(binding.BindingError, match="offload_kqv"):
        binding.check_defaults(binding.ContextParams.from_buffer(raw), 168, model, 78)
    with pytest.raises(binding.BindingError, match="ends at byte 160"):
        binding.check_defaults(good, 160, model, 78)
    model.flags[2] = 0
    with pytest.raises(binding.BindingError, match="model flags"):
        binding.check_defaults(good, 168, model, 78)


def test_another_release_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(binding, "PINNED_VERSION", "2026.9.11063")
    with pytest.raises(binding.BindingError, match="struct layouts"):
        binding.extension_path()


def test_only_the_binding_knows_c_structs() -> None:
    assert ctypes.sizeof(binding.Batch) == 56
    folder = Path(binding.__file__).parent
    knowing = {path.name for path in folder.glob("*.py") if "ctypes.Structure" in path.read_text()}
    assert knowing == {"binding.py"}


def test_the_tiny_model_is_reproducible_and_loses_no_text(tmp_path, tiny_model) -> None:
    again = write_tiny_model(tmp_path / "again.gguf")
    assert again.read_bytes() == tiny_model.read_bytes()
    assert write_tiny_model(tmp_path / "other.gguf", seed=1).read_bytes() != tiny_model.read_bytes()
    model = Model(tiny_model)
    text = "the plain, Zürich, 東京, λόγος 🙂 \t\n\x00 end"
    assert model.detokenize(model.tokenize(text)) == text
    turn = model.tokenize("<|im_start|>user\nhi<|im_end|>")
    assert (turn[0], turn[-1]) == (258, 259)
    assert 259 in model.end_token_ids
    model.close()


def test_a_broken_model_file_is_refused(tmp_path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelLoadError, match="cannot load"):
        Model(broken)
    with pytest.raises(ModelLoadError, match="no model file"):
        Model(tmp_path / "missing.gguf")


@given(st.binary(max_size=80))
def test_bytes_that_are_no_state_are_refused(data) -> None:
    with pytest.raises(EngineError, match="STATE_CORRUPT"):
        SequenceState.unpack(data)
    good = SequenceState(
        "b", "h", "f16", 64, 2, 2, np.arange(3, dtype=np.int32), np.arange(9, dtype=np.uint8)
    )
    assert np.array_equal(SequenceState.unpack(good.pack()).ids, good.ids)
    assert np.array_equal(SequenceState.unpack(good.pack()).kv, good.kv)
    with pytest.raises(EngineError, match="STATE_CORRUPT"):
        SequenceState.unpack(b"PLKV\x01\xff\xff\xff\xff" + data)


@given(
    st.lists(st.sampled_from([-9.0, -1.0, 0.0, 0.5, 0.5001, 2.0, 7.0, -80.0]), min_size=1, max_size=400),
    st.floats(0.01, 0.999),
    st.integers(0, 1000),
)
def test_a_draw_stays_in_the_nucleus_that_sorting_would_give(logits, top_p, index) -> None:
    scaled = np.array(logits, np.float32)
    weights = np.exp(scaled - scaled.max()).astype(np.float64)
    order = np.argsort(-scaled, kind="stable")
    cumulative = np.cumsum(weights[order])
    # Rounding may put one more or one less equal weight at the border, so the nucleus is taken a hair wider.
    nucleus = order[: int(np.searchsorted(cumulative, (top_p + 1e-6) * cumulative[-1])) + 1]
    assert draw(logits, Sampling(temperature=1.0, top_p=top_p, seed=9), index) in nucleus

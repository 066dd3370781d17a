"""What only a simulated engine promises: exact times, a language that repeats itself, limits as numbers, low cost."""

import threading
from pathlib import Path

import numpy as np
import pytest

from paceline_core.engines.profile import UnknownProfileError
from paceline_core.engines.shipped import load_profile, profile_names
from paceline_executor.contract import (
    AttemptEnded,
    AttemptSpec,
    DeviationReason,
    EndReason,
    Event,
    Plan,
    ReplayMode,
    Sampling,
    StepReport,
)
from paceline_executor.simulated.config import SimulatedConfig
from paceline_executor.simulated.driver import ManualDriver
from paceline_executor.simulated.engine import SimulatedEngine
from paceline_executor.simulated.language import language

ENDLESS = Sampling(ignore_eos=True)


class Bench:
    """An engine under a clock turned by hand."""

    def __init__(self, driver: ManualDriver | None = None, **settings: object) -> None:
        self.driver = driver or ManualDriver()
        self.aborts = 0
        base = {"profile": "cpu-smollm2", "event_capacity": 1 << 20}
        config = SimulatedConfig(**{**base, **settings})  # type: ignore[arg-type]
        self.engine = SimulatedEngine(config, self.driver, abort=self._abort)

    def _abort(self) -> None:
        self.aborts += 1

    def add(self, key: int, prompt: str | int = "a prompt", **fields: object) -> None:
        given = (
            {"prompt_text": prompt}
            if isinstance(prompt, str)
            else {"prompt_ids": np.full(prompt, 9, np.int32)}
        )
        spec = {"max_tokens": 20, "sampling": ENDLESS, **given, **fields}
        self.engine.add(AttemptSpec(key, f"request-{key}", **spec))  # type: ignore[arg-type]

    def run(self, seconds: float, *keys: int, **fields: object) -> list[Event]:
        self.engine.set_plan(Plan(1, keys, **fields))  # type: ignore[arg-type]
        self.driver.advance(seconds)
        return self.engine.events.drain()


def steps_of(events: list[Event]) -> list[StepReport]:
    return [event for event in events if isinstance(event, StepReport)]


def text_of(events: list[Event]) -> bytes:
    return b"".join(step.tokens.text for step in steps_of(events))


@pytest.mark.parametrize(("time_scale", "speed_factor"), [(1.0, 1.0), (0.1, 1.0), (1.0, 3.0)])
def test_steps_take_the_time_of_the_model(time_scale: float, speed_factor: float) -> None:
    bench = Bench(time_scale=time_scale, speed_factor=speed_factor)
    for key in (1, 2, 3):
        bench.add(key, 100)
    steps = steps_of(bench.run(1000, 1, 2, 3))
    profile, factor = load_profile("cpu-smollm2"), time_scale * speed_factor
    first = steps[0]
    assert [(call.tokens, call.context_tokens) for call in first.prefill_calls] == [(100, 0)] * 3
    assert first.step_ms == pytest.approx(3 * profile.prefill_ms(100, 0) * factor)
    # The last prefill gave the first token; from then on every step decodes all three.
    for number, step in enumerate(steps[1:], 1):
        assert step.decode_batch == 3
        assert step.decode_context_tokens == 3 * (100 + number)
        assert step.decode_ms == pytest.approx(profile.decode_ms(3, step.decode_context_tokens) * factor)
    assert len(steps) == 20


def test_a_long_run_does_not_drift() -> None:
    bench = Bench()
    bench.add(1, 10, max_tokens=1000)
    bench.engine.set_plan(Plan(1, (1,)))
    ends = []
    while not ends:
        bench.driver.advance(0.001)
        events = bench.engine.events.drain()
        ends = [event for event in events if isinstance(event, AttemptEnded)]
    profile = load_profile("cpu-smollm2")
    expected_ms = profile.prefill_ms(10, 0) + sum(profile.decode_ms(1, 10 + n) for n in range(1, 1000))
    assert bench.driver.now_s() == pytest.approx(expected_ms / 1e3, abs=0.002)


def test_answers_depend_on_seed_and_prompt_alone() -> None:
    one, two, other = Bench(), Bench(max_batch=2, profile="h100-8b"), Bench(seed=1)
    texts = []
    for bench in (one, two, other):
        for key in (1, 2, 3):
            bench.add(key, "the same" if key < 3 else "another")
        events = [bench.run(100, key) for key in (1, 2, 3)]
        texts.append([text_of(part) for part in events])
    assert texts[0] == texts[1]
    assert texts[0][0] == texts[0][1] != texts[0][2]
    assert texts[2][0] != texts[0][0]


def test_own_lengths_follow_the_distribution() -> None:
    bench = Bench(output_median_tokens=100, output_sigma=0.5, max_batch=32, time_scale=1e-3, context_tokens=100_000,
                  kv_capacity_tokens=1 << 30, max_resident=2000)  # fmt: skip
    keys = range(1, 501)
    for key in keys:
        bench.add(key, f"prompt {key}", max_tokens=50_000, sampling=Sampling())
    events = bench.run(1e6, *keys)
    ends = [event for event in events if isinstance(event, AttemptEnded)]
    lengths = np.array([end.output_tokens for end in ends])
    assert len(ends) == 500
    assert {end.reason for end in ends} == {EndReason.STOP}
    assert 90 <= np.median(lengths) <= 110
    assert 0.45 <= np.log(lengths).std() <= 0.55


def test_kv_capacity_is_never_exceeded_and_everybody_ends() -> None:
    bench = Bench(kv_capacity_tokens=200, max_batch=8)
    keys = range(1, 9)
    for key in keys:
        bench.add(key, 40, max_tokens=40)
    events = bench.run(10_000, *keys)
    steps = steps_of(events)
    assert max(step.kv.used_tokens for step in steps) <= 200
    assert sum(isinstance(event, AttemptEnded) for event in events) == 8
    deviations = [row for step in steps for row in step.deviations]
    assert deviations
    assert {row.reason for row in deviations} == {DeviationReason.NO_KV}
    assert bench.engine.kv_use().used_tokens == 0


def test_exact_replay_decodes_and_fast_replay_prefills() -> None:
    bench = Bench()
    bench.add(1, 50)
    ids = np.concatenate([step.tokens.token_ids for step in steps_of(bench.run(100, 1))])
    assert len(ids) == 20
    for key, replay in ((2, ReplayMode.EXACT), (3, ReplayMode.FAST)):
        bench.add(key, 50, forced_ids=ids[:10], replay=replay)
        steps = steps_of(bench.run(100, key))
        prefilled = sum(call.tokens for step in steps for call in step.prefill_calls)
        assert prefilled == (50 if replay is ReplayMode.EXACT else 60)
        assert np.array_equal(np.concatenate([step.tokens.token_ids for step in steps]), ids[10:])


def test_forced_ids_of_another_language_are_taken_as_they_are() -> None:
    bench = Bench()
    tongue = language(0)
    forced = tongue.tokenize_prompt("Forced words é 🙂 and")
    bench.add(1, "x", forced_ids=forced, max_tokens=len(forced) + 5)
    bench.engine.republish(1, 0)
    events = bench.run(100, 1)
    republished = next(
        event for event in events if hasattr(event, "tokens") and not isinstance(event, StepReport)
    )
    assert republished.tokens.text.decode() == "Forced words é 🙂 and"
    assert sum(len(step.tokens.token_ids) for step in steps_of(events)) == 5


def test_tombstones_are_bounded_in_number_and_time() -> None:
    bench = Bench(max_tombstones=5, tombstone_ttl_s=50)
    for key in range(1, 21):
        bench.add(key)
    bench.run(10, *range(1, 21))
    assert [row.spec.attempt_key for row in bench.engine.live_table()] == [16, 17, 18, 19, 20]
    bench.driver.advance(60)
    assert bench.engine.live_table() == []


def test_live_attempts_are_bounded() -> None:
    bench = Bench(max_live=2)
    for key in (1, 2, 3):
        bench.add(key)
    ends = [event for event in bench.engine.events.drain() if isinstance(event, AttemptEnded)]
    assert [(end.attempt_key, end.error_reason, end.retryable) for end in ends] == [(3, "QUEUE_FULL", True)]


def test_the_marked_prompt_aborts_when_it_first_decodes() -> None:
    bench = Bench(fault_abort_marker="poison")
    bench.add(1, "harmless")
    bench.run(1, 1)
    bench.add(2, "some poison here")
    assert bench.aborts == 0
    bench.run(1, 2)
    assert bench.aborts > 0


def test_a_changed_run_set_costs_what_the_profile_says(tmp_path: Path) -> None:
    lines = ["device: test", "a_ms: 10", "b_ms: 0", "c_ms: 0", "a1_ms: 0", "p0_ms: 1", "d_ms: 0", "e_ms: 0"]
    lines += ["kv_capacity_tokens: 10000", "kv_bytes_per_token: 1", "run_set_change_cost_ms: 5"]
    path = tmp_path / "priced.yaml"
    path.write_text("\n".join(lines))
    bench = Bench(profile=str(path))
    bench.add(1, 10, max_tokens=4)
    bench.add(2, 10, max_tokens=8)
    steps = steps_of(bench.run(10, 1, 2))
    assert [round(step.step_ms) for step in steps] == [2, 10, 10, 10, 15, 10, 10, 10]


def test_hundreds_of_engines_need_no_thread() -> None:
    driver = ManualDriver()
    before = set(threading.enumerate())
    benches = [Bench(driver, time_scale=0.1) for _ in range(100)]
    for bench in benches:
        bench.add(1)
        bench.engine.set_plan(Plan(1, (1,)))
    driver.advance(10)
    assert set(threading.enumerate()) <= before
    assert all(bench.engine.kv_use().live == 0 for bench in benches)


def test_profiles_are_complete_and_ordered_as_the_hardware_is() -> None:
    assert {"a100-80-8b", "h100-8b", "cpu-smollm2"} <= set(profile_names())
    for name in profile_names():
        profile = load_profile(name)
        assert profile.decode_ms(16, 16 * 500) > profile.decode_ms(1, 500) > 0
        assert profile.prefill_ms(512, 0) > profile.prefill_ms(64, 0) > 0
    a100, h100 = load_profile("a100-80-8b"), load_profile("h100-8b")
    assert h100.decode_ms(16, 8000) < a100.decode_ms(16, 8000)
    assert h100.prefill_ms(512, 0) < a100.prefill_ms(512, 0)
    with pytest.raises(UnknownProfileError, match="a100-80-8b"):
        load_profile("abacus")


@pytest.mark.parametrize("text", ["", "plain", "Mixed CASE, 12.5 %\n", "naïve 東京 🙂 \x00 end", "a" * 1000])
def test_the_tokenizer_loses_nothing(text: str) -> None:
    tongue = language(0)
    assert tongue.text_of(tongue.tokenize_prompt(text)).decode() == text


def test_the_ring_splits_characters_over_tokens_but_not_over_pieces() -> None:
    tongue = language(0)
    assert b"".join(tongue.ring_text).decode()
    assert (tongue.ring_lengths == 0).sum() > 1000, "there are characters of several tokens"
    for piece in tongue.ring_text[:5000]:
        piece.decode()

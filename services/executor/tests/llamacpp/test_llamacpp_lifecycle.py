"""Adding, planning, pausing, cancelling, forgetting: what an engine owes its scheduler."""

import threading

import numpy as np
import pytest

from paceline_executor.contract import (
    AttemptAccepted,
    AttemptEnded,
    AttemptSpec,
    AttemptState,
    DeviationReason,
    EndReason,
    EngineError,
    Plan,
    PrefixReuse,
    Sampling,
    StateRequirements,
    StepReport,
)
from paceline_executor.llamacpp.context import DecodeError

GREEDY = Sampling(ignore_eos=True)


def spec(key: int, prompt, tokens: int = 400, **rest) -> AttemptSpec:
    return AttemptSpec(key, f"request-{key}", tokens, prompt_ids=prompt, sampling=GREEDY, **rest)


def row_of(driver, key: int):
    return next(row for row in driver.engine.live_table() if row.spec.attempt_key == key)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt_ids": np.zeros(512, np.int32)}, "CONTEXT_LENGTH_EXCEEDED"),
        ({"prompt_ids": None, "prompt_text": "x" * 10_000_000}, "CONTEXT_LENGTH_EXCEEDED"),
        ({"prompt_ids": None, "prompt_text": ""}, "EMPTY_PROMPT"),
        ({"prompt_ids": np.empty(0, np.int32)}, "EMPTY_PROMPT"),
        ({"prompt_ids": np.array([260], np.int32)}, "INVALID_TOKEN_ID"),
        ({"prompt_text": "both forms"}, "INVALID_PROMPT"),
        ({"max_tokens": 0}, "INVALID_MAX_TOKENS"),
        ({"forced_ids": np.array([-1], np.int32)}, "INVALID_TOKEN_ID"),
        ({"sampling": Sampling(temperature=-1)}, "INVALID_SAMPLING"),
        ({"sampling": Sampling(top_p=0)}, "INVALID_SAMPLING"),
        ({"sampling": Sampling(repetition_penalty=1e-40)}, "INVALID_SAMPLING"),
        ({"sampling": Sampling(frequency_penalty=float("nan"))}, "INVALID_SAMPLING"),
        ({"sampling": Sampling(logit_bias=((9999, 1.0),))}, "INVALID_SAMPLING"),
        ({"sampling": Sampling(stop=("x" * 300,))}, "INVALID_SAMPLING"),
    ],
)
def test_bad_attempts_are_rejected_with_a_reason(start, change, reason) -> None:
    driver = start()
    fields = {"prompt_ids": np.arange(3, dtype=np.int32), "max_tokens": 5, **change}
    driver.engine.add(AttemptSpec(attempt_key=9, request_id="r", **fields))
    driver.until_ended(9)
    assert driver.ended[9].reason is EndReason.REJECTED
    assert driver.ended[9].error_reason == reason
    assert driver.ended[9].message
    assert driver.engine.live_table() == []


def test_an_answer_ends_where_the_context_ends(start, prompts) -> None:
    driver = start()
    driver.run(spec(1, prompts[9], tokens=10_000))
    assert driver.ended[1].reason is EndReason.LENGTH
    assert driver.ended[1].output_tokens == 512 - 200


def test_nothing_runs_without_a_plan_or_outside_it(start, prompts) -> None:
    driver = start()
    driver.engine.add(spec(1, prompts[1], 3))
    driver.engine.add(spec(2, prompts[1], 3))
    driver.plan(2)
    driver.until_ended(2)
    assert row_of(driver, 1).state is AttemptState.QUEUED
    assert 1 not in driver.ids


def test_a_plan_may_name_attempts_that_come_later(start, prompts) -> None:
    driver = start()
    driver.plan(1, 2)
    driver.engine.add(spec(2, prompts[1], 3))
    driver.engine.add(spec(1, prompts[1], 3))
    driver.until_ended(1, 2)


def test_a_freed_place_is_filled_from_the_plan_at_once(start, prompts) -> None:
    driver = start(max_batch=2, max_resident=4)
    for key in range(6):
        driver.engine.add(spec(key, prompts[key], 8))
    driver.plan(*range(6))
    driver.until_ended(*range(6))
    assert {report.plan_id for report in driver.reports} == {1}
    busy = [report.decode_batch for report in driver.reports if report.decode_batch]
    assert busy.count(1) <= 8, "a place stayed empty"


def test_credit_holds_an_attempt_and_more_credit_frees_it(start, prompts) -> None:
    driver = start()
    driver.engine.add(spec(1, prompts[1], 30))
    driver.engine.add(spec(2, prompts[2], 30))
    driver.plan(1, 2, limits=(10, 0))
    driver.until_ended(2)
    driver.until(lambda: row_of(driver, 1).state is AttemptState.PAUSED)
    assert len(driver.output(1)) == 10
    driver.plan(1, limits=(0,))
    driver.until_ended(1)


def test_pausing_keeps_kv_and_evicting_frees_it(start, prompts) -> None:
    driver = start()
    driver.engine.add(spec(1, prompts[5]))
    driver.plan(1, limits=(10,))
    driver.until_count(1, 10)
    driver.engine.clear_plan()
    driver.until(lambda: row_of(driver, 1).state is AttemptState.PAUSED)
    assert row_of(driver, 1).kv_tokens == 109
    driver.plan(evict=(1,))
    driver.until(lambda: row_of(driver, 1).state is AttemptState.EVICTED)
    assert (row_of(driver, 1).kv_tokens, row_of(driver, 1).output_tokens) == (0, 10)
    driver.until(lambda: driver.reports[-1].kv.used_tokens == 0)


def test_the_live_table_survives_its_scheduler(start, prompts) -> None:
    driver = start()
    for key in (1, 2):
        driver.engine.add(spec(key, prompts[key], context=b"state of %d" % key))
    driver.plan(1, 2, limits=(20, 20))
    driver.until_count(1, 20)
    driver.until_count(2, 20)
    driver.engine.clear_plan()
    table = {row.spec.attempt_key: row for row in driver.engine.live_table()}
    assert [table[key].spec.context for key in (1, 2)] == [b"state of 1", b"state of 2"]
    assert [table[key].output_tokens for key in (1, 2)] == [20, 20]
    assert np.array_equal(table[2].prompt_ids, prompts[2])
    before = sum(call.tokens for report in driver.reports for call in report.prefill_calls)
    driver.plan(1, 2, limits=(30, 30))
    driver.until_count(2, 30)
    after = sum(call.tokens for report in driver.reports for call in report.prefill_calls)
    assert before == after, "KV was computed again"


@pytest.mark.parametrize("when", ["queued", "prefilling", "running", "paused", "evicted", "held", "ended"])
def test_cancel_frees_everything_in_every_state(start, prompts, when) -> None:
    driver = start()
    tokens = 1 if when == "ended" else 300
    driver.engine.add(spec(1, prompts[9], tokens, await_more_forced=when == "held"))
    if when == "prefilling":
        driver.plan(1, prefill_budget_tokens=1)
        driver.until(lambda: any(report.prefill_calls for report in driver.reports))
    elif when == "held":
        driver.plan(1)
        driver.until(lambda: row_of(driver, 1).kv_tokens == 192)
    elif when not in ("queued",):
        driver.plan(1, limits=(0 if when == "running" else 5,))
        driver.until_count(1, 3)
    if when == "evicted":
        driver.plan(evict=(1,))
        driver.until(lambda: row_of(driver, 1).state is AttemptState.EVICTED)
    driver.engine.cancel(1)
    driver.engine.cancel(1)
    driver.until_ended(1)
    expected = EndReason.LENGTH if when == "ended" else EndReason.CANCELLED
    assert driver.ended[1].reason is expected
    assert row_of(driver, 1).kv_tokens == 0
    driver.engine.release(1)
    assert driver.engine.live_table() == []
    driver.run(spec(2, prompts[0], 2))
    assert driver.reports[-1].kv.used_tokens == 0
    assert driver.reports[-1].kv.resident == 0


def test_a_wanted_attempt_takes_the_slot_of_an_unlisted_one_and_says_so(start, prompts) -> None:
    driver = start(max_batch=2, max_resident=2)
    for key in (1, 2, 3):
        driver.engine.add(spec(key, prompts[1]))
    driver.plan(1, 2, limits=(5, 5))
    driver.until_count(1, 5)
    driver.until_count(2, 5)
    driver.plan(3, 2, limits=(5, 6))
    driver.until_count(3, 5)
    deviations = [deviation for report in driver.reports for deviation in report.deviations]
    assert [(deviation.attempt_key, deviation.reason) for deviation in deviations] == [
        (1, DeviationReason.NO_SLOT)
    ]
    assert row_of(driver, 1).state is AttemptState.EVICTED


def test_tombstones_are_kept_republished_released_and_bounded(start, prompts) -> None:
    driver = start(max_tombstones=5)
    driver.run(*(spec(key, prompts[1], 4) for key in range(8)))
    assert len(driver.engine.live_table()) == 5
    driver.ended.clear()
    driver.engine.republish(7, 1)
    driver.engine.republish(0, 0)
    driver.until_ended(7)
    columns = driver.republished[0].tokens
    assert columns.attempt_keys.tolist() == [7]
    assert columns.first_indices.tolist() == [1]
    assert columns.counts.tolist() == [3]
    assert columns.token_ids.tolist() == driver.output(7)[1:]
    assert 0 not in driver.ended, "a forgotten attempt was republished"
    driver.engine.release(7)
    assert 7 not in {row.spec.attempt_key for row in driver.engine.live_table()}


def test_tombstones_expire(start, prompts) -> None:
    driver = start(tombstone_ttl_s=0.0)
    driver.run(spec(1, prompts[1], 2))
    driver.until(lambda: driver.engine.live_table() == [])


def test_adding_twice_repeats_the_acceptance_only(start, prompts) -> None:
    driver = start()
    driver.run(spec(1, prompts[1], 4))
    driver.accepted.clear()
    driver.ended.clear()
    driver.engine.add(spec(1, prompts[1], 4))
    driver.until_ended(1)
    assert 1 in driver.accepted
    assert driver.output(1) == list(driver.ids[1].values())


def test_live_attempts_are_bounded(start, prompts) -> None:
    driver = start(max_live=2)
    for key in (1, 2, 3):
        driver.engine.add(spec(key, prompts[1], 2))
    driver.until_ended(3)
    assert (driver.ended[3].error_reason, driver.ended[3].retryable) == ("QUEUE_FULL", True)


def test_events_come_in_order(start, prompts) -> None:
    driver = start()
    driver.run(*(spec(key, prompts[key], 6) for key in range(4)))
    for key in range(4):
        mine = [
            type(event)
            for event in driver.order
            if getattr(event, "attempt_key", None) == key
            or (isinstance(event, StepReport) and key in event.tokens.attempt_keys.tolist())
        ]
        assert mine[0] is AttemptAccepted
        assert mine[-1] is AttemptEnded
        assert len(mine) == 8


def test_a_reader_that_sleeps_costs_reports_but_no_token(start, prompts, reference) -> None:
    driver = start(event_capacity=4)
    for key in range(4):
        driver.engine.add(spec(key, prompts[key], 200))
    done = threading.Event()
    driver.plan(*range(4))
    while not done.wait(0.01):
        if all(row.ended for row in driver.engine.live_table()):
            done.set()
    driver.until_ended(*range(4))
    assert len(driver.reports) <= 4 + 4
    assert driver.engine.events.folded_reports > 100
    assert max(report.merged_reports for report in driver.reports) > 1
    for key in range(4):
        assert driver.output(key) == reference.answer(prompts[key], 200, stop_at_end=False)


def test_drain_waits_then_cancels(start, prompts) -> None:
    driver = start()
    driver.engine.add(spec(1, prompts[1], 5))
    driver.engine.add(spec(2, prompts[1], 5))
    driver.plan(1)
    assert driver.engine.drain(timeout_s=0.5) == (1, 1)
    driver.engine.add(spec(3, prompts[1], 5))
    driver.until_ended(1, 2, 3)
    assert driver.ended[2].reason is EndReason.CANCELLED
    assert driver.ended[3].error_reason == "DRAINING"


def test_forced_ids_that_contradict_fail_the_attempt(start, prompts) -> None:
    driver = start()
    forced = np.array([1, 2, 3], np.int32)
    for key, (first, ids) in enumerate({1: (4, [9]), 2: (2, [9]), 3: (3, [999])}.values(), start=1):
        driver.engine.add(spec(key, prompts[1], 50, forced_ids=forced, await_more_forced=True))
        driver.engine.extend_forced(key, first, np.array(ids, np.int32), final=True)
    driver.until_ended(1, 2, 3)
    assert {driver.ended[key].error_reason for key in (1, 2, 3)} == {"FORCED_IDS_MISMATCH"}


def test_an_end_among_the_forced_ids_ends_the_attempt(start, prompts) -> None:
    driver = start()
    sampling = Sampling(stop_token_ids=(7,))
    driver.engine.add(
        AttemptSpec(
            1, "r", 50, prompt_ids=prompts[1], forced_ids=np.array([5, 7, 9], np.int32), sampling=sampling
        )
    )
    driver.until_ended(1)
    assert (driver.ended[1].reason, driver.ended[1].output_tokens) == (EndReason.STOP, 2)
    driver.engine.add(
        AttemptSpec(2, "r", 50, prompt_ids=prompts[1], await_more_forced=True, sampling=sampling)
    )
    driver.engine.extend_forced(2, 0, np.array([5, 7], np.int32), final=False)
    driver.until_ended(2)
    assert driver.ended[2].reason is EndReason.STOP


def test_a_slower_engine_says_so_and_is(start, prompts) -> None:
    driver = start(speed_factor=3.0)
    driver.run(spec(1, prompts[1], 5))
    assert driver.engine.capabilities.speed_factor == 3.0
    assert all(report.step_ms >= report.decode_ms for report in driver.reports)


def test_a_refused_call_fails_its_attempts_and_not_the_engine(start, prompts, reference, monkeypatch) -> None:
    driver = start()
    context = driver.engine._context
    decode, calls = context.decode, []

    def refuse_once(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise DecodeError("llama_decode answered 1")
        return decode(*arguments)

    monkeypatch.setattr(context, "decode", refuse_once)
    for key in (1, 2, 3):
        driver.engine.add(spec(key, prompts[9], 20))
    driver.plan(1, 2)
    driver.until_ended(1, 2)
    assert {driver.ended[key].error_reason for key in (1, 2)} == {"DECODE_FAILED"}
    assert driver.engine.kv_use().used_tokens == driver.engine.kv_use().cached_tokens == 0
    driver.plan(3)
    driver.until_ended(3)
    assert driver.output(3) == reference.answer(prompts[9], 20, stop_at_end=False)


def test_a_failure_of_the_loop_ends_every_attempt_and_shows(start, prompts, monkeypatch) -> None:
    driver = start()
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    monkeypatch.setattr(driver.engine._stepper, "decode", lambda run_set: 1 / 0)
    driver.engine.add(spec(1, prompts[1]))
    driver.engine.add(spec(2, prompts[1]))
    driver.plan(1)
    while driver.engine.alive:
        driver.engine.events.wait(0.1)
    driver.pump()
    assert {driver.ended[key].error_reason for key in (1, 2)} == {"ENGINE_FAILED"}
    driver.engine.counters["fatal"] = 0


def test_plans_with_limits_of_another_length_are_refused(start) -> None:
    driver = start()
    with pytest.raises(ValueError, match="token_limits"):
        driver.engine.set_plan(Plan(1, (1, 2), (3,)))


class TestTickets:
    def running(self, start, prompts, **settings):
        driver = start(**settings)
        driver.engine.add(spec(1, prompts[9], 400))
        driver.plan(1, limits=(10,))
        driver.until_count(1, 10)
        return driver

    def requirements(self, driver, **change):
        own = driver.engine.capabilities
        fields = {
            "build": own.build,
            "model_hash": own.model_hash,
            "kv_type": own.kv_type,
            "max_context_tokens": own.max_context_tokens,
        }
        return StateRequirements(**{**fields, **change})

    def refusal(self, call, *arguments) -> str:
        with pytest.raises(EngineError) as caught:
            call(*arguments)
        return caught.value.reason

    def test_a_ticket_works_once(self, start, prompts) -> None:
        driver = self.running(start, prompts)
        ticket = driver.engine.issue_ticket(1)
        state = driver.engine.export_state(ticket.token, self.requirements(driver))
        assert (state.positions, state.prompt_tokens) == (209, 200)
        assert state.token_ids.tolist() == prompts[9].tolist() + driver.output(1)[:9]
        assert abs(len(state.data) / ticket.size_bytes - 1) < 0.2
        assert (
            self.refusal(driver.engine.export_state, ticket.token, self.requirements(driver))
            == "TICKET_INVALID"
        )

    def test_guessed_and_expired_tickets_are_refused(self, start, prompts) -> None:
        driver = self.running(start, prompts, ticket_ttl_s=0.0)
        ticket = driver.engine.issue_ticket(1)
        for token in (ticket.token, "guess", ""):
            assert (
                self.refusal(driver.engine.export_state, token, self.requirements(driver)) == "TICKET_INVALID"
            )

    def test_tickets_are_bounded(self, start, prompts) -> None:
        driver = self.running(start, prompts, max_tickets=2)
        driver.engine.issue_ticket(1)
        driver.engine.issue_ticket(1)
        assert self.refusal(driver.engine.issue_ticket, 1) == "TOO_MANY_TICKETS"

    def test_no_ticket_without_kv(self, start, prompts) -> None:
        driver = self.running(start, prompts)
        assert self.refusal(driver.engine.issue_ticket, 77) == "UNKNOWN_ATTEMPT"
        ticket = driver.engine.issue_ticket(1)
        driver.engine.cancel(1)
        driver.until_ended(1)
        assert self.refusal(driver.engine.issue_ticket, 1) == "NO_STATE"
        assert self.refusal(driver.engine.export_state, ticket.token, self.requirements(driver)) == "NO_STATE"

    @pytest.mark.parametrize(
        "change",
        [{"build": "other"}, {"model_hash": "other"}, {"kv_type": "q8_0"}, {"max_context_tokens": 64}],
    )
    def test_unequal_engines_get_nothing(self, start, prompts, change) -> None:
        driver = self.running(start, prompts)
        ticket = driver.engine.issue_ticket(1)
        requirements = self.requirements(driver, **change)
        assert self.refusal(driver.engine.export_state, ticket.token, requirements) == "STATE_INCOMPATIBLE"

    def test_a_state_that_does_not_fit_is_replayed_instead(self, start, prompts, reference) -> None:
        driver = self.running(start, prompts)
        ticket = driver.engine.issue_ticket(1)
        state = driver.engine.export_state(ticket.token, self.requirements(driver)).data
        other = start()
        other.engine.add(spec(1, prompts[9], 20), state[:100])
        other.engine.add(spec(2, prompts[8], 20), state)
        same_length = prompts[9][::-1].copy()
        other.engine.add(spec(3, same_length, 20), state)
        other.plan(1, 2, 3)
        other.until_ended(1, 2, 3)
        assert other.engine.counters["imports_refused"] == 3
        for key, prompt in ((1, prompts[9]), (2, prompts[8]), (3, same_length)):
            assert other.output(key) == reference.answer(prompt, 20, stop_at_end=False)

    def test_kv_made_in_any_chunks_is_not_taken_for_kv_made_in_ours(self, start, prompts, reference) -> None:
        driver = self.running(start, prompts, prefix_reuse=PrefixReuse.FAST)
        states = [
            driver.engine.export_state(driver.engine.issue_ticket(1).token, self.requirements(driver)).data
            for _ in range(2)
        ]
        exact, fast = start(), start(prefix_reuse=PrefixReuse.FAST)
        for other, state in zip((exact, fast), states, strict=True):
            other.engine.add(spec(1, prompts[9], 20), state)
            other.plan(1)
            other.until_ended(1)
        assert (exact.engine.counters["imports_refused"], exact.engine.counters["imports"]) == (1, 0)
        assert exact.output(1) == reference.answer(prompts[9], 20, stop_at_end=False)
        assert fast.engine.counters["imports"] == 1

"""No schedule, pause, eviction, replay, transfer or shared prefix may change a greedy answer."""

import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline_executor.contract import (
    AttemptSpec,
    EndReason,
    EngineError,
    Ids,
    PrefixReuse,
    ReplayMode,
    Sampling,
    StateRequirements,
)

GREEDY = Sampling(ignore_eos=True)


def requirements_of(engine: Any) -> StateRequirements:
    own = engine.capabilities
    return StateRequirements(own.build, own.model_hash, own.kv_type, own.max_context_tokens)


@dataclass
class Request:
    """A request as a router sees it: the ids it has, and the attempt that now serves it."""

    prompt: Ids
    tokens: int
    key: int = 0
    driver: Any = None
    have: list[int] = field(default_factory=list)

    def spec(self, key: int, forced: list[int], **rest: Any) -> AttemptSpec:
        return AttemptSpec(
            key,
            f"request-{key}",
            self.tokens,
            prompt_ids=self.prompt,
            forced_ids=np.array(forced, np.int32),
            sampling=GREEDY,
            **rest,
        )

    def collect(self) -> list[int]:
        """Ids out so far: what was forced into the present attempt, then what it made."""
        return self.have + self.driver.output(self.key)


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 16])
def test_answers_do_not_depend_on_the_batch(start, reference, prompts, batch) -> None:
    driver = start(max_batch=batch, prefix_reuse=PrefixReuse.NONE)
    specs = [
        AttemptSpec(key, "r", 40, prompt_ids=prompt, sampling=GREEDY) for key, prompt in enumerate(prompts)
    ]
    driver.run(*specs)
    for key, prompt in enumerate(prompts):
        assert driver.output(key) == reference.answer(prompt, 40, stop_at_end=False)
    assert max(report.decode_batch for report in driver.reports) == batch


def test_answers_of_two_threads_do_not_depend_on_the_batch(start) -> None:
    """Long contexts: there flash attention of several threads gives other sums for other batches."""
    rng = np.random.default_rng(3)
    long_prompts = [rng.integers(0, 256, size).astype(np.int32) for size in range(160, 340, 23)]
    answers = []
    for batch in (1, 4, 8):
        driver = start(threads=2, max_batch=batch, max_resident=8)
        driver.run(
            *(AttemptSpec(key, "r", 100, prompt_ids=p, sampling=GREEDY) for key, p in enumerate(long_prompts))
        )
        answers.append([driver.output(key) for key in range(len(long_prompts))])
    assert answers[1] == answers[0]
    assert answers[2] == answers[0]


@pytest.mark.parametrize("budget", [1, 64, 100, 1000])
def test_answers_do_not_depend_on_the_prefill_budget(start, reference, prompts, budget) -> None:
    driver = start(max_batch=8)
    for key, prompt in enumerate(prompts):
        driver.engine.add(AttemptSpec(key, "r", 12, prompt_ids=prompt, sampling=GREEDY))
    driver.plan(*range(len(prompts)), prefill_budget_tokens=budget)
    driver.until_ended(*range(len(prompts)))
    for key, prompt in enumerate(prompts):
        assert driver.output(key) == reference.answer(prompt, 12, stop_at_end=False)
    for report in driver.reports:
        assert sum(call.tokens for call in report.prefill_calls) <= max(budget, 64)
        for call in report.prefill_calls:
            assert call.context_tokens % 64 == 0
            assert call.tokens <= 64


phases = st.lists(
    st.tuples(
        st.sampled_from(["run", "run", "evict", "replay", "transfer", "two_phase", "pause"]),
        st.integers(0, 2**32),
        st.integers(1, 16),
    ),
    min_size=1,
    max_size=8,
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    schedule=phases,
    count=st.integers(1, 16),
    slots=st.sampled_from([3, 16]),
    reuse=st.sampled_from([PrefixReuse.NONE, PrefixReuse.ALIGNED]),
)
def test_any_schedule_gives_the_same_answer(start, reference, prompts, schedule, count, slots, reuse) -> None:
    """Random phases on two engines; credits end each phase, so a schedule is reproducible."""
    drivers = [start(max_batch=slots, max_resident=slots, prefix_reuse=reuse) for _ in range(2)]
    keys = itertools.count(1)
    rng = random.Random(count)
    requests = [Request(prompt, rng.randint(4, 60)) for prompt in prompts[:count]]
    for request in requests:
        launch(request, drivers[0], next(keys), [])
    for action, seed, batch in schedule:
        # A seeded generator, not Hypothesis's: how often it is asked depends on which attempts have ended by then.
        rng = random.Random(seed)
        chosen = rng.sample(requests, rng.randint(1, len(requests)))
        if action == "run":
            run_phase(chosen, rng, batch)
            continue
        for request in chosen:
            if request.key in request.driver.ended:
                continue
            if action == "evict":
                request.driver.plan(evict=(request.key,))
                request.driver.until(lambda request=request: not has_kv(request.driver, request.key))
            elif action == "pause":
                request.driver.engine.clear_plan()
            else:
                other = drivers[1] if request.driver is drivers[0] else drivers[0]
                move(request, other, next(keys), action, rng)
    for driver in drivers:
        here = [request.key for request in requests if request.driver is driver]
        driver.plan(*here, max_batch=7)
        driver.until_ended(*here)
    for request in requests:
        assert request.collect() == reference.answer(request.prompt, request.tokens, stop_at_end=False)
        assert request.driver.ended[request.key].reason is EndReason.LENGTH
    for driver in drivers:
        driver.until(lambda driver=driver: all(row.ended for row in driver.engine.live_table()))
        assert driver.engine.counters["imports_refused"] == 0
        driver.engine.close()


def launch(
    request: Request, driver: Any, key: int, forced: list[int], state: bytes | None = None, **rest: Any
) -> None:
    request.key, request.driver, request.have = key, driver, forced
    driver.engine.add(request.spec(key, forced, **rest), state)
    driver.until(lambda: key in driver.accepted)


def run_phase(chosen: list[Request], rng: random.Random, batch: int) -> None:
    """Let each chosen request run up to a random index, in a random order."""
    for driver in {id(request.driver): request.driver for request in chosen}.values():
        here = [request for request in chosen if request.driver is driver]
        goals = [len(request.collect()) + rng.randint(1, 25) for request in here]
        driver.plan(
            *(request.key for request in here),
            limits=tuple(goals),
            max_batch=batch,
            prefill_budget_tokens=rng.choice([0, 64, 130]),
        )
        for request, goal in zip(here, goals, strict=True):
            driver.until_count(request.key, goal - len(request.have))


def move(request: Request, other: Any, key: int, how: str, rng: random.Random) -> None:
    """Go on elsewhere: by exact replay from a random index, by KV, or by KV in two phases."""
    source, old_key, old_have = request.driver, request.key, request.have
    out = request.collect()
    state = None if how == "replay" else pulled(source, old_key, other)
    if state is None:
        source.engine.cancel(old_key)
        launch(request, other, key, out[: rng.randint(0, len(out))])
        return
    known = out[: rng.randint(0, len(out))]
    launch(request, other, key, known, state, await_more_forced=how == "two_phase")
    if how == "two_phase":
        other.plan(key)
        source.plan(old_key, limits=(len(out) + 5,))
        source.until_count(old_key, len(out) - len(old_have) + 5)
        rest = old_have + source.output(old_key)
        other.engine.extend_forced(key, len(known), np.array(rest[len(known) :], np.int32), final=True)
        request.have = rest
    source.engine.cancel(old_key)
    source.until_ended(old_key)


def pulled(source: Any, key: int, other: Any) -> bytes | None:
    """KV bytes of an attempt, or None if it has lost its slot by then, as a landing attempt may take it any time."""
    try:
        ticket = source.engine.issue_ticket(key)
        return source.engine.export_state(ticket.token, requirements_of(other.engine)).data
    except EngineError as error:
        if error.reason != "NO_STATE":
            raise
        return None


def has_kv(driver: Any, key: int) -> bool:
    return any(
        row.spec.attempt_key == key and row.kv_tokens > 0 and not row.ended
        for row in driver.engine.live_table()
    )


def test_answers_survive_plans_that_change_all_the_time(start, reference, prompts) -> None:
    """Free running: random orders and batches at random moments, more attempts than slots, evictions."""
    driver = start(max_batch=6, max_resident=12)
    rng = random.Random(3)
    for key, prompt in enumerate(prompts):
        driver.engine.add(AttemptSpec(key, "r", 120, prompt_ids=prompt, sampling=GREEDY))
    live = list(range(len(prompts)))
    while live:
        order = rng.sample(live, rng.randint(1, len(live)))
        evict = (rng.choice(live),) if rng.random() < 0.1 else ()
        driver.plan(*order, evict=evict, max_batch=rng.randint(1, 6))
        enough = len(driver.reports) + rng.randint(1, 30)
        driver.until(
            lambda order=order, enough=enough: (
                len(driver.reports) >= enough or driver.ended.keys() >= {*order}
            )
        )
        live = [key for key in live if key not in driver.ended]
    for key, prompt in enumerate(prompts):
        assert driver.output(key) == reference.answer(prompt, 120, stop_at_end=False)
    assert driver.engine.counters["slot_moves"] > 0
    assert driver.engine.counters["evictions"] > 0


@pytest.mark.parametrize("replay", [ReplayMode.EXACT, ReplayMode.FAST])
def test_replay_publishes_only_what_is_new(start, reference, prompts, replay) -> None:
    driver = start()
    whole = reference.answer(prompts[9], 40, stop_at_end=False)
    driver.run(
        AttemptSpec(
            1,
            "r",
            40,
            prompt_ids=prompts[9],
            forced_ids=np.array(whole[:25], np.int32),
            replay=replay,
            sampling=GREEDY,
        )
    )
    assert min(driver.ids[1]) == 25
    assert len(driver.output(1)) == 15
    assert driver.ended[1].output_tokens == 40
    calls = [call.tokens for report in driver.reports for call in report.prefill_calls]
    decodes = sum(report.decode_batch for report in driver.reports)
    if replay is ReplayMode.EXACT:
        assert driver.output(1) == whole[25:]
        assert (sum(calls), decodes) == (200, 39)
    else:
        assert (sum(calls), decodes) == (225, 14)


def test_prefix_reuse_saves_whole_chunks_and_no_answer(start, reference, prompts) -> None:
    """From a live attempt, from the cache after its end, and never across salts."""
    driver = start()
    first = prompts[9]
    rest = [np.concatenate([first[:150], prompts[n]]) for n in (4, 5, 6)]
    driver.engine.add(AttemptSpec(1, "r", 30, prompt_ids=first, sampling=GREEDY))
    driver.plan(1, limits=(5,))
    driver.until_count(1, 5)
    driver.engine.add(AttemptSpec(2, "r", 30, prompt_ids=rest[0], sampling=GREEDY))
    driver.plan(2, 1)
    driver.until_ended(1, 2)
    driver.run(AttemptSpec(3, "r", 30, prompt_ids=rest[1], sampling=GREEDY))
    driver.run(AttemptSpec(4, "r", 30, prompt_ids=rest[2], sampling=GREEDY, cache_salt="other"))
    assert [driver.accepted[key].cached_tokens for key in (1, 2, 3, 4)] == [0, 128, 128, 0]
    assert driver.engine.counters["prefix_tokens_reused"] == 256
    for key, prompt in enumerate([first, *rest], start=1):
        assert driver.output(key) == reference.answer(prompt, 30, stop_at_end=False)
    assert driver.reports[-1].kv.used_tokens == 0
    assert driver.reports[-1].kv.cached_tokens > 0


def test_fast_prefix_reuse_takes_any_common_prefix(start, prompts) -> None:
    driver = start(prefix_reuse=PrefixReuse.FAST)
    driver.run(AttemptSpec(1, "r", 5, prompt_ids=prompts[9], sampling=GREEDY))
    driver.run(
        AttemptSpec(2, "r", 5, prompt_ids=np.concatenate([prompts[9][:150], prompts[4]]), sampling=GREEDY)
    )
    assert driver.accepted[2].cached_tokens == 150
    assert len(driver.output(2)) == 5

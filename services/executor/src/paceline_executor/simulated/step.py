"""What one simulated step works on, how long that takes, and what comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from paceline_core.engines.profile import Profile
from paceline_executor.contract import PrefillCall, TokenColumns
from paceline_executor.simulated.answer import RingAnswer
from paceline_executor.simulated.attempt import Attempt
from paceline_executor.simulated.language import RING_MASK, Language
from paceline_executor.simulated.memory import KvMemory

NO_TOKENS = TokenColumns(
    np.empty(0, np.uint64), np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.int32),
    np.empty(0, np.uint32), b"",
)  # fmt: skip


@dataclass(slots=True)
class Step:
    """Work chosen at a step boundary; carried out when its time is over."""

    plan_id: int
    prefills: list[tuple[Attempt, int, PrefillCall]] = field(default_factory=list)
    """Attempt, position it is prefilled to, the call."""
    decodes: list[Attempt] = field(default_factory=list)
    decode_context_tokens: int = 0
    decode_ms: float = 0.0
    total_ms: float = 0.0

    @property
    def attempts(self) -> list[Attempt]:
        """Everybody in the run set."""
        return [*(attempt for attempt, _, _ in self.prefills), *self.decodes]


def choose(
    order: Sequence[Attempt],
    *,
    plan_id: int,
    max_batch: int,
    prefill_budget_tokens: int,
    chunk_tokens: int,
    memory: KvMemory,
    profile: Profile,
    previous: frozenset[int],
) -> Step | None:
    """The next step: the first `max_batch` attempts of the order that can run; None when nobody can.

    `previous` are the keys of the last run set: a change costs what the profile says.
    """
    memory.begin_step(plan_id, order)
    run_set: list[Attempt] = []
    for attempt in order:
        if len(run_set) == max_batch:
            break
        if attempt.runnable(chunk_tokens):
            run_set.append(attempt)
    step = Step(plan_id)
    reserved = taken = 0
    for attempt in run_set:
        if attempt.prefilling and taken and taken >= prefill_budget_tokens:
            continue
        # Room may have been made at the cost of this attempt's own KV: what is due is read after it is admitted.
        if not memory.admit(attempt):
            continue
        if not attempt.runnable(chunk_tokens):
            memory.complete.append(attempt)
            continue
        if attempt.prefilling:
            end = attempt.prefill_end(prefill_budget_tokens - taken, chunk_tokens)
            tokens = end - attempt.kv_tokens
            over_budget = taken > 0 and taken + tokens > prefill_budget_tokens
            if tokens <= 0 or over_budget or not memory.make_room(attempt, tokens, reserved):
                continue
            ms = profile.prefill_ms(tokens, attempt.kv_tokens)
            step.prefills.append((attempt, end, PrefillCall(tokens, attempt.kv_tokens, ms)))
            taken += tokens
            reserved += tokens
        elif memory.make_room(attempt, 1, reserved):
            step.decodes.append(attempt)
            reserved += 1
    if not step.prefills and not step.decodes:
        return None
    if step.decodes:
        step.decode_context_tokens = sum(attempt.kv_tokens + 1 for attempt in step.decodes)
        step.decode_ms = profile.decode_ms(len(step.decodes), step.decode_context_tokens)
    step.total_ms = step.decode_ms + sum(call.ms for _, _, call in step.prefills)
    if previous and previous != {attempt.key for attempt in step.attempts}:
        step.total_ms += profile.run_set_change_cost_ms
    return step


def carry_out(step: Step) -> tuple[list[Attempt], list[Attempt]]:
    """Move every attempt of the step on that still lives: (those with a new token, those with new KV only)."""
    made: list[Attempt] = []
    advanced: list[Attempt] = []
    moves = [
        *((attempt, end) for attempt, end, _ in step.prefills),
        *((a, a.kv_tokens + 1) for a in step.decodes),
    ]
    for attempt, end in moves:
        if attempt.ended is not None or not attempt.resident:
            continue
        attempt.kv_tokens = end
        if end == attempt.known_tokens and attempt.has_credit:
            attempt.answer.step()
            made.append(attempt)
        else:
            advanced.append(attempt)
    return made, advanced


def pack(rows: Sequence[tuple[Attempt, int]]) -> TokenColumns:
    """Columns of every (attempt, first index) row, each to the attempt's newest token; empty rows are left out."""
    rows = [(attempt, first) for attempt, first in rows if attempt.answer.count > first]
    if not rows:
        return NO_TOKENS
    slices = [attempt.answer.slice(first) for attempt, first in rows]
    return TokenColumns(
        np.array([attempt.key for attempt, _ in rows], np.uint64),
        np.array([first for _, first in rows], np.uint32),
        np.array([len(ids) for ids, _, _ in slices], np.uint32),
        np.concatenate([ids for ids, _, _ in slices]),
        np.concatenate([lengths for _, lengths, _ in slices]),
        b"".join([text for _, _, text in slices]),
    )


class Cohort:
    """A run set that only decodes, for as many steps as nobody in it can end, run out of credit or fill the memory.

    Its steps are gathers in arrays; the attempts themselves are brought up to date by `settle`.
    """

    def __init__(
        self, attempts: Sequence[Attempt], steps: int, language: Language, context_tokens: int
    ) -> None:
        answers = [attempt.answer for attempt in attempts]
        self.attempts = attempts
        self.steps_left = steps
        self.context_tokens = context_tokens
        """Sum of contexts that the next step decodes."""
        self._unsettled = 0
        self._language = language
        self._keys: NDArray[np.uint64] = np.array([attempt.key for attempt in attempts], np.uint64)
        self._firsts: NDArray[np.uint32] = np.array([answer.count for answer in answers], np.uint32)
        self._places: NDArray[np.int64] = np.array(
            [answer.position for answer in answers if isinstance(answer, RingAnswer)], np.int64
        )
        self._ones: NDArray[np.uint32] = np.ones(len(attempts), np.uint32)

    def step(self) -> TokenColumns:
        """The next token of everybody."""
        language, places = self._language, self._places
        texts = language.ring_text
        columns = TokenColumns(
            self._keys,
            self._firsts,
            self._ones,
            language.ring_ids[places],
            language.ring_lengths[places],
            b"".join([texts[place] for place in places.tolist()]),
        )
        self._firsts = self._firsts + self._ones
        self._places = (places + 1) & RING_MASK
        self._unsettled += 1
        self.steps_left -= 1
        self.context_tokens += len(self.attempts)
        return columns

    def settle(self) -> None:
        """Write the steps done into the attempts."""
        done, self._unsettled = self._unsettled, 0
        if done:
            for attempt in self.attempts:
                if attempt.ended is None:
                    attempt.answer.count += done  # type: ignore[misc]
                    attempt.kv_tokens += done
                    attempt.published = attempt.answer.count


def cohort_of(step: Step, memory: KvMemory, language: Language) -> Cohort | None:
    """The step as a cohort; None if anybody in it prefills, replays, spells, or is about to end."""
    if step.prefills:
        return None
    steps = (memory.capacity_tokens - memory.used_tokens) // len(step.decodes)
    for attempt in step.decodes:
        answer = attempt.answer
        if (
            not isinstance(answer, RingAnswer)
            or attempt.kv_tokens + 1 != attempt.known_tokens
            or attempt.awaiting
        ):
            return None
        steps = min(steps, answer.last_index - answer.count)
        if attempt.token_limit:
            steps = min(steps, attempt.token_limit - answer.count)
    if steps < 2:
        return None
    return Cohort(step.decodes, steps, language, step.decode_context_tokens)

"""Objectives as multiples of what an idle stack needs."""

from dataclasses import dataclass

import numpy as np

from paceline_core.slo import Slo, SloClass
from paceline_lab.prompts.model import Library, Prompt, TaskPrompt


@dataclass(frozen=True, slots=True)
class IdleTimes:
    """What a call needs on an idle stack: TTFT = ttft_base_ms + prompt tokens * ttft_per_token_ms, then tbt_ms each.

    `tokens_per_char` estimates prompt tokens from text.
    """

    ttft_base_ms: float
    ttft_per_token_ms: float
    tbt_ms: float
    tokens_per_char: float

    def ttft_ms(self, prompt_tokens: float) -> float:
        """Time to first token of a prompt, milliseconds."""
        return self.ttft_base_ms + prompt_tokens * self.ttft_per_token_ms

    def call_ms(self, prompt_tokens: float, output_tokens: float) -> float:
        """Time to last token, milliseconds."""
        return self.ttft_ms(prompt_tokens) + max(0.0, output_tokens - 1) * self.tbt_ms


@dataclass(frozen=True, slots=True)
class Multiples:
    """Budget over idle time, for a typical call of each class."""

    ttft: float = 5.0
    tbt: float = 5.0
    deadline: float = 5.0
    task_stage: float = 5.0


@dataclass(frozen=True, slots=True)
class Objectives:
    """The same objective for every call of a class: a client does not know its answer's length either.

    `task_stage_ms` times the number of stages is the budget of a task.
    """

    ttft_ms: float
    tbt_ms: float
    deadline_ms: float
    task_stage_ms: float

    def slo(self, slo_class: SloClass, work: Prompt | TaskPrompt, task_id: str) -> Slo:
        """The objective of one job."""
        if slo_class is SloClass.LATENCY:
            return Slo(slo_class, ttft_ms=self.ttft_ms, tbt_ms=self.tbt_ms)
        if slo_class is SloClass.DEADLINE:
            return Slo(slo_class, e2e_ms=self.deadline_ms)
        if isinstance(work, TaskPrompt):
            return Slo(SloClass.TASK, e2e_ms=self.task_stage_ms * work.stages, task_id=task_id)
        return Slo(SloClass.BEST_EFFORT)

    @property
    def longest_ms(self) -> float:
        """The longest budget of a single call or of a stage."""
        return max(self.deadline_ms, self.task_stage_ms, self.ttft_ms)


def objectives_from(idle: IdleTimes, multiples: Multiples, library: Library) -> Objectives:
    """Multiples of the idle time of each class's median call: median prompt, and the median limit on its answer."""
    latency = library.of_class(SloClass.LATENCY)
    deadline = library.of_class(SloClass.DEADLINE)
    calls = [call for task in library.tasks for call in task.calls]

    def tokens(texts: list[str]) -> float:
        return float(np.median([len(text) for text in texts])) * idle.tokens_per_char

    deadline_idle = idle.call_ms(
        tokens([prompt.text for prompt in deadline]),
        float(np.median([prompt.max_tokens for prompt in deadline])),
    )
    # A stage's prompt holds earlier answers in the place of their names; the limit on those is the better guess.
    stage_idle = idle.call_ms(
        tokens([call.template for call in calls]) + float(np.median([call.max_tokens for call in calls])),
        float(np.median([call.max_tokens for call in calls])),
    )
    return Objectives(
        ttft_ms=multiples.ttft * idle.ttft_ms(tokens([prompt.text for prompt in latency])),
        tbt_ms=multiples.tbt * idle.tbt_ms,
        deadline_ms=multiples.deadline * deadline_idle,
        task_stage_ms=multiples.task_stage * stage_idle,
    )

"""What a prediction costs in process, from the question's text to the message, and what refinement costs a caller."""

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import K, cdf_from_probabilities
from paceline_core.survival import LengthTable, Rows
from paceline_lab.prompts.library import load_library
from paceline_predictor import wire
from paceline_predictor.length_file import LengthFile
from paceline_predictor.length_model import FileLengths
from paceline_predictor.model import LengthQuestion, Outcome

BATCH = 64
_WARM_OUTCOMES = 300
_LONG_CHARS = 4096


@dataclass(frozen=True, slots=True)
class PredictorPlan:
    """How much to measure. Rounds are timed one by one."""

    seed: int = 1
    single_rounds: int = 3000
    batch_rounds: int = 200
    refine_rounds: int = 400
    rate_per_s: float = 1000.0
    """Single questions sent over gRPC, open loop."""
    open_loop_s: float = 8.0
    batched_s: float = 5.0
    batched_calls: int = 3
    """Calls of 64 questions under way at once."""
    warmup_s: float = 2.0


def bench_questions(seed: int, count: int) -> list[LengthQuestion]:
    """Questions with the prompts of the library, each made a little different, in random order."""
    random = np.random.default_rng(seed)
    prompts = load_library().prompts
    out = []
    for number, pick in enumerate(random.integers(0, len(prompts), count)):
        prompt = prompts[pick]
        text = f"({number}) " + "\n".join(message.content for message in prompt.messages)
        out.append(
            LengthQuestion(
                model=f"model-{number % 4}",
                app=str(prompt.family),
                prompt_head=text[: wire.MAX_PROMPT_CHARS],
                prompt_tail=text[-wire.MAX_PROMPT_CHARS :] if len(text) > wire.MAX_PROMPT_CHARS else "",
                prompt_tokens=len(text) // 4,
                max_tokens=prompt.max_tokens,
                temperature=0.7,
                turn_index=len(prompt.messages),
            )
        )
    return out


def long_questions(questions: list[LengthQuestion]) -> list[LengthQuestion]:
    """The same with 4,096 characters of head and of tail each: the most that is read."""
    texts = [" ".join([question.prompt_head] * 60) for question in questions]
    return [
        LengthQuestion(
            model=question.model,
            app=question.app,
            prompt_head=text[:_LONG_CHARS],
            prompt_tail=text[100 : 100 + _LONG_CHARS],
            prompt_tokens=len(text) // 4,
            max_tokens=question.max_tokens,
        )
        for question, text in zip(questions, texts, strict=True)
    ]


async def measure_in_process(
    plan: PredictorPlan, length_model: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Times in milliseconds. `length_model` as in the predictor's configuration."""
    file = LengthFile(length_model)
    await file.load()
    if file.warning:
        say(file.warning)
    model = FileLengths(file)
    questions = bench_questions(plan.seed, 1024)
    _learn(model, questions, plan.seed)
    gc.collect()
    gc.freeze()  # as the service does

    def answer(asked: list[LengthQuestion]) -> None:
        bases = model.bases(asked)
        for _ in wire.estimates(asked, model.answers(asked, bases)):
            pass

    n = len(questions)
    single = _times(lambda i: answer(questions[i % n : i % n + 1]), plan.single_rounds)
    batch = _times(lambda i: answer(_window(questions, i)), plan.batch_rounds)
    long = long_questions(questions[:256])
    single_long = _times(lambda i: answer(long[i % 256 : i % 256 + 1]), plan.single_rounds // 4)
    batch_long = _times(lambda i: answer(_window(long, i)), plan.batch_rounds // 4)
    say(f"single {np.median(single):.3f} ms, batch of {BATCH} {np.median(batch):.3f} ms in process")
    return {
        **_figures("single", single),
        **_figures("batch64", batch),
        **_figures("single_8kb", single_long),
        **_figures("batch64_8kb", batch_long),
        **refinement(plan),
        "model_bytes": 0 if file.graph is None else file.graph.file_bytes,
        "model_kind": "histogram" if file.graph is None else file.graph.kind,
        "model_version": "" if file.graph is None else file.graph.version,
        "question_chars_p50": float(np.median([len(question.prompt_head) for question in questions])),
    }


def refinement(plan: PredictorPlan) -> dict[str, float]:
    """Conditioning live requests on one more token each, as their callers do: expected rest and chance to be in time
    (`refine`), and P90, for which each row is searched (`refine_quantile`)."""
    random = np.random.default_rng(plan.seed)
    out: dict[str, float] = {}
    for count, name in ((256, "refine_256"), (10_000, "refine_10k")):
        rows = np.arange(count)
        limits = np.full(count, 4096)
        table = LengthTable(count)
        table.put(rows, cdf_from_probabilities(random.dirichlet(np.full(K, 0.3), count)), limits)
        generated = random.integers(0, 400, count)
        for work, suffix in ((_refine, ""), (_quantile, "_quantile")):
            times_ms = _times(partial(work, table, rows, generated, limits), plan.refine_rounds)
            out |= _figures(name.replace("refine", f"refine{suffix}"), times_ms)
    return out


def _refine(table: LengthTable, rows: Rows, generated: Rows, limits: Rows, number: int) -> None:
    out = generated + number % 200
    table.remaining_mean(rows, out)
    table.p_within(rows, out, limits)


def _quantile(table: LengthTable, rows: Rows, generated: Rows, limits: Rows, number: int) -> None:
    table.quantile(rows, generated + number % 200, limits, 0.9)


def plan_dict(plan: PredictorPlan) -> dict[str, Any]:
    """For the report."""
    return asdict(plan)


def _learn(model: FileLengths, questions: list[LengthQuestion], seed: int) -> None:
    """As after some minutes of service: log-normal lengths for all pairs."""
    lengths = np.random.default_rng(seed).lognormal(5.2, 0.8, _WARM_OUTCOMES)
    outcomes = [
        Outcome(question, max(1, int(length)), False, None)
        for question, length in zip(questions, lengths, strict=False)
    ]
    model.learn(outcomes, model.bases([outcome.question for outcome in outcomes]))


def _window(questions: list[LengthQuestion], number: int) -> list[LengthQuestion]:
    begin = number * BATCH % (len(questions) - BATCH + 1)
    return questions[begin : begin + BATCH]


def _times(work: Callable[[int], None], rounds: int) -> NDArray[np.float64]:
    """Milliseconds of each round, after a tenth more that is not counted."""
    out = np.empty(rounds)
    for number in range(-max(1, rounds // 10), rounds):
        began = time.perf_counter()
        work(number % (1 << 30))
        if number >= 0:
            out[number] = (time.perf_counter() - began) * 1000
    return out


def _figures(name: str, times_ms: NDArray[np.float64]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(times_ms, (50, 90, 99))
    return {
        f"{name}_ms_p50": round(float(p50), 4),
        f"{name}_ms_p90": round(float(p90), 4),
        f"{name}_ms_p99": round(float(p99), 4),
    }

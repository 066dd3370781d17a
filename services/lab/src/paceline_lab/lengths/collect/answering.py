"""Many prompts through one engine in this process: a full batch at all times, answers as they end."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from paceline_executor.contract import (
    AttemptEnded,
    AttemptSpec,
    EndReason,
    Engine,
    Ids,
    Plan,
    Sampling,
    StepReport,
    TokenColumns,
)
from paceline_lab.lengths.collect.draw import Draw

_SILENCE_S = 120.0


class EngineStopped(RuntimeError):
    """The engine failed, or said nothing for too long while it had work."""


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt to be answered."""

    draw: Draw
    prompt_ids: Ids
    """Rendered with the chat template, then tokenised."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a job."""

    job: Job
    text: str
    output_tokens: int
    censored: bool
    """Cut at the draw's `max_tokens`."""


@dataclass(slots=True)
class _Running:
    job: Job
    text: bytearray = field(default_factory=bytearray)


class Answering:
    """Drives one engine that nobody else uses."""

    def __init__(self, engine: Engine, *, batch: int) -> None:
        self._engine = engine
        self._batch = batch
        self._running: dict[int, _Running] = {}
        self._last_key = 0
        self._last_plan = 0
        self.tokens = 0
        """Output tokens so far, unfinished answers included."""

    def answers(self, jobs: Iterable[Job]) -> Iterator[Answer | None]:
        """Answers in the order in which they end; None about once a second, so that a caller can look at its clock.

        The next job is taken when there is room for it. Raises EngineStopped.
        """
        source = iter(jobs)
        self._fill(source)
        waited_s = 0.0
        while self._running:
            if not self._engine.events.wait(1.0):
                waited_s += 1.0
                if waited_s >= _SILENCE_S or not self._engine.alive:
                    raise EngineStopped(f"the engine said nothing for {waited_s:.0f} s")
                yield None
                continue
            waited_s = 0.0
            ended = False
            for event in self._engine.events.drain():
                if isinstance(event, StepReport):
                    self._take(event.tokens)
                elif isinstance(event, AttemptEnded):
                    ended = True
                    yield self._ended(event)
            if ended:
                self._fill(source)
            else:
                yield None

    def _fill(self, source: Iterator[Job]) -> None:
        while len(self._running) < self._batch and (job := next(source, None)) is not None:
            self._last_key += 1
            self._running[self._last_key] = _Running(job)
            self._engine.add(
                AttemptSpec(
                    self._last_key,
                    f"collect-{self._last_key}",
                    job.draw.max_tokens,
                    prompt_ids=job.prompt_ids,
                    sampling=Sampling(temperature=job.draw.temperature, seed=job.draw.seed),
                )
            )
        self._last_plan += 1
        self._engine.set_plan(Plan(self._last_plan, tuple(self._running)))

    def _take(self, columns: TokenColumns) -> None:
        token = text = 0
        for key, count in zip(columns.attempt_keys.tolist(), columns.counts.tolist(), strict=True):
            size = int(columns.text_lengths[token : token + count].sum())
            if (running := self._running.get(key)) is not None:
                running.text += columns.text[text : text + size]
                self.tokens += count
            token, text = token + count, text + size

    def _ended(self, event: AttemptEnded) -> Answer:
        if event.reason not in (EndReason.STOP, EndReason.STOP_STRING, EndReason.LENGTH):
            raise EngineStopped(f"the engine ended an answer with {event.reason.value}: {event.message}")
        running = self._running.pop(event.attempt_key)
        self._engine.release(event.attempt_key)
        return Answer(
            running.job,
            running.text.decode("utf-8", "replace"),
            event.output_tokens,
            event.reason is EndReason.LENGTH,
        )

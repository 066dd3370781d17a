"""The collection: prompts in, an engine started, a file that grows."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline.common.v1 import engine_pb2
from paceline.router.v1 import generation_pb2
from paceline_executor.app import build_engine
from paceline_executor.config import ExecutorConfig
from paceline_executor.contract import Engine
from paceline_lab.lengths.collect.answering import Answer, Answering, Job
from paceline_lab.lengths.collect.draw import Draw, draws
from paceline_lab.lengths.collect.outputs import Output, OutputFile
from paceline_lab.lengths.collect.prompts import load_prompts
from paceline_router.chat import ChatTemplates

_CHUNK_TOKENS = 64


class NothingToCollectError(RuntimeError):
    """No prompt set was found."""


@dataclass(frozen=True)
class CollectSpec:
    """What to collect."""

    data: Path
    out: Path
    sets: tuple[str, ...] = ()
    """Names of prompt sets; none: all."""
    limit: int = 0
    """Outputs in the file at the end, those that are there included; 0: one for each prompt."""
    max_tokens: tuple[int, ...] = (128, 128, 256, 512)
    """Limits, one drawn for each prompt. A small model often talks on until it is stopped: cutting most answers early
    leaves time for more prompts, and the few longer ones still tell about the tail."""
    max_prompt_tokens: int = 700
    """Longer prompts, chat template included, are left out."""
    batch: int = 8
    threads: int = 1
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    seed: int = 1
    max_seconds: float = 0.0
    """0: until all is done. What is being answered when the time is over is not kept."""
    model_path: str = ""
    """As `executor.model_path`."""


@dataclass(frozen=True)
class Progress:
    """How far a collection is."""

    done: int
    """Outputs in the file."""
    total: int
    """Outputs in the file at the end, as far as is known: prompts that turn out to be too long are left out."""
    collected: int
    """Outputs of this run."""
    censored: int
    """Those of them that were cut."""
    too_long: int
    tokens: int
    """Output tokens of this run, of unfinished answers too."""
    seconds: float
    """Of this run, since the engine was up."""


def collect(
    spec: CollectSpec, on_progress: Callable[[Progress], None], say: Callable[[str], None]
) -> Progress:
    """Collect until all is done or the time is over. Blocks; an interrupt loses only what is being answered.

    Raises NothingToCollectError without prompts, OutputsBusyError when another process writes the file,
    EngineStopped.
    """
    found = load_prompts(spec.data, spec.sets)
    for missing in found.missing:
        say(f"not there: {missing}")
    if not found.prompts:
        raise NothingToCollectError(
            f"no prompt set under {spec.data}: name the folder that holds them with --data"
        )
    order = draws(found.prompts, spec.temperatures, spec.max_tokens, spec.seed)
    with OutputFile(spec.out) as file:
        todo = [d for d in order if (d.prompt.prompt_id, d.temperature, d.seed) not in file.known]
        before = len(file.known)
        target = min(spec.limit, before + len(todo)) if spec.limit else before + len(todo)
        say(f"{before} outputs in {spec.out}, {len(todo)} prompts left of {len(order)}")
        if target <= before:
            return Progress(before, target, 0, 0, 0, 0, 0.0)
        engine = asyncio.run(build_engine(_engine_config(spec)))
        try:
            return _Collection(spec, file, engine, todo, target).run(on_progress)
        finally:
            engine.close()


class _Collection:
    def __init__(
        self, spec: CollectSpec, file: OutputFile, engine: Engine, todo: Sequence[Draw], target: int
    ) -> None:
        self._spec = spec
        self._file = file
        self._engine = engine
        self._todo = todo
        self._target = target
        self._too_long = self._collected = self._censored = 0

    def run(self, on_progress: Callable[[Progress], None]) -> Progress:
        spec = self._spec
        answering = Answering(self._engine, batch=spec.batch)
        began = time.monotonic()
        # As many as are wanted are begun; taking whatever ends first of more would favour short answers.
        jobs = itertools.islice(self._jobs(), self._target - len(self._file.known))
        progress = self._progress(answering, 0.0)
        for answer in answering.answers(jobs):
            if answer is not None:
                self._keep(answer)
            seconds = time.monotonic() - began
            if answer is not None or seconds - progress.seconds >= 1.0:
                progress = self._progress(answering, seconds)
                on_progress(progress)
            if spec.max_seconds and seconds >= spec.max_seconds:
                break
        return self._progress(answering, time.monotonic() - began)

    def _jobs(self) -> Iterator[Job]:
        capabilities = self._engine.capabilities
        template = engine_pb2.EngineCapabilities(
            chat_template=capabilities.chat_template,
            bos_token=capabilities.bos_token,
            eos_token=capabilities.eos_token,
        )
        templates = ChatTemplates()
        for draw in self._todo:
            message = generation_pb2.Message(role="user", content=draw.prompt.text)
            text = templates.render(template, generation_pb2.Messages(messages=[message]))
            [ids] = self._engine.tokenize([text])
            if len(ids) > self._spec.max_prompt_tokens:
                self._too_long += 1
                continue
            yield Job(draw, ids)

    def _keep(self, answer: Answer) -> None:
        draw = answer.job.draw
        self._collected += 1
        self._censored += answer.censored
        self._file.append(
            Output(
                model=self._engine.capabilities.model,
                prompt_id=draw.prompt.prompt_id,
                source=draw.prompt.source,
                temperature=draw.temperature,
                seed=draw.seed,
                max_tokens=draw.max_tokens,
                prompt_tokens=len(answer.job.prompt_ids),
                output_tokens=answer.output_tokens,
                censored=answer.censored,
                output=answer.text,
            )
        )

    def _progress(self, answering: Answering, seconds: float) -> Progress:
        return Progress(
            done=len(self._file.known),
            total=self._target,
            collected=self._collected,
            censored=self._censored,
            too_long=self._too_long,
            tokens=answering.tokens,
            seconds=seconds,
        )


def _engine_config(spec: CollectSpec) -> ExecutorConfig:
    room = spec.max_prompt_tokens + max(spec.max_tokens)
    return ExecutorConfig(
        model_path=spec.model_path,
        max_batch=spec.batch,
        max_resident=spec.batch,
        context_tokens=-(-room // _CHUNK_TOKENS) * _CHUNK_TOKENS,
        prefill_chunk_tokens=_CHUNK_TOKENS,
        threads=spec.threads,
    )

"""A tiny random model on the real engine, a driver that reads its events, and a reference that knows no schedule."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from paceline_executor.contract import (
    AttemptAccepted,
    AttemptEnded,
    AttemptSpec,
    Event,
    Ids,
    Plan,
    Republished,
    Sampling,
    StepReport,
    TokenColumns,
)
from paceline_executor.llamacpp import LlamaCppConfig, LlamaCppEngine
from paceline_executor.llamacpp.context import Context, ContextShape
from paceline_executor.llamacpp.model import Model
from paceline_executor.llamacpp.sampling import SampleRow, sample
from paceline_executor.llamacpp.tiny import write_tiny_model

CONTEXT_TOKENS = 512
CHUNK_TOKENS = 64
PATIENCE_S = 300.0


class Driver:
    """Reads one engine's events and answers questions about them."""

    def __init__(self, engine: LlamaCppEngine) -> None:
        self.engine = engine
        self.accepted: dict[int, AttemptAccepted] = {}
        self.ended: dict[int, AttemptEnded] = {}
        self.ids: dict[int, dict[int, int]] = {}
        self.pieces: dict[int, dict[int, str]] = {}
        self.republished: list[Republished] = []
        self.reports: list[StepReport] = []
        self.order: list[Event] = []
        self._plan_id = 0

    def plan(
        self, *keys: int, limits: tuple[int, ...] = (), evict: tuple[int, ...] = (), **rest: int
    ) -> None:
        self._plan_id += 1
        self.engine.set_plan(Plan(self._plan_id, keys, limits, evict, **rest))

    def pump(self) -> None:
        for event in self.engine.events.drain():
            self.order.append(event)
            match event:
                case AttemptAccepted():
                    self.accepted[event.attempt_key] = event
                case AttemptEnded():
                    self.ended[event.attempt_key] = event
                case StepReport():
                    self.reports.append(event)
                    self._take(event.tokens, first_time=True)
                case Republished():
                    self.republished.append(event)
                    self._take(event.tokens, first_time=False)

    def _take(self, columns: TokenColumns, *, first_time: bool) -> None:
        token = text = 0
        for key, first, count in zip(
            columns.attempt_keys.tolist(),
            columns.first_indices.tolist(),
            columns.counts.tolist(),
            strict=True,
        ):
            ids = self.ids.setdefault(key, {})
            pieces = self.pieces.setdefault(key, {})
            for index in range(first, first + count):
                length = int(columns.text_lengths[token])
                piece = columns.text[text : text + length].decode()
                if first_time:
                    assert index not in ids, f"token {index} of {key} was put out twice"
                    assert not ids or index == max(ids) + 1, f"token {index} of {key} came out of order"
                elif index in ids:
                    assert (ids[index], pieces[index]) == (int(columns.token_ids[token]), piece)
                ids[index], pieces[index] = int(columns.token_ids[token]), piece
                token, text = token + 1, text + length
        assert token == len(columns.token_ids)
        assert text == len(columns.text)

    def until(self, done: Callable[[], bool]) -> None:
        """Pump events until `done`; fails after a generous time."""
        deadline = time.monotonic() + PATIENCE_S
        self.pump()
        while not done():
            assert time.monotonic() < deadline, (
                f"not in time: {self.engine.live_table()} {self.engine.counters}"
            )
            assert not self.engine.counters["fatal"], "the step loop failed"
            self.engine.events.wait(0.2)
            self.pump()

    def until_ended(self, *keys: int) -> None:
        self.until(lambda: all(key in self.ended for key in keys))

    def until_count(self, key: int, count: int) -> None:
        """Wait until `count` tokens of an attempt are out, or it has ended."""
        self.until(lambda: key in self.ended or len(self.ids.get(key, {})) >= count)

    def output(self, key: int) -> list[int]:
        ids = self.ids.get(key, {})
        return [ids[index] for index in sorted(ids)]

    def text(self, key: int) -> str:
        pieces = self.pieces.get(key, {})
        return "".join(pieces[index] for index in sorted(pieces))

    def run(self, *specs: AttemptSpec) -> None:
        """Add, plan in order, wait for all the ends."""
        for spec in specs:
            self.engine.add(spec)
        keys = tuple(spec.attempt_key for spec in specs)
        self.plan(*keys)
        self.until_ended(*keys)


class Reference:
    """Greedy answers by the shortest way: aligned prefill chunks, then one decode call per token, alone in slot 0."""

    def __init__(self, model_path: Path, context_tokens: int = CONTEXT_TOKENS) -> None:
        self.model = Model(model_path)
        self._context = Context(self.model, ContextShape(1, context_tokens, CHUNK_TOKENS))
        self._known: dict[bytes, list[int]] = {}

    def answer(self, prompt: Ids, tokens: int, *, stop_at_end: bool = True) -> list[int]:
        """The first `tokens` greedy tokens, up to an end token if `stop_at_end`."""
        key = prompt.tobytes()
        output = self._known.get(key, [])
        if len(output) < tokens:
            output = self._known[key] = self._compute(prompt, tokens)
        output = output[:tokens]
        if stop_at_end:
            for index, token in enumerate(output):
                if token in self.model.end_token_ids:
                    return output[: index + 1]
        return output

    def drawn(self, prompt: Ids, tokens: int, sampling: Sampling) -> list[int]:
        """The first `tokens` sampled tokens: the number of draw i is that of output index i."""
        output: list[int] = []
        for logits in self._logits(prompt, output):
            output.append(sample(logits, [SampleRow(sampling, len(output), prompt, list(output))])[0])
            if len(output) == tokens:
                break
        return output

    def _compute(self, prompt: Ids, tokens: int) -> list[int]:
        output: list[int] = []
        for logits in self._logits(prompt, output):
            output.append(int(logits[0].argmax()))
            if len(output) == tokens:
                break
        return output

    def _logits(self, prompt: Ids, output: list[int]) -> Iterator[NDArray[np.float32]]:
        """Logits of each next token; the caller appends what it takes to `output`."""
        self._context.truncate(0, 0)
        logits = np.empty((0, 0), np.float32)
        for start in range(0, len(prompt), CHUNK_TOKENS):
            chunk = prompt[start : start + CHUNK_TOKENS]
            last = start + len(chunk) == len(prompt)
            logits = self._context.prefill(0, chunk, start, wants_logits=last)
        yield logits
        slot, wanted = np.zeros(1, np.int32), np.ones(1, np.bool_)
        while True:
            token = np.array(output[-1:], np.int32)
            position = np.array([len(prompt) + len(output) - 1], np.int32)
            yield self._context.decode(slot, token, position, wanted)

    def close(self) -> None:
        self._context.close()
        self.model.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> Iterator[Reference]:
    made = Reference(tiny_model)
    yield made
    made.close()


@pytest.fixture
def start(tiny_model: Path) -> Iterator[Callable[..., Driver]]:
    """Starts engines on the tiny model with the settings given; closes them at the end and looks for a crash."""
    drivers: list[Driver] = []

    def make(**settings: object) -> Driver:
        base: dict[str, object] = {"model_path": tiny_model, "context_tokens": CONTEXT_TOKENS}
        driver = Driver(LlamaCppEngine(LlamaCppConfig(**{**base, **settings})))  # type: ignore[arg-type]
        drivers.append(driver)
        return driver

    yield make
    for driver in drivers:
        crashed = driver.engine.counters["fatal"]
        driver.engine.close()
        assert not crashed, "the step loop failed"


@pytest.fixture(scope="session")
def prompts() -> list[Ids]:
    """Random prompts of 1 to 200 tokens, on and beside chunk borders."""
    rng = np.random.default_rng(7)
    lengths = [1, 5, 63, 64, 65, 100, 127, 128, 129, 200, 17, 40, 150, 191, 192, 30]
    return [rng.integers(0, 256, length).astype(np.int32) for length in lengths]

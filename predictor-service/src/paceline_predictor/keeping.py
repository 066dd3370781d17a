"""Lets what was learned outlive the process, without ever holding up an answer."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from paceline_predictor.model import KeptState
from paceline_predictor.state_home import StateHome
from paceline_predictor.state_parts import packed, unpacked
from paceline_runtime.errors import PacelineError, Reason

_log = logging.getLogger(__name__)

MAX_EARLY_OUTCOMES = 10_000
"""Outcomes remembered while the saved state has not been loaded yet; they are learned again on top of it."""

Again = Callable[[], object]


class Keeper:
    """Loads the state of the learners at the start, saves it now and then and at the end. Use as `async with`.

    While its home is down, they serve and learn on; `warning` says so. Nothing is saved before the saved state
    has been loaded: what an earlier life learned must not be overwritten by a fresh start.
    """

    def __init__(
        self, learners: Mapping[str, KeptState], home: StateHome, *, interval_s: float, timeout_s: float
    ) -> None:
        """`learners` by the name of their part in the saved state."""
        self._learners = dict(learners)
        self._home = home
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._early: deque[tuple[str, int, Again]] = deque()
        self._early_outcomes = 0
        self._loaded = False
        self._unsaved = 0
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.warning = ""
        """What is wrong with keeping the state; empty: nothing."""

    async def __aenter__(self) -> Self:
        await self._load_or_warn()
        self._task = asyncio.create_task(self._run(), name="learned-state")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.save()
        await self._home.close()

    def learned(self, name: str, outcomes: int, again: Again) -> None:
        """Note that a part's learner took in so many outcomes; `again` has it learn them on top of a loaded state."""
        if outcomes < 1:
            return
        if not self._loaded:
            self._early.append((name, outcomes, again))
            self._early_outcomes += outcomes
            while self._early_outcomes > MAX_EARLY_OUTCOMES:
                self._early_outcomes -= self._early.popleft()[1]
        self._unsaved += outcomes

    async def save(self) -> bool:
        """Save what is new; False when that was not possible now."""
        if not self._loaded and not await self._load_or_warn():
            return False
        async with self._turn:
            if self._unsaved == 0:
                return True
            saving = self._unsaved
            encoders = {name: learner.snapshot() for name, learner in self._learners.items()}
            state = await asyncio.to_thread(_encoded, encoders)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._home.save(state)
            except (OSError, PacelineError) as error:
                self._warn(f"what was learned could not be saved to {self._home.name}: {error}")
                return False
            self._unsaved -= saving
            self._clear_warning()
            return True

    async def reload(self) -> None:
        """Go back to the saved state, if there is one; outcomes since then are forgotten.

        Raises UNAVAILABLE when it cannot be read now, STATE_INCOMPATIBLE when a part of it cannot be used; the learners
        go on as they were.
        """
        async with self._turn:
            try:
                state = await self._read()
            except (OSError, PacelineError) as error:
                raise PacelineError(
                    Reason.UNAVAILABLE, f"{self._home.name} cannot be read now: {error}"
                ) from None
            if state is None:
                return
            take_overs, problems = await asyncio.to_thread(self._decoded, state)
            if problems:
                raise PacelineError(Reason.STATE_INCOMPATIBLE, "; ".join(problems))
            for take_over in take_overs.values():
                take_over()
            self._mark_loaded()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.save()

    async def _load_or_warn(self) -> bool:
        """Take over the saved state, with what was learned in the meantime on top of it."""
        async with self._turn:
            try:
                state = await self._read()
            except (OSError, PacelineError) as error:
                self._warn(f"what was learned before could not be loaded from {self._home.name}: {error}")
                return False
            problems: list[str] = []
            if state is not None:
                take_overs, problems = await asyncio.to_thread(self._decoded, state)
                for take_over in take_overs.values():
                    take_over()
                for name, _, again in self._early:
                    if name in take_overs:
                        again()
            if problems:
                # They will be overwritten: a state that no version can read helps nobody.
                self._warn(
                    f"the state in {self._home.name} cannot be used, starting afresh: {'; '.join(problems)}"
                )
            else:
                self._clear_warning()
            self._mark_loaded()
            return True

    async def _read(self) -> bytes | None:
        async with asyncio.timeout(self._timeout_s):
            return await self._home.load()

    def _decoded(self, blob: bytes) -> tuple[dict[str, Callable[[], None]], list[str]]:
        """What takes over the parts that can be used, and what is wrong with the others."""
        try:
            parts = unpacked(blob)
        except ValueError as error:
            return {}, [str(error)]
        take_overs: dict[str, Callable[[], None]] = {}
        problems = []
        for name, learner in self._learners.items():
            if name in parts:
                try:
                    take_overs[name] = learner.decoded(parts[name])
                except ValueError as error:
                    problems.append(f"{name}: {error}")
        return take_overs, problems

    def _mark_loaded(self) -> None:
        self._loaded = True
        self._early.clear()
        self._early_outcomes = 0

    def _warn(self, text: str) -> None:
        if text != self.warning:
            _log.warning("learned state", extra={"problem": text})
        self.warning = text

    def _clear_warning(self) -> None:
        if self.warning:
            _log.info("learned state is kept again", extra={"state_home": self._home.name})
        self.warning = ""


def _encoded(encoders: Mapping[str, Callable[[], bytes]]) -> bytes:
    return packed({name: encode() for name, encode in encoders.items()})

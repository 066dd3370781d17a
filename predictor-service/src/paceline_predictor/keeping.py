"""Lets what a model learned outlive the process, without ever holding up an answer."""

import asyncio
import logging
from collections import deque
from types import TracebackType
from typing import Self

from paceline_predictor.model import KeptModel, Outcome
from paceline_predictor.state_home import StateHome
from paceline_runtime.errors import PacelineError, Reason

_log = logging.getLogger(__name__)

MAX_EARLY_OUTCOMES = 10_000
"""Outcomes remembered while the saved state has not been loaded yet; they are learned again on top of it."""


class Keeper:
    """Loads the state of a model at the start, saves it now and then and at the end. Use as `async with`.

    While its home is down, the model serves and learns on; `warning` says so. Nothing is saved before the saved state
    has been loaded: what an earlier life learned must not be overwritten by a fresh start.
    """

    def __init__(self, model: KeptModel, home: StateHome, *, interval_s: float, timeout_s: float) -> None:
        self._model = model
        self._home = home
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._early: deque[Outcome] = deque(maxlen=MAX_EARLY_OUTCOMES)
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

    def observe(self, outcome: Outcome) -> bool:
        """Let the model learn, and note that there is something to save."""
        if not self._model.observe(outcome):
            return False
        if not self._loaded:
            self._early.append(outcome)
        self._unsaved += 1
        return True

    async def save(self) -> bool:
        """Save what is new; False when that was not possible now."""
        if not self._loaded and not await self._load_or_warn():
            return False
        async with self._turn:
            if self._unsaved == 0:
                return True
            saving, encode = self._unsaved, self._model.snapshot()
            state = await asyncio.to_thread(encode)
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

        Raises UNAVAILABLE when it cannot be read now, STATE_INCOMPATIBLE when it cannot be used; the model goes on.
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
            try:
                take_over = await asyncio.to_thread(self._model.decoded, state)
            except ValueError as error:
                raise PacelineError(Reason.STATE_INCOMPATIBLE, str(error)) from None
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
            if state is not None:
                try:
                    take_over = await asyncio.to_thread(self._model.decoded, state)
                except ValueError as error:
                    # It will be overwritten: a state that no version can read helps nobody.
                    self._warn(f"the state in {self._home.name} cannot be used, starting afresh: {error}")
                else:
                    take_over()
                    for outcome in self._early:
                        self._model.observe(outcome)
                    self._clear_warning()
            else:
                self._clear_warning()
            self._mark_loaded()
            return True

    async def _read(self) -> bytes | None:
        async with asyncio.timeout(self._timeout_s):
            return await self._home.load()

    def _mark_loaded(self) -> None:
        self._loaded = True
        self._early.clear()

    def _warn(self, text: str) -> None:
        if text != self.warning:
            _log.warning("learned state", extra={"problem": text})
        self.warning = text

    def _clear_warning(self) -> None:
        if self.warning:
            _log.info("learned state is kept again", extra={"state_home": self._home.name})
        self.warning = ""

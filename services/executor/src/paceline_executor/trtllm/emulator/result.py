"""Results of the emulated client side: an async iterator over itself, whose token ids grow."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from paceline_executor.trtllm.emulator.parameters import SamplingParams
from paceline_executor.trtllm.emulator.request import Response

_FINISH = {"END_ID": "stop", "STOP_WORDS": "stop", "LENGTH": "length", "CANCELLED": "cancelled"}


class RequestError(RuntimeError):
    """A request failed while it ran."""


@dataclass(slots=True)
class CompletionOutput:
    """One sequence."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    """All so far."""
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class GenerationResult:
    """Of one request. Needs an event loop when it is made; without one it cannot be iterated."""

    def __init__(
        self,
        request_id: int,
        prompt_token_ids: list[int],
        sampling: SamplingParams,
        abort: Callable[[int], None],
    ) -> None:
        self._request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self.outputs = [CompletionOutput(0)]
        self.cached_tokens = 0
        self.metrics_dict: dict[str, float] = {}
        self._sampling = sampling
        self._abort = abort
        self._aborted = False
        self._done = False
        self._responses: deque[Response] = deque()
        self._arrived: asyncio.Event | None = None
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        self._arrived = asyncio.Event()

    @property
    def request_id(self) -> int:
        """The client side's id."""
        return self._request_id

    @property
    def finished(self) -> bool:
        """True when the last response was read."""
        return self._done

    def abort(self) -> None:
        """Ask for the end. It comes with an iteration, as a last item."""
        self._aborted = True
        self._abort(self._request_id)

    def aborted(self) -> bool:
        """True if it was asked for."""
        return self._aborted

    def put(self, response: Response) -> None:
        """From the executor; nothing bounds what collects for a slow reader."""
        self._responses.append(response)
        if self._arrived is not None:
            self._arrived.set()

    def __aiter__(self) -> "GenerationResult":
        return self

    async def __anext__(self) -> "GenerationResult":
        if self._done:
            raise StopAsyncIteration
        if self._arrived is None:
            raise RuntimeError("there was no event loop when this result was made")
        while not self._responses:
            self._arrived.clear()
            await self._arrived.wait()
        self._handle(self._responses.popleft())
        return self

    async def aresult(self) -> "GenerationResult":
        """Wait for the end."""
        async for _ in self:
            pass
        return self

    def _handle(self, response: Response) -> None:
        if response.error is not None:
            self._done = True
            raise RequestError(response.error)
        output = self.outputs[0]
        output.token_ids.extend(response.token_ids)
        self.cached_tokens = response.cached_tokens
        if response.finish_reason is None:
            return
        self._done = True
        output.finish_reason = _FINISH[response.finish_reason]
        if response.finish_reason == "STOP_WORDS":
            output.stop_reason = output.token_ids[-1]
            if not self._sampling.include_stop_str_in_output:
                # The stop token is taken back: the list gets shorter, in a new list.
                output.token_ids = output.token_ids[:-1]


RequestOutput = GenerationResult

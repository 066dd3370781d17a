"""Step one of a start: the model file, once, before every engine asks for it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from paceline_cli.errors_base import CommandError


async def ensure_model(executor: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Make sure that the file the engines will load is there; downloads the default model on first use.

    `say` gets a line per step. Raises CommandError.
    """
    if executor.get("backend", "llamacpp") != "llamacpp" or executor.get("model_path"):
        return
    # Heavy imports, and only needed when the default model is served.
    from paceline_executor.llamacpp.model_fetch import ModelFetchError, fetch_model

    loop = asyncio.get_running_loop()

    def relay(line: str) -> None:
        loop.call_soon_threadsafe(say, line)

    try:
        await asyncio.to_thread(fetch_model, relay)
    except ModelFetchError as error:
        raise CommandError(
            f"the model cannot be had: {error}. Without a network, try `paceline up --model tiny`"
        ) from None

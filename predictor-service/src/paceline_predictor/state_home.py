"""Where learned state lives: a file, the store, or nowhere."""

import asyncio
import os
from pathlib import Path
from typing import Protocol

from paceline_store import Store, StoreUnavailable


class StateHome(Protocol):
    """Keeps one blob. `load` and `save` raise OSError or PacelineError when they cannot for now."""

    @property
    def name(self) -> str:
        """For logs."""

    async def load(self) -> bytes | None:
        """The blob; None when there is none."""

    async def save(self, state: bytes) -> None:
        """Replace the blob, whole or not at all."""

    async def close(self) -> None:
        """Let go of what it holds open."""


class FileHome:
    """A file, replaced atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return str(self._path)

    async def load(self) -> bytes | None:
        return await asyncio.to_thread(self._read)

    async def save(self, state: bytes) -> None:
        await asyncio.to_thread(self._write, state)

    async def close(self) -> None:
        return

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, state: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(self._path.name + ".partial")
        with partial.open("wb") as file:
            file.write(state)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)


class StoreHome:
    """A row of the store, which is opened when first needed: the predictor starts without it, too."""

    def __init__(self, url: str, row_name: str) -> None:
        self._url = url
        self._row_name = row_name
        self._store: Store | None = None

    @property
    def name(self) -> str:
        return "the store" if self._store is None else self._store.name

    async def load(self) -> bytes | None:
        return await (await self._opened()).load_state(self._row_name)

    async def save(self, state: bytes) -> None:
        await (await self._opened()).save_state(self._row_name, state)

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()
            self._store = None

    async def _opened(self) -> Store:
        if self._store is None:
            try:
                self._store = await Store.open(self._url)
            except ValueError as error:
                raise StoreUnavailable(f"store.url: {error}") from None
        return self._store


class NoHome:
    """Keeps nothing."""

    name = "nowhere"

    async def load(self) -> bytes | None:
        return None

    async def save(self, state: bytes) -> None:
        return

    async def close(self) -> None:
        return

"""The file of collected outputs: one JSON line each, appended as answers end, read again to go on."""

import fcntl
import json
import lzma
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self


class OutputsBusyError(RuntimeError):
    """Another process appends to the file."""


@dataclass(frozen=True, slots=True)
class Output:
    """One real answer. The prompt is named by its id alone, so that the file holds nobody else's text."""

    model: str
    prompt_id: str
    source: str
    temperature: float
    seed: int
    max_tokens: int
    prompt_tokens: int
    """The chat template's tokens included."""
    output_tokens: int
    censored: bool
    """Cut at `max_tokens`: longer is all that is known."""
    output: str


def read_outputs(path: Path) -> Iterator[Output]:
    """Outputs in a file, plain or compressed (`.xz`), oldest first; a half-written last line is left out.

    Raises ValueError, with the number of the line, for a line that holds no output.
    """
    open_file = lzma.open if path.suffix == ".xz" else open
    with open_file(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            yield _parsed(line, path, number)


def _parsed(line: bytes, path: Path, number: int) -> Output:
    try:
        row: dict[str, Any] = json.loads(line)
        return Output(**{field.name: row[field.name] for field in fields(Output)})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}, line {number}: not a collected output ({error})") from error


class OutputFile:
    """Appends outputs to a file that it alone writes: `with OutputFile(path) as file`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes]
        self.known: set[tuple[str, float, int]] = set()
        """(prompt id, temperature, seed) of what is in the file."""

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab")
        try:
            self._lock()
            self._cut_half_line()
            self.known = {(o.prompt_id, o.temperature, o.seed) for o in read_outputs(self._path)}
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, output: Output) -> None:
        """Write an output and flush it: whatever ends the process afterwards, it is kept."""
        line = json.dumps(asdict(output), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self._file.write(line)
        self._file.flush()
        self.known.add((output.prompt_id, output.temperature, output.seed))

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputsBusyError(f"another process collects into {self._path}") from None

    def _cut_half_line(self) -> None:
        """A process that was killed while it wrote leaves a line without an end."""
        data = self._path.read_bytes()
        if data and not data.endswith(b"\n"):
            self._file.truncate(data.rfind(b"\n") + 1)

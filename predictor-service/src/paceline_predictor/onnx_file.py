"""Model files in ONNX: read within a bound, opened so that they cost one thread and no waiting in circles.

A damaged graph may not only fail but bring down, or never leave, the process that runs it. So a file is first opened
and run by a process of its own (`tried`); what ends that process cannot end the service.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

MAX_MODEL_BYTES = 64 << 20
"""Larger files are refused unread."""
TRIAL_TIMEOUT_S = 30.0
_QUIET = 4
_VERDICT_CHARS = 500

Float32Array = NDArray[np.float32]


class ModelFileError(ValueError):
    """A model file that cannot be used; the text says why."""


def read_model_file(path: Path, max_bytes: int = MAX_MODEL_BYTES) -> bytes:
    """The bytes of a file. Raises ModelFileError when it is absent, unreadable, empty or too large."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not content:
        raise ModelFileError(f"{path}: the file is empty")
    if len(content) > max_bytes:
        raise ModelFileError(f"{path}: larger than {max_bytes} bytes")
    return content


def open_session(content: bytes) -> onnxruntime.InferenceSession:
    """A session with one thread. Raises ModelFileError when the bytes are no graph that the runtime knows."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = _QUIET  # what is wrong comes as an exception
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - the runtime's errors share no base class
        raise ModelFileError(f"no ONNX graph that can be run: {_first_line(error)}") from None


def run_session(
    session: onnxruntime.InferenceSession, outputs: list[str], inputs: dict[str, Any]
) -> list[Any]:
    """Outputs by name. Raises ModelFileError when the graph fails."""
    try:
        found: list[Any] = session.run(outputs, inputs)
    except Exception as error:  # noqa: BLE001 - the runtime's errors share no base class
        raise ModelFileError(f"the graph fails: {_first_line(error)}") from None
    return found


def tried(module: str, content: bytes, timeout_s: float = TRIAL_TIMEOUT_S) -> None:
    """Have `python -m module` judge the bytes on its standard input: silence and code 0 is a yes.

    Takes half a second, for the interpreter to start. Raises ModelFileError with what it says.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""}
    try:
        verdict = subprocess.run(
            [sys.executable, "-m", module],
            input=content,
            capture_output=True,
            timeout=timeout_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelFileError(f"the graph did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise ModelFileError(f"the file cannot be tried: {error}") from None
    if verdict.returncode < 0:
        raise ModelFileError(f"the graph ends the process that runs it (signal {-verdict.returncode})")
    if verdict.returncode:
        said = verdict.stdout.decode(errors="replace").strip()[:_VERDICT_CHARS]
        if not said:  # nothing it foresaw: what the interpreter said last
            lines = verdict.stderr.decode(errors="replace").strip().splitlines()
            said = f"the trial of the file ended with code {verdict.returncode}: {lines[-1] if lines else ''}"
        raise ModelFileError(said)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_VERDICT_CHARS]

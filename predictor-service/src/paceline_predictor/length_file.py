"""Which length model file is in use, and how another one takes its place."""

import asyncio
import logging
from pathlib import Path

from paceline_predictor.length_graph import LengthGraph, opened
from paceline_predictor.onnx_file import MAX_MODEL_BYTES, ModelFileError, read_model_file, tried

_log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "models" / "length.onnx"
NO_FILE = "none"
_TRIAL = "paceline_predictor.length_trial"


class LengthFile:
    """Holds the graph in use; None: the histograms answer alone.

    A file is judged before it is used: read within a bound, run by a process of its own, then opened here. All of
    that in a thread; `graph` changes in one step on the event loop, and whoever took the old one may finish with it.
    """

    def __init__(self, path: str = "", *, max_bytes: int = MAX_MODEL_BYTES) -> None:
        """`path`: "" is the file that ships with the package, "none" does without one."""
        self._path = None if path == NO_FILE else Path(path) if path else SHIPPED
        self._max_bytes = max_bytes
        self.graph: LengthGraph | None = None
        self.warning = ""
        """Why there is no graph though there should be one; empty: all is well."""

    async def load(self) -> None:
        """At the start: a file that cannot be used is warned of, and the histograms answer."""
        try:
            await self.reload()
        except ModelFileError as error:
            self.warning = f"no length model is in use, histograms answer: {error}"
            _log.warning("length model", extra={"problem": self.warning})

    async def reload(self) -> None:
        """Take the file as it is now. Raises ModelFileError when it cannot be used; the graph in use stays."""
        if self._path is None:
            return
        graph = await asyncio.to_thread(self._judged, self._path)
        self.graph, self.warning = graph, ""
        _log.info(
            "length model",
            extra={"kind": graph.kind, "model_version": graph.version, "bytes": graph.file_bytes},
        )

    def _judged(self, path: Path) -> LengthGraph:
        content = read_model_file(path, self._max_bytes)
        try:
            tried(_TRIAL, content)
            return opened(content)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from None

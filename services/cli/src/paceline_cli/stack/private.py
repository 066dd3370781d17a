"""A stack of its own for a benchmark or a test: free ports, a temporary folder, gone at the end."""

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from paceline_cli.stack.run import RunningStack, StackPlan, running_stack
from paceline_cli.stack.supervisor import StackStartError


@contextlib.asynccontextmanager
async def private_stack(
    *,
    file: Path | None = None,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    overrides: tuple[str, ...] = (),
    on_event: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[RunningStack]:
    """Start a stack on free ports and yield it once it answers. Raises StackStartError and ConfigError."""
    with tempfile.TemporaryDirectory(prefix="paceline-private-", ignore_cleanup_errors=True) as folder:
        plan = StackPlan(Path(folder), file, defaults, ("up.ports=auto", *overrides))
        async with running_stack(plan, on_event=on_event) as stack:
            if not stack.supervisor.ready.is_set():
                raise StackStartError("the private stack was stopped before it was ready")
            yield stack

"""Stacks that tests across services share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from stack_process import StackProcess


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """Two engines with the tiny model at full speed: for tests that break nothing."""
    process = StackProcess(tmp_path_factory.mktemp("stack"))
    process.start()
    yield process
    process.stop()


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"

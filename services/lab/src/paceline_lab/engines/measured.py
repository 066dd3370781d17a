"""Readers of public GPU measurements: whole-batch latencies, and modelled step times."""

from dataclasses import dataclass
from pathlib import Path

from paceline_core.engines.profile import Roofline
from paceline_lab.tasks.loaders.rows import csv_rows


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a roofline needs to know of a dense decoder in 16 bits."""

    parameters: float
    kv_bytes_per_token: float
    layers: int = 32
    width: int = 4096


LLAMA_3_8B = ModelShape(8.03e9, 131_072)
SHAPES = {
    "meta-llama/Llama-2-7b-hf": ModelShape(6.74e9, 524_288),
    "meta-llama/Meta-Llama-3-8B": LLAMA_3_8B,
    "mistralai/Mistral-7B-v0.1": ModelShape(7.24e9, 131_072),
}
"""From the models' public configurations."""


@dataclass(frozen=True, slots=True)
class BatchLatency:
    """One measured run: `batch` sequences of `tokens` in and `tokens` out, started together."""

    profile: str
    engine: str
    model: str
    batch: int
    tokens: int
    seconds: float
    memory_bytes: float

    @property
    def kv_fits(self) -> bool:
        """False when the KV at the end is more than 90 % of the memory less the weights: somebody waited."""
        shape = SHAPES[self.model]
        room = 0.9 * self.memory_bytes - 2 * shape.parameters
        return self.batch * 2 * self.tokens * shape.kv_bytes_per_token <= room


_GPUS = {"Nvidia A100 GPU": ("a100-80-8b", 40e9), "Nvidia H100 GPU": ("h100-8b", 80e9)}
"""Profile to hold against it, and the memory of the one that was measured. The A100 of the set has 40 GB; its rates are
taken for those of the 80 GB one."""
_ENGINES = ("vLLM", "TensorRT-LLM")


def batch_latencies(folder: Path) -> list[BatchLatency]:
    """LLM-Inference-Bench (argonne-lcf, BSD-3-Clause): single A100 and H100, 7B and 8B models. Raises OSError."""
    points = []
    for row in csv_rows(folder / "llm_inference_bench_all.csv.gz"):
        known = row["Hardware"] in _GPUS and row["Framework"] in _ENGINES and row["Model"] in SHAPES
        if not known or row["Num of Hardware"] != "1":
            continue
        profile, memory_bytes = _GPUS[row["Hardware"]]
        points.append(
            BatchLatency(
                profile,
                row["Framework"],
                row["Model"],
                int(row["Batch Size"]),
                int(row["Input Output Length"]),
                float(row["Latency"]),
                memory_bytes,
            )
        )
    return points


@dataclass(frozen=True, slots=True)
class ModelledStep:
    """One step of a TensorRT-LLM engine as NVIDIA's aiconfigurator models it from measured operators."""

    profile: str
    kind: str
    decode_batch: int
    decode_context: int
    prefill_tokens: int
    ms: float


_GRID_GPUS = {"a100_sxm": "a100-80-8b", "h100_sxm": "h100-8b", "h200_sxm": "h200-8b", "l40s": "l40s-8b"}
_MIXED = "mixed_chunk+dec@"


def modelled_steps(folder: Path) -> list[ModelledStep]:
    """The grid of Llama 3.1 8B on one GPU: prefill, decode and mixed steps. Raises OSError."""
    steps = []
    for row in csv_rows(folder / "aiconfigurator_trtllm_grid.csv.gz"):
        profile = _GRID_GPUS.get(row["gpu"])
        if profile is None or not row["model"].endswith("Meta-Llama-3.1-8B") or row["tp"] != "1":
            continue
        first, second, ms = int(row["batch_or_chunk"]), int(row["ctx_tokens"]), float(row["ms"])
        if row["kind"] == "decode":
            steps.append(ModelledStep(profile, "decode", first, first * second, 0, ms))
        elif row["kind"] == "prefill_b1":
            steps.append(ModelledStep(profile, "prefill", 0, 0, first * second, ms))
        elif row["kind"].startswith(_MIXED):
            context = int(row["kind"].removeprefix(_MIXED))
            steps.append(ModelledStep(profile, "mixed", second, second * context, first, ms))
    return steps


def shaped(roofline: Roofline, shape: ModelShape, overhead_ms: float) -> Roofline:
    """The same GPU running another model, with another overhead a step."""
    return Roofline(
        shape.parameters,
        2.0,
        shape.layers,
        shape.width,
        roofline.flops_per_s,
        roofline.bytes_per_s,
        overhead_ms,
    )

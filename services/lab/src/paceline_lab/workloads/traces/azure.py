"""The Azure LLM inference traces of 2023: arrivals with lengths, one request a row."""

import numpy as np

from paceline_lab.tasks.loaders.rows import csv_rows
from paceline_lab.workloads.arrivals import replayed_rows
from paceline_lab.workloads.jitserve import single_call
from paceline_lab.workloads.objectives import PAPER
from paceline_lab.workloads.request import WorkloadRequest
from paceline_lab.workloads.trace import Job, Workload
from paceline_lab.workloads.traces.folder import trace_file

_SOURCE = "azure-llm-2023 (Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv and _code, as CSV)"


def azure_conv(request: WorkloadRequest) -> Workload:
    """Conversations under a latency target."""
    return _azure(request, "conv")


def azure_code(request: WorkloadRequest) -> Workload:
    """Code completions under a deadline; arrivals come in bursts (CV 13)."""
    return _azure(request, "code")


def _azure(request: WorkloadRequest, kind: str) -> Workload:
    request.weights({kind: 1.0})
    path = trace_file(request.data, request.name, _SOURCE, "azure-llm-2023", f"azure_2023_{kind}.csv.gz")
    rows = [
        (float(row["arrival_s"]), int(row["input_tokens"]), int(row["output_tokens"]))
        for row in csv_rows(path)
    ]
    rng = np.random.default_rng(request.seed)
    times, taken = replayed_rows(
        np.array([row[0] for row in rows]), request.rate_per_s, request.duration_s, request.cv, rng
    )
    targets = PAPER.scaled(request.slo_scale)
    slo = targets.latency() if kind == "conv" else targets.deadline()
    jobs = [
        Job(
            number,
            kind,
            "azure",
            slo,
            float(time),
            (single_call(max(rows[row][1], 1), max(rows[row][2], 1)),),
        )
        for number, (time, row) in enumerate(zip(times, taken.tolist(), strict=True))
    ]
    return Workload.of(request.name, request.seed, jobs, request.duration_s * 1e3, request.rate_per_s)

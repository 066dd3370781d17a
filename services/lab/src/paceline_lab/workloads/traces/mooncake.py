"""The Mooncake conversation trace: arrivals, lengths and which 512-token blocks of a prompt were seen before."""

from pathlib import Path

import numpy as np

from paceline_lab.tasks.loaders.rows import json_rows
from paceline_lab.workloads.arrivals import replayed_rows
from paceline_lab.workloads.jitserve import single_call
from paceline_lab.workloads.lengths import Array
from paceline_lab.workloads.objectives import PAPER
from paceline_lab.workloads.request import WorkloadRequest
from paceline_lab.workloads.trace import Job, Workload
from paceline_lab.workloads.traces.folder import trace_file

_SOURCE = "mooncake (kvcache-ai/Mooncake, FAST25-release/traces/conversation_trace.jsonl)"
_BLOCK_TOKENS = 512
_BIN_MS = 3000.0


def mooncake(request: WorkloadRequest) -> Workload:
    """Conversations under a latency target of twice the usual times: prompts are long.

    A prompt's shared prefix is the run of leading blocks that an earlier request of the trace has. Where the replay
    starts in the middle, blocks of requests before the start count as seen, as they would in the service.
    """
    request.weights({"conversation": 1.0})
    rows = list(json_rows(_file(request.data, request.name)))
    seen: set[int] = set()
    shared = []
    for row in rows:
        leading = 0
        for block in row["hash_ids"]:
            if block not in seen:
                break
            leading += 1
        seen.update(row["hash_ids"])
        shared.append(min(leading * _BLOCK_TOKENS, int(row["input_length"])))
    rng = np.random.default_rng(request.seed)
    stamps_s = _spread_s(np.array([float(row["timestamp"]) for row in rows]), rng)
    times, taken = replayed_rows(stamps_s, request.rate_per_s, request.duration_s, request.cv, rng)
    slo = PAPER.scaled(2.0 * request.slo_scale).latency()
    jobs = []
    for number, (time, place) in enumerate(zip(times, taken.tolist(), strict=True)):
        row = rows[place]
        call = single_call(max(int(row["input_length"]), 1), max(int(row["output_length"]), 1), shared[place])
        jobs.append(Job(number, "conversation", "mooncake", slo, float(time), (call,)))
    return Workload.of(request.name, request.seed, jobs, request.duration_s * 1e3, request.rate_per_s)


def mooncake_stamps_s(data: Path, rng: np.random.Generator) -> Array:
    """Arrivals of the trace in seconds, ascending. Raises ValueError when the trace is not there."""
    path = _file(data, "goodserve-mix with --data")
    return _spread_s(np.array([float(row["timestamp"]) for row in json_rows(path)]), rng)


def _file(data: Path | None, workload: str) -> Path:
    return trace_file(data, workload, _SOURCE, "mooncake", "conversation_trace.jsonl.gz")


def _spread_s(stamps_ms: Array, rng: np.random.Generator) -> Array:
    """Stamps are rounded down to 3 s: each bin's requests are spread over it, in their order."""
    bins, counts = np.unique(stamps_ms, return_counts=True)
    spread = [np.sort(start + rng.random(count) * _BIN_MS) for start, count in zip(bins, counts, strict=True)]
    return np.concatenate(spread) / 1e3

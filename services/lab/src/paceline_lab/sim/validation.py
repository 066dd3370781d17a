"""The simulator against what was measured: the same arrivals and lengths, and how far its times are off.

Errors: TTFT, the mean over the deciles 10 to 90 % of |simulated - measured| / measured; TPOT (mean time per output
token after the first), of the medians and of the means; attainment, the difference of the shares of calls in time.
"""

import csv
import gzip
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from paceline_core.batch.policy import EstimateUse
from paceline_core.engine_model import EngineModel
from paceline_core.engines.profile import Profile, Roofline, linear_of
from paceline_core.engines.shipped import load_profile
from paceline_core.slo import Slo, SloClass
from paceline_lab.live.report import LiveReport
from paceline_lab.sim.cell import batch_policy
from paceline_lab.sim.engine_spec import EngineSpec
from paceline_lab.sim.estimates import LengthSpec, Source, estimates_for
from paceline_lab.sim.knowledge import learn
from paceline_lab.sim.simulator import Result, Setting, simulate
from paceline_lab.workloads.trace import Call, Job, Workload

TTFT_TARGET: Final = 0.15
TPOT_TARGET: Final = 0.10
ATTAINMENT_TARGET: Final = 0.03
_DECILES: Final = np.arange(0.1, 0.91, 0.1)
_VLLM_SLO: Final = Slo(SloClass.LATENCY, ttft_ms=2_000.0, tbt_ms=100.0)
_VLLM_CHUNK_TOKENS: Final = 16
"""Its blocks: prompts are cut where the step's token budget ends."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One call, measured or simulated. `tpot_ms` is not a number for an answer of one token."""

    ttft_ms: float
    tpot_ms: float
    in_time: bool


def seen(ttft_ms: float, last_ms: float, tokens: int, slo: Slo) -> Seen:
    """From the times since the call's release. In time: by its first and its last token (latency), or its last."""
    if not tokens:
        return Seen(math.inf, math.nan, False)
    due_ms = slo.token_due_ms(tokens - 1)
    in_time = last_ms <= due_ms and ttft_ms <= slo.token_due_ms(0)
    return Seen(ttft_ms, (last_ms - ttft_ms) / (tokens - 1) if tokens > 1 else math.nan, in_time)


def errors(measured: Sequence[Seen], simulated: Sequence[Seen]) -> dict[str, Any]:
    """How far the simulation is off, and whether that is within the targets."""
    ttft, ttft_too = (np.array([s.ttft_ms for s in side]) for side in (measured, simulated))
    tpot, tpot_too = (
        np.array([s.tpot_ms for s in side if not math.isnan(s.tpot_ms)]) for side in (measured, simulated)
    )
    quantiles = [np.quantile(values, _DECILES, method="lower") for values in (ttft, ttft_too)]
    ttft_error = float(np.mean(np.abs(quantiles[1] - quantiles[0]) / quantiles[0]))
    tpot_medians = float(np.median(tpot)), float(np.median(tpot_too))
    tpot_means = float(np.mean(tpot)), float(np.mean(tpot_too))
    tpot_error = abs(tpot_medians[1] / tpot_medians[0] - 1)
    shares = [float(np.mean([s.in_time for s in side])) for side in (measured, simulated)]
    return {
        "calls": len(measured),
        "ttft_error": ttft_error,
        "ttft_ms_deciles": {"measured": quantiles[0].tolist(), "simulated": quantiles[1].tolist()},
        "tpot_error": tpot_error,
        "tpot_mean_error": abs(tpot_means[1] / tpot_means[0] - 1),
        "tpot_ms_median": {"measured": tpot_medians[0], "simulated": tpot_medians[1]},
        "attainment": {"measured": shares[0], "simulated": shares[1]},
        "attainment_difference": shares[1] - shares[0],
        "within_targets": ttft_error <= TTFT_TARGET
        and tpot_error <= TPOT_TARGET
        and abs(shares[1] - shares[0]) <= ATTAINMENT_TARGET,
    }


def replay_on(
    workload: Workload, engines: Sequence[EngineSpec], policy: str, placement: Any = None
) -> Result:
    """Simulate measured arrivals. Estimates are the class's: the policies that are validated do not read them."""
    knowledge = learn(workload)
    use = batch_policy(policy).estimates
    spec = LengthSpec(Source.CLASS)
    estimates = estimates_for(workload, knowledge, spec, EstimateUse(use), 1)
    return simulate(
        Setting(
            workload, tuple(engines), lambda: batch_policy(policy), estimates, knowledge, placement=placement
        )
    )


def _simulated(result: Result) -> list[Seen]:
    return [
        seen(call.outcome.first_token_ms, call.outcome.last_token_ms, call.outcome.tokens, call.slo)
        for job in result.jobs
        for _, call in sorted(job.calls.items())
        if call.outcome is not None
    ]


# -- measured vLLM runs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VllmRun:
    """One measured run: one engine, requests with stamps."""

    name: str
    workload: Workload
    measured: tuple[Seen, ...]
    max_batch: int
    step_tokens: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Device:
    """Data sheet rates, and the memory."""

    flops_per_s: float
    bytes_per_s: float
    memory_bytes: float


DEVICES: Final = {
    "RTX4090": Device(165.2e12, 1.008e12, 24e9),
    "RTXPRO6000": Device(503.8e12, 1.792e12, 96e9),
}
"""Dense bf16 and memory rates of the data sheets."""


def vllm_runs(data: Path) -> list[VllmRun]:
    """The runs in `data` (the folder of the public data, of gpu-perf, or of the runs). Raises FileNotFoundError."""
    folder = next(
        (
            f
            for f in (data / "gpu-perf" / "vllm_measured", data / "vllm_measured", data)
            if any(f.glob("*_requests.csv.gz"))
        ),
        None,
    )
    if folder is None:
        raise FileNotFoundError(2, "no *_requests.csv.gz", str(data))
    return [_vllm_run(path) for path in sorted(folder.glob("*_requests.csv.gz"))]


def _vllm_run(path: Path) -> VllmRun:
    name = path.name.removesuffix("_requests.csv.gz")
    with gzip.open(path.with_name(f"{name}_meta.json.gz"), "rt", encoding="utf-8") as file:
        meta = json.load(file)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    jobs, measured = [], []
    for number, row in enumerate(rows):
        arrival, first, last = (
            float(row[key]) * 1e3 for key in ("arrival_s", "first_token_s", "last_token_s")
        )
        tokens = int(row["output_tokens"])
        call = Call(0, (), int(row["input_tokens"]), tokens, 0.0)
        jobs.append(Job(number, "chat", "t0", _VLLM_SLO, arrival, (call,)))
        measured.append(seen(first - arrival, last - arrival, tokens, _VLLM_SLO))
    device = DEVICES[name.split("_")[0]]
    kv_bytes = load_profile("a100-80-8b").kv_bytes_per_token
    kv_tokens = int(
        meta.get("kv_cache", {}).get("num_kv_tokens") or (0.9 * device.memory_bytes - 16.1e9) / kv_bytes
    )
    kwargs = meta["engine_kwargs"]
    duration = max(job.arrival_ms for job in jobs) + 1.0
    workload = Workload.of(name, 0, jobs, duration, 1e3 * len(jobs) / duration)
    return VllmRun(
        name, workload, tuple(measured), kwargs["max_num_seqs"], kwargs["max_num_batched_tokens"], kv_tokens
    )


@dataclass(frozen=True, slots=True)
class Reached:
    """Shares of the data sheet's rates that an engine reaches, and what every step costs besides."""

    flops: float
    bytes: float
    overhead_ms: float


A100_REACHED: Final = Reached(205 / 312, 1.40 / 2.039, 3.0)
"""What the shipped profile of the A100 says, on another device."""


def vllm_engine(run: VllmRun, reached: Reached) -> EngineSpec:
    """The engine of a run at some shares of its device's rates."""
    device = DEVICES[run.name.split("_")[0]]
    base = load_profile("a100-80-8b")
    assert base.roofline is not None
    roofline: Roofline = replace(
        base.roofline,
        flops_per_s=device.flops_per_s * reached.flops,
        bytes_per_s=device.bytes_per_s * reached.bytes,
        overhead_ms=reached.overhead_ms,
    )
    lines: dict[str, Any] = dict(linear_of(roofline, base.kv_bytes_per_token))
    profile = replace(base, name=run.name, kv_capacity_tokens=run.kv_tokens, roofline=roofline, **lines)
    return EngineSpec(profile, run.max_batch, prefill_chunk_tokens=_VLLM_CHUNK_TOKENS)


def vllm_errors(run: VllmRun, reached: Reached) -> dict[str, Any]:
    """Simulate a run and hold it against its stamps."""
    result = replay_on(run.workload, [vllm_engine(run, reached)], f"sarathi:token_budget={run.step_tokens}")
    return {"run": run.name, "reached": asdict(reached), **errors(run.measured, _simulated(result))}


def fitted(run: VllmRun, say: Callable[[str], None] = lambda _: None) -> Reached:
    """The shares under which a run is simulated best, by coordinate descent on a grid."""
    best, least = A100_REACHED, math.inf
    tried: dict[Reached, float] = {}

    def loss(reached: Reached) -> float:
        if reached not in tried:
            row = vllm_errors(run, reached)
            tried[reached] = row["ttft_error"] + 2 * row["tpot_error"]
        return tried[reached]

    for width in (0.15, 0.05):
        for name in ("bytes", "flops", "overhead_ms", "bytes"):
            centre = getattr(best, name)
            steps = (
                (0.5, 1.0, 2.0)
                if name == "overhead_ms"
                else (1 - 2 * width, 1 - width, 1.0, 1 + width, 1 + 2 * width)
            )
            for factor in steps:
                value = centre * factor if name == "overhead_ms" else min(centre * factor, 0.98)
                candidate = replace(best, **{name: round(value, 4)})
                if loss(candidate) < least:
                    least, best = loss(candidate), candidate
        say(f"{run.name}: loss {least:.3f} after {len(tried)} simulations")
    return best


def validate_vllm(data: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Every run three times: with the shares of the shipped A100, with those fitted to the other runs (the honest
    figure), and with its own (how good the form can be)."""
    runs = vllm_runs(data)
    own = {run.name: fitted(run, say) for run in runs}
    rows = []
    for run in runs:
        others = [reached for name, reached in own.items() if name != run.name]
        rows.append({"shares": "shipped", **vllm_errors(run, A100_REACHED)})
        if others:
            mean = Reached(
                *(float(np.mean([getattr(o, f) for o in others])) for f in ("flops", "bytes", "overhead_ms"))
            )
            rows.append({"shares": "of the other run", **vllm_errors(run, mean)})
        rows.append({"shares": "own", **vllm_errors(run, own[run.name])})
    return {"rows": rows}


# -- the embedded engine, driven live --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LiveEngine:
    """What a scheduler said of its engine after the run: fitted times and limits."""

    model: EngineModel
    max_batch: int
    max_resident: int
    kv_tokens: int
    prefill_chunk_tokens: int
    max_context_tokens: int

    @property
    def spec(self) -> EngineSpec:
        """The same as a simulated engine, whose truth is the fitted model."""
        m = self.model
        profile = Profile(
            "measured", "this machine", m.a_ms, m.b_ms, m.c_ms, m.a1_ms, m.p0_ms, m.d_ms, m.e_ms,
            self.kv_tokens, 1, 0.0,
        )  # fmt: skip
        return EngineSpec(
            profile, self.max_batch, self.max_resident, self.prefill_chunk_tokens, self.max_context_tokens
        )


def validate_live(report: LiveReport, engines: Sequence[LiveEngine], policy: str) -> dict[str, Any]:
    """Simulate what a live run was asked, on engines with the times that were fitted meanwhile.

    The calls that ended well are compared; a stage's calls wait for the calls of the stage before, and as long again as
    the client took then.
    """
    placement = None
    if len(engines) > 1:
        from paceline_core.placement.registry import make_policy

        placement = make_policy("least-predicted")
    measured: list[Seen] = []
    jobs: list[Job] = []
    for record in report.jobs:
        if not record.completed:
            continue
        calls: list[Call] = []
        for call in record.calls:
            before = [
                place
                for place, other in enumerate(record.calls[: len(calls)])
                if other.stage == call.stage - 1
            ]
            since = max((record.calls[place].ended_ms or 0.0 for place in before), default=0.0)
            calls.append(
                Call(
                    call.stage, tuple(before), max(1, call.prompt_tokens), max(1, call.output_tokens),
                    max(0.0, call.sent_ms - since),
                )
            )  # fmt: skip
            ended = call.ended_ms if call.ended_ms is not None else math.inf
            first = float(call.token_ms[0]) if call.output_tokens else math.inf
            measured.append(seen(first - call.sent_ms, ended - call.sent_ms, call.output_tokens, record.slo))
        jobs.append(Job(record.number, "live", "t0", record.slo, record.arrival_s * 1e3, tuple(calls)))
    if not jobs:
        raise ValueError("no job of the live run was completed: nothing to compare")
    spec = report.workload
    workload = Workload.of("live", spec.seed, jobs, spec.duration_s * 1e3, spec.rate_per_s)
    result = replay_on(workload, [engine.spec for engine in engines], policy, placement)
    return {
        "policy": policy,
        "jobs": len(jobs),
        "left_out": len(report.jobs) - len(jobs),
        "engines": [asdict(engine) for engine in engines],
        **errors(measured, _simulated(result)),
    }

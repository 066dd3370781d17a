"""What the predictor says about its models: which are in use, and how often outcomes were within what they declared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from rich.markup import escape

from paceline.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from paceline_cli.output import console, print_table
from paceline_runtime.channel import channel

_CALL_S = 2.0
_SHOWN_ROWS = 12


@dataclass(frozen=True, slots=True)
class CoverageView:
    """Answers for a model and an app (app empty and `whole_model`: for all its apps). Coverages: 0 is not known yet."""

    model: str
    app: str
    whole_model: bool
    observed: int
    coverage_p50: float
    coverage_p90: float
    coverage_p95: float
    bias_log: float
    pit_drift: float
    fallback: bool
    warning: str


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model in use."""

    name: str
    kind: str
    version: str
    observed: int
    coverage_p50: float
    coverage_p90: float
    coverage_p95: float
    bias_log: float
    pit_drift: float
    file_bytes: int
    warning: str
    coverage: tuple[CoverageView, ...]


@dataclass(frozen=True, slots=True)
class PredictorView:
    """The predictor now; `problem` says why it could not be asked."""

    models: tuple[ModelView, ...] = ()
    problem: str = ""


async def read_predictor(address: str) -> PredictorView:
    """Never raises for a predictor that is away: `problem` is set."""
    async with channel(address) as connection:
        stub: Any = predictor_pb2_grpc.PredictorServiceStub(connection)
        try:
            answer = await stub.GetModelInfo(predictor_pb2.GetModelInfoRequest(), timeout=_CALL_S)
        except grpc.aio.AioRpcError as error:
            return PredictorView(problem=f"predictor {address}: {error.code().name} {error.details()}")
    return PredictorView(tuple(_model(info) for info in answer.models))


def print_predictor(view: Mapping[str, Any]) -> None:
    """Of a PredictorView as a dictionary: a line per model, its warning, and the rows with the most outcomes."""
    if view["problem"]:
        console.print(f"[yellow]{escape(view['problem'])}[/]", soft_wrap=True)
    for model in view["models"]:
        console.print(
            f"predictor: {model['name']} {model['kind']} {model['version']}, {model['observed']} outcomes, "
            f"{_covered(model)}"
        )
        if model["warning"]:
            console.print(f"  [yellow]{escape(model['warning'])}[/]", soft_wrap=True)
        known = [row for row in model["coverage"] if not row["whole_model"] and row["coverage_p90"] > 0]
        if known:
            print_table(
                ("predictions for", "app", "outcomes", "P50", "P90", "P95", "bias", "answered by"),
                [_cells(row, model["kind"]) for row in known[:_SHOWN_ROWS]],
                right=("outcomes", "P50", "P90", "P95", "bias"),
            )


def _cells(row: Mapping[str, Any], kind: str) -> tuple[object, ...]:
    shares = (_share(row[f"coverage_{level}"]) for level in ("p50", "p90", "p95"))
    carrier = "histogram" if row["fallback"] else kind
    return (
        escape(row["model"]),
        escape(row["app"]) or "-",
        row["observed"],
        *shares,
        f"{row['bias_log']:+.2f}",
        carrier,
    )


def _covered(model: Mapping[str, Any]) -> str:
    if model["coverage_p90"] <= 0:
        return "coverage not known yet"
    shares = (f"{level.upper()} {_share(model[f'coverage_{level}'])}" for level in ("p50", "p90", "p95"))
    return f"covered by {', '.join(shares)}"


def _share(value: float) -> str:
    return f"{value:.1%}" if value > 0 else "?"


def _model(info: predictor_pb2.ModelInfo) -> ModelView:
    return ModelView(
        name=info.name,
        kind=info.kind,
        version=info.version,
        observed=info.observed,
        coverage_p50=info.coverage_p50,
        coverage_p90=info.coverage_p90,
        coverage_p95=info.coverage_p95,
        bias_log=info.bias_log,
        pit_drift=info.pit_drift,
        file_bytes=info.file_bytes,
        warning=info.warning,
        coverage=tuple(_row(row) for row in info.coverage),
    )


def _row(row: predictor_pb2.CoverageRow) -> CoverageView:
    return CoverageView(
        model=row.model,
        app=row.app,
        whole_model=row.whole_model,
        observed=row.observed,
        coverage_p50=row.coverage_p50,
        coverage_p90=row.coverage_p90,
        coverage_p95=row.coverage_p95,
        bias_log=row.bias_log,
        pit_drift=row.pit_drift,
        fallback=row.fallback,
        warning=row.warning,
    )

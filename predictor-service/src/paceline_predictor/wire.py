"""Messages to values and back, and what is not accepted."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from paceline.common.v1 import estimate_pb2
from paceline.predictor.v1 import predictor_pb2
from paceline_core.calibration.recalibration import LEVELS
from paceline_core.lengths import OPEN_EDGE, cdf_from_probabilities, quantile
from paceline_predictor.model import KeyReport, LengthAnswers, LengthQuestion, ModelReport, Outcome
from paceline_runtime.errors import PacelineError, invalid

MAX_QUERIES = 1024
MAX_OUTCOMES = 4096
MAX_MODEL_CHARS = 256
MAX_APP_CHARS = 64
MAX_TENANT_CHARS = 256
MAX_PROMPT_CHARS = 4096
MAX_OUTPUT_TAIL_CHARS = 1024
MAX_OUTPUT_TOKENS = 1 << 24
"""More than any model writes: a larger count is an error of the sender."""


def questions(request: predictor_pb2.PredictLengthRequest) -> list[LengthQuestion]:
    """The questions of a call. Raises INVALID_ARGUMENT, which names the field at fault."""
    if len(request.queries) > MAX_QUERIES:
        raise invalid(f"at most {MAX_QUERIES} questions a call, got {len(request.queries)}", field="queries")
    return [question(query, f"queries[{i}]") for i, query in enumerate(request.queries)]


def question(query: predictor_pb2.LengthQuery, field: str) -> LengthQuestion:
    """One question; long texts are cut to what is read."""
    model, app, tenant, temperature = query.model, query.app, query.tenant, query.temperature
    if not model:
        raise invalid("a question needs the model that will answer", field=f"{field}.model")
    if len(model) > MAX_MODEL_CHARS:
        raise _too_long("model", MAX_MODEL_CHARS, field)
    if len(app) > MAX_APP_CHARS:
        raise _too_long("app", MAX_APP_CHARS, field)
    if len(tenant) > MAX_TENANT_CHARS:
        raise _too_long("tenant", MAX_TENANT_CHARS, field)
    if not 0 <= temperature < math.inf:  # nan is neither
        raise invalid("temperature must be finite and not negative", field=f"{field}.temperature")
    return LengthQuestion(
        model=model,
        app=app,
        tenant=tenant,
        prompt_head=query.prompt_head[:MAX_PROMPT_CHARS],
        prompt_tail=query.prompt_tail[-MAX_PROMPT_CHARS:],
        prompt_tokens=query.prompt_tokens,
        max_tokens=query.max_tokens,
        temperature=temperature,
        turn_index=query.turn_index,
        has_tools=query.has_tools,
        wants_json=query.wants_json,
        task_stage=query.task_stage,
        generated_tokens=query.generated_tokens,
        output_tail=query.output_tail[-MAX_OUTPUT_TAIL_CHARS:],
    )


def _too_long(name: str, limit: int, field: str) -> PacelineError:
    return invalid(f"{name} is longer than {limit} characters", field=f"{field}.{name}")


def estimates(
    asked: Sequence[LengthQuestion], answers: LengthAnswers
) -> Iterator[estimate_pb2.LengthEstimate]:
    """The answers as messages."""
    for question, row, source, coverage, version in zip(
        asked,
        answers.probabilities.tolist(),
        answers.sources,
        answers.coverage_p90,
        answers.versions,
        strict=True,
    ):
        yield estimate_pb2.LengthEstimate(
            probabilities=row,
            model_version=version,
            source=source,
            coverage_p90=coverage,
            generated_tokens=question.generated_tokens,
        )


def outcome(message: predictor_pb2.LengthOutcome) -> Outcome | None:
    """An outcome; None when it is malformed."""
    if message.output_tokens > MAX_OUTPUT_TOKENS:
        return None
    try:
        asked = question(message.query, "query")
        declared = _declared(message.estimate, asked.max_tokens)
    except (PacelineError, ValueError):
        return None
    return Outcome(asked, message.output_tokens, message.censored, declared)


def model_info(report: ModelReport, further_warning: str) -> predictor_pb2.ModelInfo:
    """A model in use."""
    return predictor_pb2.ModelInfo(
        name=report.name,
        version=report.version,
        kind=report.kind,
        observed=report.observed,
        coverage_p90=report.coverage_p90,
        warning="; ".join(filter(None, (report.warning, further_warning))),
        active=True,
        coverage_p50=report.coverage_p50,
        coverage_p95=report.coverage_p95,
        bias_log=report.bias_log,
        pit_drift=report.drift,
        file_bytes=report.file_bytes,
        coverage=[_coverage_row(row) for row in report.keys],
    )


def _coverage_row(row: KeyReport) -> predictor_pb2.CoverageRow:
    return predictor_pb2.CoverageRow(
        model=row.model,
        app=row.app,
        observed=row.observed,
        coverage_p50=row.coverage_p50,
        coverage_p90=row.coverage_p90,
        coverage_p95=row.coverage_p95,
        bias_log=row.bias_log,
        pit_drift=row.drift,
        fallback=row.fallback,
        warning=row.warning,
        whole_model=row.whole_model,
    )


def _declared(estimate: estimate_pb2.LengthEstimate, max_tokens: int) -> tuple[float, float, float] | None:
    """P50, P90 and P95 as a reader of the estimate sees them. Raises ValueError when the bins are no distribution."""
    if not estimate.probabilities:
        return None
    cdf = cdf_from_probabilities(np.array(estimate.probabilities, dtype=np.float64))
    limit = np.array([float(max_tokens or OPEN_EDGE)])
    generated = np.array([float(estimate.generated_tokens)])
    p50, p90, p95 = (float(quantile(cdf, level, generated, limit)[0]) for level in LEVELS)
    return p50, p90, p95

"""What the predictor is asked about a request, and told when it has ended."""

from typing import Final
from zlib import crc32

from paceline.predictor.v1 import predictor_pb2
from paceline_router.request import LiveRequest

CHECKPOINTS: Final = (50, 200, 800)
"""Output tokens at which a further outcome may be told: where a prediction's calibration changes its bucket."""
_PART_BYTES: Final = 2048
_TAIL_BYTES: Final = 1024


def length_query(request: LiveRequest, generated_tokens: int = 0) -> predictor_pb2.LengthQuery:
    """The question about a request at its arrival, or as it stood when `generated_tokens` were out."""
    spec, text = request.spec, request.text
    tail = request.output.text_before(generated_tokens, _TAIL_BYTES) if generated_tokens else b""
    return predictor_pb2.LengthQuery(
        model=spec.model,
        app=spec.app,
        tenant=request.tenant,
        prompt_head=text[:_PART_BYTES].decode(errors="ignore"),
        prompt_tail=text[-_PART_BYTES:].decode(errors="ignore") if len(text) > _PART_BYTES else "",
        prompt_tokens=request.prompt_tokens,
        max_tokens=request.max_tokens,
        temperature=spec.sampling.temperature,
        turn_index=max(request.turn_index, 0),
        has_tools=spec.has_tools,
        wants_json=spec.wants_json,
        task_stage=request.task_stage,
        generated_tokens=generated_tokens,
        output_tail=tail.decode(errors="ignore"),
    )


def arrival_outcome(request: LiveRequest, *, censored: bool) -> predictor_pb2.LengthOutcome:
    """How long the answer became, with what was asked and said at its arrival."""
    return predictor_pb2.LengthOutcome(
        query=length_query(request),
        output_tokens=request.output.count,
        censored=censored,
        estimate=None if request.estimate is None else request.estimate.message,
    )


def checkpoint_outcome(request: LiveRequest, *, censored: bool) -> predictor_pb2.LengthOutcome | None:
    """The same as it stood at one of the checkpoints that were passed; None if none was.

    One of them, drawn by the request's id: a second row for each long answer is what learning and traffic are worth.
    """
    passed = [tokens for tokens in CHECKPOINTS if request.output.count > tokens]
    if not passed:
        return None
    generated_tokens = passed[crc32(request.request_id.encode()) % len(passed)]
    return predictor_pb2.LengthOutcome(
        query=length_query(request, generated_tokens),
        output_tokens=request.output.count,
        censored=censored,
    )

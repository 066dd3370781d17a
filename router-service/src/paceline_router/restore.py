"""An ended request out of the store, to be read like any other."""

from google.protobuf.json_format import Parse

from paceline.common.v1 import slo_pb2
from paceline.router.v1 import generation_pb2
from paceline_router.request import Arrival, LiveRequest
from paceline_router.slo_wire import from_wire
from paceline_router.states import State
from paceline_store.rows import StoredRequest


def restored(stored: StoredRequest) -> LiveRequest:
    """The request as it ended. Raises ValueError when the row is not of an ended request."""
    row = stored.request
    if row.finished is None:
        raise ValueError(f"request {row.request_id} has not ended")
    spec = generation_pb2.GenerationSpec.FromString(row.spec)
    spec.ClearField("input")
    slo_message = Parse(row.slo_json, slo_pb2.Slo())
    spec.slo.CopyFrom(slo_message)
    request = LiveRequest(
        row.request_id, spec, from_wire(slo_message), row.tenant, Arrival(0.0, row.arrived_unix_ms)
    )
    request.finished = generation_pb2.Finished.FromString(row.finished)
    request.prompt_tokens = row.prompt_tokens
    request.prior_attempts = request.finished.attempts
    request.output.append(stored.tokens.token_ids, stored.tokens.text_lengths, stored.tokens.text)
    request.released = request.output.count
    request.state = State(row.state)
    request.end_released = True
    request.accepted = generation_pb2.Accepted(
        request_id=row.request_id,
        model=row.model,
        engine_id=request.finished.engine_id,
        slo=slo_message,
        prompt_tokens=row.prompt_tokens,
        predicted_tokens=request.finished.predicted_tokens,
        durability=row.durability,  # type: ignore[arg-type]
        arrived_unix_ms=row.arrived_unix_ms,
    )
    return request

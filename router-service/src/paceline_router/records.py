"""Requests and engines as records of the API."""

from google.protobuf.json_format import Parse

from paceline.common.v1 import slo_pb2
from paceline.router.v1 import generation_pb2, router_pb2
from paceline_router.attempt import Attempt
from paceline_router.engine import Engine
from paceline_router.move import Move
from paceline_router.request import LiveRequest
from paceline_router.scheduler_link import LinkState, SchedulerLink
from paceline_store.rows import AttemptRow, RequestRow


def live_record(request: LiveRequest) -> router_pb2.RequestRecord:
    """A live or retained request."""
    return router_pb2.RequestRecord(
        request_id=request.request_id,
        model=request.spec.model,
        tenant=request.tenant,
        app=request.spec.app,
        state=int(request.state),  # type: ignore[arg-type]
        slo=request.spec.slo,
        arrived_unix_ms=request.arrival.unix_ms,
        prompt_tokens=request.prompt_tokens if request.accepted is not None else 0,
        output_tokens=request.output.count,
        attempts=[_attempt_record(attempt) for attempt in request.attempts],
        finished=request.finished,
        durability=request.durability,  # type: ignore[arg-type]
        task_id=request.task_id,
    )


def stored_record(
    row: RequestRow, attempts: tuple[AttemptRow, ...], output_tokens: int
) -> router_pb2.RequestRecord:
    """A request of the store."""
    finished = None if row.finished is None else generation_pb2.Finished.FromString(row.finished)
    return router_pb2.RequestRecord(
        request_id=row.request_id,
        model=row.model,
        tenant=row.tenant,
        app=row.app,
        state=row.state,  # type: ignore[arg-type]
        slo=Parse(row.slo_json, slo_pb2.Slo()),
        arrived_unix_ms=row.arrived_unix_ms,
        prompt_tokens=row.prompt_tokens,
        output_tokens=finished.output_tokens if finished is not None else output_tokens,
        attempts=[
            router_pb2.AttemptRecord(
                number=a.number,
                engine_id=a.engine_id,
                incarnation=a.incarnation,
                reason=a.reason,
                from_index=a.from_index,
                finish_reason=a.finish_reason,  # type: ignore[arg-type]
                placed_unix_ms=a.placed_unix_ms,
            )
            for a in attempts
        ],
        finished=finished,
        durability=row.durability,  # type: ignore[arg-type]
        task_id=row.task_id,
    )


def engine_record(engine: Engine, now_ms: float, leave_out_after_ms: float) -> router_pb2.EngineRecord:
    """An engine of the fleet."""
    load = engine.load
    return router_pb2.EngineRecord(
        engine_id=engine.engine_id,
        scheduler_endpoint=engine.link.endpoint,
        state=engine_state(engine, now_ms, leave_out_after_ms),
        incarnation=engine.incarnation,
        capabilities=engine.capabilities,
        queued=load.queued,
        running=load.running,
        paused=load.paused + load.evicted,
        kv_used_tokens=load.kv_used_tokens,
        tokens_per_s=load.tokens_per_s,
        load_age_ms=now_ms - engine.load_at_ms,
        model=load.model,
        lost_attempts=engine.lost_attempts,
    )


def engine_state(
    engine: Engine, now_ms: float, leave_out_after_ms: float
) -> router_pb2.EngineState.ValueType:
    """Where an engine stands, as placement sees it."""
    if not engine.up:
        return router_pb2.ENGINE_STATE_DOWN
    if engine.draining or engine.scheduler_draining:
        return router_pb2.ENGINE_STATE_DRAINING
    if now_ms - engine.load_at_ms > leave_out_after_ms:
        return router_pb2.ENGINE_STATE_STALE
    return router_pb2.ENGINE_STATE_UP


def dialled_record(link: SchedulerLink) -> router_pb2.EngineRecord:
    """A scheduler that has not said which engine it has."""
    fenced = link.state is LinkState.FENCED
    state = router_pb2.ENGINE_STATE_DOWN if fenced else router_pb2.ENGINE_STATE_CONNECTING
    return router_pb2.EngineRecord(scheduler_endpoint=link.endpoint, state=state)


def move_record(move: Move) -> router_pb2.MoveRequestResponse:
    """A move that is done."""
    return router_pb2.MoveRequestResponse(
        from_engine_id=move.source.engine.engine_id,
        engine_id=move.target.engine_id,
        way=int(move.way),  # type: ignore[arg-type]
        prepared_tokens=move.prepared,
        from_index=move.from_index,
        kv_bytes=move.kv_bytes,
        prepare_ms=move.ready_ms - move.started_ms,
        stop_ms=move.stopped_ms - move.ready_ms,
    )


def _attempt_record(attempt: Attempt) -> router_pb2.AttemptRecord:
    return router_pb2.AttemptRecord(
        number=attempt.number,
        engine_id=attempt.engine.engine_id,
        incarnation=attempt.incarnation,
        reason=f"{attempt.explained.policy}: {attempt.explained.reason}",
        from_index=attempt.from_index,
        finish_reason=attempt.finish_reason,  # type: ignore[arg-type]
        placed_unix_ms=attempt.placed_unix_ms,
    )

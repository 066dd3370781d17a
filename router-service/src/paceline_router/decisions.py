"""Decisions alone, for back ends that stream from an engine themselves."""

import numpy as np

from paceline.common.v1 import attempt_pb2
from paceline.predictor.v1 import predictor_pb2
from paceline.router.v1 import router_pb2
from paceline_core import lengths
from paceline_core.placement.view import RequestView
from paceline_core.slo import Slo, SloClass
from paceline_router.admission import Admission
from paceline_router.placement import Placer
from paceline_router.predictor_link import PredictorLink
from paceline_router.slo_wire import declared
from paceline_runtime.errors import PacelineError, Reason, invalid

_DEFAULT_MAX_TOKENS = 1024


class Decisions:
    """Answers Route from the same policy and fleet that place requests."""

    def __init__(self, admission: Admission, placer: Placer, predictor: PredictorLink) -> None:
        self._admission = admission
        self._placer = placer
        self._predictor = predictor

    async def route(self, spec: router_pb2.RouteSpec) -> router_pb2.Decision:
        """The decision for one request in numbers. Raises what a bad spec deserves; no engine is a refused
        decision."""
        if not spec.prompt_tokens:
            raise invalid("prompt_tokens must be at least 1", field="prompt_tokens")
        model = self._admission.model_of(spec.model)
        max_tokens = spec.max_tokens or _DEFAULT_MAX_TOKENS
        view = RequestView(
            model=model,
            prompt_tokens=spec.prompt_tokens,
            max_tokens=max_tokens,
            length_cdf=await self._cdf(spec, model, max_tokens),
            slo=declared(spec.slo) or Slo(SloClass.BEST_EFFORT),
            excluded_ids=frozenset(spec.exclude_engine_ids),
            prefix_hashes=tuple(spec.prefix_hashes),
            tenant=spec.tenant,
        )
        placed = self._placer.decide(view)
        decision = router_pb2.Decision(
            request_id=spec.request_id,
            p_meet=placed.placement.p_meet,
            predicted_e2e_ms=max(placed.placement.predicted_ms, 0.0),
            reason=f"{placed.explained.policy}: {placed.placement.reason}",
        )
        if placed.engine is None:
            error = PacelineError(Reason.NO_ENGINE, placed.placement.reason)
            decision.failure.CopyFrom(
                attempt_pb2.Failure(reason=error.reason.value, message=error.message, retryable=True)
            )
        else:
            decision.engine_id = placed.engine.engine_id
            decision.executor_endpoint = placed.engine.executor_endpoint
        return decision

    async def _cdf(self, spec: router_pb2.RouteSpec, model: str, max_tokens: int) -> lengths.FloatArray:
        if spec.HasField("estimate"):
            try:
                mass = np.array(spec.estimate.probabilities, dtype=np.float64)
                cdf: lengths.FloatArray = lengths.cdf_from_probabilities(mass)[0]
                return cdf
            except ValueError as error:
                raise invalid(f"estimate: {error}", field="estimate") from None
        query = predictor_pb2.LengthQuery(
            model=model,
            app=spec.app,
            tenant=spec.tenant,
            prompt_tokens=spec.prompt_tokens,
            max_tokens=max_tokens,
        )
        return (await self._predictor.estimate(query)).cdf

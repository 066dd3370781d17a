"""Decisions alone, for back ends that stream from an engine themselves: what is asked, checked and answered."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from paceline.common.v1 import attempt_pb2
from paceline.predictor.v1 import predictor_pb2
from paceline.router.v1 import router_pb2
from paceline_core import lengths
from paceline_core.placement.policy import Placement
from paceline_core.placement.view import RequestView
from paceline_core.slo import Slo, SloClass
from paceline_router.admission import Admission
from paceline_router.engine import Engine
from paceline_router.fleet import Fleet
from paceline_router.lifecycle import failure_of
from paceline_router.placement import Placer
from paceline_router.predictor_link import PredictorLink
from paceline_router.slo_wire import declared
from paceline_router.validation import MAX_OUTPUT_TOKENS, check_name
from paceline_runtime.errors import PacelineError, Reason, invalid

log = logging.getLogger(__name__)

_DEFAULT_MAX_TOKENS: Final = 1024
MAX_PREFIX_HASHES: Final = 4096
"""Blocks of one prompt: 1 MB of text."""


@dataclass(frozen=True, slots=True)
class Question:
    """A spec that was checked, with its defaults filled in."""

    spec: router_pb2.RouteSpec
    model: str
    tenant: str
    max_tokens: int
    slo: Slo

    @property
    def query(self) -> predictor_pb2.LengthQuery:
        """What the predictor can be asked about a request without its text."""
        return predictor_pb2.LengthQuery(
            model=self.model,
            app=self.spec.app,
            tenant=self.tenant,
            prompt_tokens=self.spec.prompt_tokens,
            max_tokens=self.max_tokens,
        )


class Decisions:
    """Answers from the same policy and fleet that place requests."""

    def __init__(self, admission: Admission, fleet: Fleet, placer: Placer, predictor: PredictorLink) -> None:
        self._admission = admission
        self._fleet = fleet
        self._placer = placer
        self._predictor = predictor

    async def route(self, spec: router_pb2.RouteSpec, caller: str) -> router_pb2.Decision:
        """The decision for one request in numbers. Raises what a bad spec deserves; no engine is a refused
        decision."""
        question = self.checked(spec, caller)
        (cdf,) = await self.length_cdfs([question])
        if isinstance(cdf, PacelineError):
            raise cdf
        placed = self._placer.decide(self.view(question, cdf))
        return self.answer(question, placed.engine, placed.placement)

    def checked(self, spec: router_pb2.RouteSpec, caller: str) -> Question:
        """The question that a spec asks. Raises what a bad one deserves."""
        if not spec.prompt_tokens:
            raise invalid("prompt_tokens must be at least 1", field="prompt_tokens")
        if spec.max_tokens > MAX_OUTPUT_TOKENS:
            message = f"max_tokens must be at most {MAX_OUTPUT_TOKENS}, got {spec.max_tokens}"
            raise invalid(message, field="max_tokens")
        if len(spec.prefix_hashes) > MAX_PREFIX_HASHES:
            message = f"at most {MAX_PREFIX_HASHES} prefix_hashes, got {len(spec.prefix_hashes)}"
            raise invalid(message, field="prefix_hashes")
        check_name("app", spec.app)
        check_name("tenant", spec.tenant)
        return Question(
            spec,
            self._admission.model_of(spec.model),
            self._admission.tenant_of(spec.tenant, caller),
            spec.max_tokens or _DEFAULT_MAX_TOKENS,
            declared(spec.slo) or Slo(SloClass.BEST_EFFORT),
        )

    async def length_cdfs(self, questions: Sequence[Question]) -> list[lengths.FloatArray | PacelineError]:
        """A length distribution float64[K] for each: its own estimate, else the predictor's; an error for an estimate
        that is none. The predictor is asked once for all."""
        own = [question.spec.HasField("estimate") for question in questions]
        found = iter(_own_cdfs([q.spec for q, given in zip(questions, own, strict=True) if given]))
        rest = [question.query for question, given in zip(questions, own, strict=True) if not given]
        asked = iter(await self._predictor.cdfs(rest)) if rest else iter(())
        return [next(found) if given else next(asked) for given in own]

    def view(self, question: Question, cdf: lengths.FloatArray) -> RequestView:
        """The question as policies see it."""
        spec = question.spec
        hashes = tuple(spec.prefix_hashes)
        return RequestView(
            model=question.model,
            prompt_tokens=spec.prompt_tokens,
            max_tokens=question.max_tokens,
            length_cdf=cdf,
            slo=question.slo,
            excluded_ids=frozenset(spec.exclude_engine_ids),
            prefix_hashes=hashes,
            tenant=question.tenant,
            request_id=spec.request_id,
            cached_tokens=self._fleet.table.cached_tokens(hashes, spec.prompt_tokens) if hashes else None,
        )

    def answer(self, question: Question, engine: Engine | None, placement: Placement) -> router_pb2.Decision:
        """The decision as it travels; without an engine a refused one."""
        decision = router_pb2.Decision(
            request_id=question.spec.request_id,
            p_meet=placement.p_meet,
            predicted_e2e_ms=max(placement.predicted_ms, 0.0),
            reason=f"{self._placer.policy}: {placement.reason}",
        )
        if engine is None:
            error = PacelineError(Reason.NO_ENGINE, placement.reason)
            decision.failure.CopyFrom(
                attempt_pb2.Failure(reason=error.reason.value, message=error.message, retryable=True)
            )
        else:
            decision.engine_id = engine.engine_id
            decision.executor_endpoint = engine.executor_endpoint
        return decision


def refused(request_id: str, error: PacelineError) -> router_pb2.Decision:
    """A decision that says what is wrong with what was asked."""
    return router_pb2.Decision(
        request_id=request_id, p_meet=-1.0, reason=error.message, failure=failure_of(error)
    )


def _own_cdfs(specs: Sequence[router_pb2.RouteSpec]) -> list[lengths.FloatArray | PacelineError]:
    """CDFs of the estimates that came with the specs: of all at once, and one by one when one is malformed."""
    if not specs:
        return []
    try:
        rows = np.array([spec.estimate.probabilities for spec in specs], dtype=np.float64)
        return list(lengths.cdf_from_probabilities(rows))
    except ValueError as error:
        if len(specs) == 1:
            return [invalid(f"estimate: {error}", field="estimate")]
    return [cdf for spec in specs for cdf in _own_cdfs([spec])]

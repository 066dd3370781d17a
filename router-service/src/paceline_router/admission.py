"""The way in: from a client's spec to a request with an engine, or a refusal that says why."""

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Final, Protocol

import numpy as np

from paceline.predictor.v1 import predictor_pb2
from paceline.router.v1 import generation_pb2
from paceline_core.slo import OnMiss, Slo, SloClass
from paceline_router.chat import ChatTemplates
from paceline_router.clock import Clock
from paceline_router.config import RouterConfig
from paceline_router.dispatch import Dispatcher
from paceline_router.durability import Durability
from paceline_router.fleet import Fleet
from paceline_router.ledger import Ledger, duplicate
from paceline_router.lifecycle import Lifecycle
from paceline_router.outcomes import length_query
from paceline_router.predictor_link import PredictorLink
from paceline_router.prompt_size import PromptSizes
from paceline_router.request import Arrival, LiveRequest
from paceline_router.slo_defaults import default_slo
from paceline_router.slo_wire import declared, to_wire, wanted_on_miss
from paceline_router.task_plan import TaskPlanner
from paceline_router.tasks import TaskBook
from paceline_router.validation import check_spec
from paceline_runtime.errors import PacelineError, Reason, invalid

log = logging.getLogger(__name__)

_OFF_LOOP_BYTES: Final = 64 * 1024
"""Prompts over this size are rendered in a thread: below it rendering takes less than 5 ms."""
_OFF_LOOP_MESSAGES: Final = 512
"""And so are conversations of more messages: each costs about 5 us."""
_STORE_LOOKUP_S: Final = 0.5


class KnownRequests(Protocol):
    """The part of the store that knows ids of long ago."""

    async def has_request(self, request_id: str) -> bool: ...


class Admission:
    """Checks, clocks, resolves, renders, predicts, records and places new requests."""

    def __init__(
        self,
        config: RouterConfig,
        ledger: Ledger,
        fleet: Fleet,
        dispatcher: Dispatcher,
        lifecycle: Lifecycle,
        durability: Durability,
        predictor: PredictorLink,
        tasks: TaskBook,
        task_plan: TaskPlanner,
        sizes: PromptSizes,
        store: KnownRequests | None,
        clock: Clock,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._durability = durability
        self._predictor = predictor
        self._tasks = tasks
        self._task_plan = task_plan
        self._sizes = sizes
        self._store = store
        self._clock = clock
        self._templates = ChatTemplates(config.chat_template)
        self._random = random.SystemRandom()
        self._refining: set[asyncio.Task[None]] = set()
        self.on_begin: Callable[[LiveRequest], None] = lambda request: None

    async def submit(
        self, given: generation_pb2.GenerationSpec, tenant: str, read: Callable[[LiveRequest], None]
    ) -> LiveRequest:
        """Take a request in and bring it to an engine.

        `read` attaches its first reader, as soon as the request exists. Raises PacelineError while it does
        not exist yet; later refusals end the request as REJECTED, and its readers hear of it.
        """
        arrival = Arrival(self._clock.now_ms(), self._clock.unix_ms())
        check_spec(given, self._config.max_prompt_bytes)
        slo = declared(given.slo)
        spec = self._resolved(given, tenant)
        request = LiveRequest(spec.request_id, spec, slo or Slo(SloClass.BEST_EFFORT), spec.tenant, arrival)
        request.max_wait_ms = spec.max_wait_ms or self._config.max_wait_ms
        self._ledger.add(request)
        self.on_begin(request)
        read(request)
        try:
            await self._prepare(request, given, slo)
            # Its client may have cancelled it meanwhile, or an earlier life's request claimed the id.
            if not request.ended and not self._dispatcher.go(request, "new"):
                raise self._no_engine(request)
        except PacelineError as error:
            if not request.ended:
                self._lifecycle.refuse(request, error)
        except Exception:
            # A defect, here or in a model's template, must not leave a request that never ends.
            log.exception("admission failed unexpectedly", extra={"request_id": request.request_id})
            if not request.ended:
                message = "the router failed to take the request in; its log has more"
                self._lifecycle.refuse(request, PacelineError(Reason.INTERNAL, message))
        except asyncio.CancelledError:
            if not request.ended:
                self._lifecycle.refuse(
                    request, PacelineError(Reason.CANCELLED, "the caller left during admission")
                )
            raise
        return request

    def tenant_of(self, claimed: str, caller: str) -> str:
        """The tenant a request runs under. Raises PERMISSION_DENIED when the caller may not speak for it."""
        if not claimed or claimed == caller:
            return caller
        if caller and caller not in self._config.front_doors:
            message = f"tenant {caller!r} may not send requests as {claimed!r}; see router.front_doors"
            raise PacelineError(Reason.PERMISSION_DENIED, message)
        return claimed

    def scope_of(self, caller: str) -> str:
        """The tenant whose requests a caller may see; empty: all, for front doors, operators and without
        authentication."""
        return "" if caller in (*self._config.front_doors, *self._config.operators) else caller

    def check_operator(self, caller: str) -> None:
        """Raises PERMISSION_DENIED when the caller may not change the fleet."""
        if caller and caller not in self._config.operators:
            message = f"tenant {caller!r} may not change the fleet; see router.operators"
            raise PacelineError(Reason.PERMISSION_DENIED, message)

    def _resolved(self, given: generation_pb2.GenerationSpec, caller: str) -> generation_pb2.GenerationSpec:
        """The spec with defaults filled in and without its input. Raises UNKNOWN_MODEL, NO_ENGINE."""
        spec = generation_pb2.GenerationSpec()
        spec.CopyFrom(given)
        spec.ClearField("input")
        spec.request_id = given.request_id or uuid.uuid4().hex
        spec.tenant = self.tenant_of(given.tenant, caller)
        # A name that is not a model's may be that of an adapter, as OpenAI's interface has one field for both.
        unknown = given.model and not given.adapter and given.model not in self._fleet.models()
        if unknown and (model := self._fleet.model_with(given.model)):
            spec.model, spec.adapter = model, given.model
        spec.model = self.model_of(spec.model)
        if spec.adapter and not self._fleet.adapts(spec.model, spec.adapter):
            message = f"model {spec.model!r} is served without an adapter {spec.adapter[:200]!r}"
            raise PacelineError(Reason.UNKNOWN_MODEL, message, metadata={"field": "adapter"})
        if not spec.durability:
            spec.durability = generation_pb2.DURABILITY_ASYNC
        if spec.durability == generation_pb2.DURABILITY_ASYNC and not self._durability.enabled:
            # Say what is kept, not what was meant: without a store nothing outlives the processes.
            spec.durability = generation_pb2.DURABILITY_NONE
        if not spec.on_disconnect:
            spec.on_disconnect = generation_pb2.ON_DISCONNECT_DETACH
        if not spec.sampling.HasField("seed"):
            spec.sampling.seed = self._random.getrandbits(63)
        return spec

    def model_of(self, asked: str) -> str:
        """The model that serves a request. Raises NO_ENGINE, UNKNOWN_MODEL, INVALID_ARGUMENT."""
        served = self._fleet.models()
        if not served:
            raise PacelineError(
                Reason.NO_ENGINE,
                "no engine has joined this router yet",
                retry_after_ms=self._config.retry_after_ms,
            )
        if not asked and len(served) > 1:
            raise invalid(f"several models are served, name one of: {', '.join(served)}", field="model")
        if asked and asked not in served:
            message = f"model {asked[:200]!r} is not served here; served: {', '.join(served)}"
            raise PacelineError(Reason.UNKNOWN_MODEL, message, metadata={"field": "model"})
        return asked or served[0]

    async def _prepare(
        self, request: LiveRequest, given: generation_pb2.GenerationSpec, slo: Slo | None
    ) -> None:
        """Everything that must be known before a placement."""
        await self._render(request, given)
        self._check_context(request)
        request.max_tokens = request.spec.max_tokens or self._default_max_tokens(request)
        request.spec.max_tokens = request.max_tokens
        graph = None
        if slo is not None and slo.slo_class is SloClass.TASK:
            graph = self._tasks.arriving(request, slo.task_id)
        query = length_query(request)
        follows = (slo is not None or given.streaming) and self._predictor.answers
        if follows and self._fleet.idle(request.spec.model):
            # Nothing waits anywhere, so the estimate decides nothing yet: it may follow the request.
            request.estimate = self._predictor.own(query, source="router")
            self._follow(self._refine(request, query))
            if graph is not None:
                self._follow(self._task_plan.arriving(request, graph))
            predicted = forecast = None
        else:
            predicted = asyncio.create_task(self._predictor.estimate(query))
            forecast = (
                asyncio.create_task(self._task_plan.arriving(request, graph)) if graph is not None else None
            )
        # An id of the client's may have been used before this life. Asked at the same time as the predictor.
        if given.request_id and await self._known_to_store(request.request_id):
            raise duplicate(request.request_id)
        if predicted is not None:
            request.estimate = await predicted
        if forecast is not None:
            await forecast
        if request.ended:
            return
        self._set_slo(request, given, slo)
        await self._durability.admit(request)

    def _follow(self, work: Coroutine[None, None, None]) -> None:
        """What the request does not wait for."""
        task = asyncio.create_task(work, name="refine")
        self._refining.add(task)
        task.add_done_callback(self._refining.discard)

    async def _refine(self, request: LiveRequest, query: predictor_pb2.LengthQuery) -> None:
        """Ask the predictor, and let the scheduler know when it has answered."""
        estimate = await self._predictor.estimate(query)
        if request.ended or estimate.source == "fallback":
            return
        request.estimate = estimate
        if request.attempt is not None and request.revised is None:
            request.attempt.engine.link.reestimate(request.attempt.key, estimate.message)

    async def _render(self, request: LiveRequest, given: generation_pb2.GenerationSpec) -> None:
        kind = given.WhichOneof("input")
        if kind == "token_ids":
            request.prompt_ids = given.token_ids
            request.prompt_tokens = len(given.token_ids) // 4
            if int(np.frombuffer(given.token_ids, "<i4").min()) < 0:
                raise invalid("token ids must not be negative", field="token_ids")
            return
        if kind == "text":
            text = given.text
        else:
            capabilities = next(e.capabilities for e in self._fleet if e.model == request.spec.model)
            request.turn_index = sum(m.role == "user" for m in given.messages.messages) - 1
            if given.ByteSize() > _OFF_LOOP_BYTES or len(given.messages.messages) > _OFF_LOOP_MESSAGES:
                text = await asyncio.to_thread(self._templates.render, capabilities, given.messages)
            else:
                text = self._templates.render(capabilities, given.messages)
        request.text = text.encode()
        if not request.text:
            raise invalid("the prompt is empty after the chat template", field="messages")
        request.prompt_tokens = self._sizes.estimate(request.spec.model, len(request.text))

    def _check_context(self, request: LiveRequest) -> None:
        longest = max(
            (e.capabilities.max_context_tokens for e in self._fleet if e.model == request.spec.model),
            default=0,
        )
        # Of text the count is an estimate: only what cannot fit by far is refused here, the engine refuses
        # the rest.
        least = request.prompt_tokens if request.prompt_ids else request.prompt_tokens / 4
        if longest and least >= longest:
            about = "" if request.prompt_ids else "about "
            message = (
                f"the prompt has {about}{request.prompt_tokens} tokens; the longest context is {longest}"
            )
            raise PacelineError(Reason.CONTEXT_LENGTH_EXCEEDED, message)

    def _default_max_tokens(self, request: LiveRequest) -> int:
        room = max(
            (e.capabilities.max_context_tokens for e in self._fleet if e.model == request.spec.model),
            default=0,
        )
        left = max(room - request.prompt_tokens, 1) if room else self._config.default_max_tokens
        return min(self._config.default_max_tokens, left)

    def _set_slo(self, request: LiveRequest, given: generation_pb2.GenerationSpec, slo: Slo | None) -> None:
        if slo is None:
            assert request.estimate is not None
            slo = default_slo(
                self._config.slo,
                (e for e in self._fleet if e.model == request.spec.model),
                streaming=given.streaming,
                prompt_tokens=request.prompt_tokens,
                p90_tokens=request.estimate.p90,
            )
            # Who promised nothing by a budget of its own is not turned away for missing the default one.
            slo = replace(slo, on_miss=wanted_on_miss(given.slo) or OnMiss.FINISH)
        request.slo, request.budget_ms = slo, slo.e2e_ms
        if slo.slo_class is SloClass.TASK:
            request.task_id = slo.task_id
            task = self._tasks.join(request, slo.e2e_ms)
            request.slo = replace(slo, e2e_ms=task.e2e_ms)
            request.budget_ms = task.deadline_ms - request.arrival.ms
            self._task_plan.joined(request, task)
        request.spec.slo.CopyFrom(to_wire(request.slo, given.slo))

    async def _known_to_store(self, request_id: str) -> bool:
        if self._store is None or self._durability.degraded:
            return False
        try:
            async with asyncio.timeout(_STORE_LOOKUP_S):
                return await self._store.has_request(request_id)
        except (PacelineError, TimeoutError):
            # The store is no part of serving: without it an id of long ago goes unnoticed.
            log.warning("the store was not asked for a duplicate id", extra={"request_id": request_id})
            return False

    def _no_engine(self, request: LiveRequest) -> PacelineError:
        _, _, detail = request.events[-1]
        return PacelineError(
            Reason.NO_ENGINE,
            f"no engine can take the request: {detail}",
            retry_after_ms=self._config.retry_after_ms,
        )

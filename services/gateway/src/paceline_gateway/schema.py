"""What OpenAI's two generation endpoints have in common, checked by pydantic, and its way to `GenerationSpec`."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paceline.common.v1 import attempt_pb2
from paceline_gateway.openai_errors import coded
from paceline_runtime.errors import PacelineError

M = TypeVar("M", bound=BaseModel)

_MAX_STOPS = 16
_MAX_STOP_BYTES = 256
_MAX_LOGIT_BIAS = 1024
# The wire takes 0 as "off", while OpenAI takes it as "only the most likely token": the smallest mass says the latter.
_LEAST_TOP_P = 1e-6
_SEED_MASK = (1 << 64) - 1
# Parts of a pydantic location that name a variant of a type and not a place in the request.
_VARIANTS = frozenset({"str", "int", "float", "bool", "none"})

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class EdgeModel(BaseModel):
    """A part of a request: no conversion of types, unknown fields ignored as OpenAI-compatible servers do."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class StreamOptions(EdgeModel):
    """`stream_options`."""

    include_usage: bool | None = None


class GenerationParams(EdgeModel):
    """Fields of `/v1/chat/completions` and `/v1/completions` alike; the last six are the extensions vLLM has."""

    model: str | None = Field(default=None, max_length=256)
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=_MAX_LOGIT_BIAS)
    stop: str | list[str] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = Field(default=None, max_length=64)

    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=128)
    cache_salt: str | None = Field(default=None, max_length=128)
    return_token_ids: bool | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that carries the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self) -> attempt_pb2.SamplingParams:
        """As the line writes it. Raises PacelineError for what the types alone do not tell."""
        return attempt_pb2.SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else max(self.top_p, _LEAST_TOP_P),
            top_k=max(self.top_k or 0, 0),
            seed=None if self.seed is None else self.seed & _SEED_MASK,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 0.0,
            logit_bias=self._logit_bias(),
            stop=self._stops(),
            stop_token_ids=self.stop_token_ids or (),
            ignore_eos=bool(self.ignore_eos),
        )

    def check_stream_options(self) -> None:
        """Refuse stream options of a request that does not stream."""
        if self.stream_options is not None and not self.stream:
            raise coded(
                "stream_options may only be set when stream is true",
                param="stream_options",
                code="invalid_value",
            )

    def _stops(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > _MAX_STOPS:
            raise coded(f"at most {_MAX_STOPS} stop strings are taken", param="stop", code="invalid_value")
        for stop in stops:
            if not 0 < len(stop.encode("utf-8", "replace")) <= _MAX_STOP_BYTES:
                raise coded(
                    f"a stop string has 1 to {_MAX_STOP_BYTES} bytes", param="stop", code="invalid_value"
                )
        return stops

    def _logit_bias(self) -> dict[int, float]:
        bias: dict[int, float] = {}
        for key, value in (self.logit_bias or {}).items():
            if not (key.isascii() and key.isdigit() and int(key) < 2**31):
                raise coded(f"{key[:40]!r} is not a token id", param="logit_bias", code="invalid_value")
            if not -100 <= value <= 100:
                raise coded(
                    f"the bias of token {key} must be from -100 to 100",
                    param="logit_bias",
                    code="invalid_value",
                )
            bias[int(key)] = value
        return bias


def parse(model: type[M], body: dict[str, Any]) -> M:
    """The body as `model`. Raises a 400 that names the first field at fault."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _first_fault(error) from None


def check_text(text: str, param: str) -> str:
    """Refuse text that UTF-8 cannot carry: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise coded(
            f"{param} holds half of a surrogate pair, which is not text", param=param, code="invalid_value"
        ) from None
    return text


def _first_fault(error: ValidationError) -> PacelineError:
    fault = error.errors(include_url=False, include_context=False)[0]
    param = ""
    for part in fault["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part in _VARIANTS or "[" in part or part.startswith(("constrained-", "function-")):
            break
        else:
            param += f".{part}" if param else part
    missing = fault["type"] == "missing"
    text = f"{param} is required" if missing else f"{param}: {fault['msg']}"
    return coded(text, param=param or None, code="missing_required_parameter" if missing else "invalid_value")

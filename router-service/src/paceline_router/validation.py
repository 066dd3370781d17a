"""What a GenerationSpec must be like: every check that needs nothing but the spec."""

import math
import re
from typing import Final

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2
from paceline_runtime.errors import Reason, invalid

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
ROLES: Final = frozenset({"system", "user", "assistant", "tool"})
MAX_STOP: Final = 16
MAX_STOP_BYTES: Final = 256
MAX_STOP_TOKENS: Final = 256
MAX_LOGIT_BIAS: Final = 1024
MAX_NAME_CHARS: Final = 64
MAX_PARENTS: Final = 64
MAX_SALT_BYTES: Final = 256
MAX_MESSAGES: Final = 10_000
MAX_PRIORITY: Final = 100
MAX_OUTPUT_TOKENS: Final = 1_000_000
MAX_WAIT_MS: Final = 24 * 3600 * 1000.0


def check_spec(spec: generation_pb2.GenerationSpec, max_prompt_bytes: int) -> None:
    """Raises INVALID_ARGUMENT (or MESSAGE_TOO_LARGE) that names the field and says what it must be."""
    if spec.request_id and not REQUEST_ID.fullmatch(spec.request_id):
        raise invalid("request_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -", field="request_id")
    _check_input(spec, max_prompt_bytes)
    if spec.max_tokens > MAX_OUTPUT_TOKENS:
        raise invalid(
            f"max_tokens must be at most {MAX_OUTPUT_TOKENS}, got {spec.max_tokens}", field="max_tokens"
        )
    check_sampling(spec.sampling)
    check_name("app", spec.app)
    check_name("tenant", spec.tenant)
    if spec.slo.WhichOneof("target") == "task":
        check_task(spec.slo.task.task_id)
        check_name("stage", spec.slo.task.stage)
        parents = spec.slo.task.parent_request_ids
        if len(parents) > MAX_PARENTS or not all(map(REQUEST_ID.fullmatch, parents)):
            message = f"parent_request_ids must be at most {MAX_PARENTS} request ids"
            raise invalid(message, field="slo", reason=Reason.INVALID_SLO)
    if not -MAX_PRIORITY <= spec.priority <= MAX_PRIORITY:
        raise invalid(
            f"priority must be -{MAX_PRIORITY} to {MAX_PRIORITY}, got {spec.priority}", field="priority"
        )
    if not 0 <= spec.max_wait_ms <= MAX_WAIT_MS:
        raise invalid(
            f"max_wait_ms must be 0 to {MAX_WAIT_MS:.0f}, got {spec.max_wait_ms:g}", field="max_wait_ms"
        )
    if len(spec.cache_salt.encode()) > MAX_SALT_BYTES:
        raise invalid(f"cache_salt must be at most {MAX_SALT_BYTES} bytes", field="cache_salt")
    if spec.durability not in generation_pb2.Durability.values():
        raise invalid(f"durability {spec.durability} is not known", field="durability")
    if spec.on_disconnect not in generation_pb2.OnDisconnect.values():
        raise invalid(f"on_disconnect {spec.on_disconnect} is not known", field="on_disconnect")


def check_name(field: str, name: str) -> None:
    """Raises INVALID_ARGUMENT on what cannot be a label of a metric or a field of a log line."""
    if len(name) > MAX_NAME_CHARS or not name.isprintable():
        message = f"{field} must be at most {MAX_NAME_CHARS} printable characters, got {name[:80]!r}"
        raise invalid(message, field=field)


def check_task(task_id: str) -> None:
    """Raises INVALID_SLO on a task id that could not be used everywhere; empty: one is made up."""
    if task_id and not REQUEST_ID.fullmatch(task_id):
        message = f"task_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -, got {task_id[:160]!r}"
        raise invalid(message, field="slo", reason=Reason.INVALID_SLO)


def check_sampling(sampling: attempt_pb2.SamplingParams) -> None:
    """Raises INVALID_ARGUMENT on a value out of its range; NaN is out of every range."""
    _in_range("temperature", sampling.temperature, 0, 100)
    _in_range("top_p", sampling.top_p, 0, 1)
    _in_range("presence_penalty", sampling.presence_penalty, -2, 2)
    _in_range("frequency_penalty", sampling.frequency_penalty, -2, 2)
    _in_range("repetition_penalty", sampling.repetition_penalty, 0, 100)
    if len(sampling.stop) > MAX_STOP:
        raise invalid(f"at most {MAX_STOP} stop strings, got {len(sampling.stop)}", field="sampling.stop")
    for stop in sampling.stop:
        size = len(stop.encode())
        if not 1 <= size <= MAX_STOP_BYTES:
            message = f"a stop string must be 1 to {MAX_STOP_BYTES} bytes, got {size}"
            raise invalid(message, field="sampling.stop")
    if len(sampling.stop_token_ids) > MAX_STOP_TOKENS:
        raise invalid(f"at most {MAX_STOP_TOKENS} stop token ids", field="sampling.stop_token_ids")
    if any(token < 0 for token in sampling.stop_token_ids):
        raise invalid("stop token ids must not be negative", field="sampling.stop_token_ids")
    if len(sampling.logit_bias) > MAX_LOGIT_BIAS:
        raise invalid(f"at most {MAX_LOGIT_BIAS} logit biases", field="sampling.logit_bias")
    for token, bias in sampling.logit_bias.items():
        if token < 0:
            raise invalid("logit_bias token ids must not be negative", field="sampling.logit_bias")
        _in_range(f"logit_bias[{token}]", bias, -100, 100)


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if math.isnan(value) or not low <= value <= high:
        raise invalid(f"{name} must be {low:g} to {high:g}, got {value:g}", field=f"sampling.{name}")


def _check_input(spec: generation_pb2.GenerationSpec, max_prompt_bytes: int) -> None:
    kind = spec.WhichOneof("input")
    if kind is None:
        raise invalid("the request has no input: give messages, text or token_ids", field="input")
    if kind == "messages":
        messages = spec.messages.messages
        if not messages:
            raise invalid("messages is empty: give at least one", field="messages")
        if len(messages) > MAX_MESSAGES:
            raise invalid(f"at most {MAX_MESSAGES} messages, got {len(messages)}", field="messages")
        for place, message in enumerate(messages):
            if message.role not in ROLES:
                known = ", ".join(sorted(ROLES))
                raise invalid(
                    f"messages[{place}].role must be one of {known}, got {message.role[:80]!r}",
                    field="messages",
                )
        if not any(message.content.strip() for message in messages):
            raise invalid("the prompt is empty: no message has content", field="messages")
        size = sum(len(m.content.encode()) + len(m.role) + len(m.name) for m in messages)
    elif kind == "text":
        size = len(spec.text.encode())
        if not size:
            raise invalid("the prompt is empty", field="text")
    else:
        size = len(spec.token_ids)
        if not size:
            raise invalid("the prompt is empty", field="token_ids")
        if size % 4:
            raise invalid("token_ids must hold little-endian int32, four bytes each", field="token_ids")
    if size > max_prompt_bytes:
        message_text = f"the input has {size} bytes; at most {max_prompt_bytes} are taken"
        raise invalid(message_text, field="input", reason=Reason.INVALID_ARGUMENT)

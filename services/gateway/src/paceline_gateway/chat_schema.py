"""`/v1/chat/completions`: the request, and its conversation in the form of the line."""

import json
from typing import Any

from pydantic import Field

from paceline.router.v1 import generation_pb2 as pb
from paceline_gateway.openai_errors import coded, unsupported
from paceline_gateway.schema import EdgeModel, GenerationParams, check_text

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_MAX_MESSAGES = 4096


class ChatMessage(EdgeModel):
    """One message as the client wrote it."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = Field(default=None, max_length=256)
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ChatRequest(GenerationParams):
    """The request."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=_MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    tools: list[dict[str, Any]] | None = None

    def output_tokens(self) -> int:
        """Most output tokens; 0: the default. The two names must not disagree."""
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise coded(
                "max_tokens and max_completion_tokens are one limit: send one of them",
                param="max_completion_tokens",
                code="invalid_value",
            )
        return new or old or 0

    def conversation(self) -> pb.Messages:
        """The messages with roles and contents of the line. Raises a 400 naming the message at fault."""
        return pb.Messages(
            messages=[_message(message, f"messages[{i}]") for i, message in enumerate(self.messages)]
        )


def _message(message: ChatMessage, where: str) -> pb.Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise coded(
            f"{where}.role must be one of {', '.join(_ROLES)}, got {message.role[:80]!r}",
            param=f"{where}.role",
            code="invalid_value",
        )
    content = _content(message, where)
    if message.tool_calls:
        # The line carries text alone; earlier calls stay visible to the model as the JSON they were.
        calls = json.dumps([call.get("function", call) for call in message.tool_calls], ensure_ascii=False)
        content = f"{content}\n{calls}" if content else calls
    elif message.content is None and role != "assistant":
        raise coded(
            f"{where}.content is required", param=f"{where}.content", code="missing_required_parameter"
        )
    name = message.name or (message.tool_call_id or "" if role == "tool" else "")
    return pb.Message(
        role=role, content=check_text(content, f"{where}.content"), name=check_text(name, f"{where}.name")
    )


def _content(message: ChatMessage, where: str) -> str:
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return message.content
    texts: list[str] = []
    for i, part in enumerate(message.content):
        at = f"{where}.content[{i}]"
        kind = part.get("type")
        if kind != "text":
            raise unsupported(
                f"{at}.type", f"{at}: only parts of type 'text' are understood, got {str(kind)[:80]!r}"
            )
        text = part.get("text")
        if not isinstance(text, str):
            raise coded(f"{at}.text must be a string", param=f"{at}.text", code="invalid_value")
        texts.append(text)
    return "".join(texts)

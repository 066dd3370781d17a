"""Answers as OpenAI writes them: chat and completion, whole and in chunks.

A chunk's frame is the same for every token of a request, so it is built once and only the text is encoded per chunk.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2 as pb

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keepalive\n\n"

_encode_text = json.encoder.encode_basestring_ascii


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What every part of one answer repeats. `created`: Unix seconds."""

    request_id: str
    model: str
    created: int
    include_usage: bool

    @classmethod
    def of(cls, accepted: pb.Accepted, *, include_usage: bool) -> "ReplyHead":
        """The head of an accepted request's answer."""
        created = accepted.arrived_unix_ms // 1000 or int(time.time())
        return cls(accepted.request_id, accepted.model, created, include_usage)


class ReplyForm(Protocol):
    """How one endpoint writes its answers."""

    def first(self) -> bytes:
        """Events ahead of all text; may be empty."""

    def text(self, text: str, ids: Sequence[int] = ()) -> bytes:
        """One event with text, and the ids of its tokens if they were asked for."""

    def last(self, finished: pb.Finished) -> bytes:
        """Events with the finish reason and, if asked for, the usage."""

    def whole(self, text: str, finished: pb.Finished, ids: Sequence[int] | None = None) -> bytes:
        """The body of an answer that is not streamed."""


class ChatReply:
    """`chat.completion` and `chat.completion.chunk`."""

    def __init__(self, head: ReplyHead) -> None:
        self._head = head
        self._id = f"chatcmpl-{head.request_id}"
        frame = _chunk_json(
            head, self._id, "chat.completion.chunk", {"index": 0, "delta": {"content": "%TEXT%"}}
        )
        self._before, self._after = _split(frame)

    def first(self) -> bytes:
        """The role."""
        return self._event({"index": 0, "delta": {"role": "assistant", "content": ""}})

    def text(self, text: str, ids: Sequence[int] = ()) -> bytes:
        """One event with text, and the ids of its tokens if they were asked for."""
        # The text closes an object of its own; ids stand beside that.
        closed, rest = self._after[:1], self._after[1:]
        return self._before + _encode_text(text).encode() + closed + _ids_json(ids) + rest

    def last(self, finished: pb.Finished) -> bytes:
        """The finish reason, then the usage."""
        event = self._event({"index": 0, "delta": {}}, finish_reason(finished))
        return event + _usage_event(self._head, self._id, "chat.completion.chunk", finished)

    def whole(self, text: str, finished: pb.Finished, ids: Sequence[int] | None = None) -> bytes:
        """The body of an answer that is not streamed."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(finished)}
        _add_ids(choice, ids)
        return _whole(self._head, self._id, "chat.completion", choice, finished)

    def _event(self, choice: dict[str, Any], reason: str | None = None) -> bytes:
        return _data(_chunk_json(self._head, self._id, "chat.completion.chunk", choice, reason))


class CompletionReply:
    """`text_completion`, which looks the same whole and in chunks."""

    def __init__(self, head: ReplyHead) -> None:
        self._head = head
        self._id = f"cmpl-{head.request_id}"
        self._before, self._after = _split(
            _chunk_json(head, self._id, "text_completion", {"index": 0, "text": "%TEXT%"})
        )

    def first(self) -> bytes:
        """Nothing comes ahead of the text."""
        return b""

    def text(self, text: str, ids: Sequence[int] = ()) -> bytes:
        """One event with text, and the ids of its tokens if they were asked for."""
        return self._before + _encode_text(text).encode() + _ids_json(ids) + self._after

    def last(self, finished: pb.Finished) -> bytes:
        """The finish reason, then the usage."""
        choice = {"index": 0, "text": ""}
        event = _data(_chunk_json(self._head, self._id, "text_completion", choice, finish_reason(finished)))
        return event + _usage_event(self._head, self._id, "text_completion", finished)

    def whole(self, text: str, finished: pb.Finished, ids: Sequence[int] | None = None) -> bytes:
        """The body of an answer that is not streamed."""
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason(finished)}
        _add_ids(choice, ids)
        return _whole(self._head, self._id, "text_completion", choice, finished)


def finish_reason(finished: pb.Finished) -> str:
    """`length` when a limit ended it, else `stop`."""
    return "length" if finished.finish_reason == attempt_pb2.FINISH_REASON_LENGTH else "stop"


def _ids_json(ids: Sequence[int]) -> bytes:
    """Beside the text within its object, under the name that vLLM uses."""
    return f',"token_ids":[{",".join(map(str, ids))}]'.encode() if ids else b""


def _add_ids(choice: dict[str, Any], ids: Sequence[int] | None) -> None:
    if ids is not None:
        choice["token_ids"] = list(ids)


def usage(finished: pb.Finished) -> dict[str, Any]:
    """Token counts."""
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.output_tokens,
        "total_tokens": finished.prompt_tokens + finished.output_tokens,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
    }


def _chunk_json(
    head: ReplyHead, reply_id: str, kind: str, choice: dict[str, Any], reason: str | None = None
) -> str:
    chunk: dict[str, Any] = {
        "id": reply_id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "choices": [{**choice, "logprobs": None, "finish_reason": reason}],
    }
    if head.include_usage:
        # Every chunk but the last names it, as null.
        chunk["usage"] = None
    return json.dumps(chunk, separators=(",", ":"))


def _usage_event(head: ReplyHead, reply_id: str, kind: str, finished: pb.Finished) -> bytes:
    if not head.include_usage:
        return b""
    chunk = {
        "id": reply_id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "choices": [],
        "usage": usage(finished),
    }
    return _data(json.dumps(chunk, separators=(",", ":")))


def _whole(head: ReplyHead, reply_id: str, kind: str, choice: dict[str, Any], finished: pb.Finished) -> bytes:
    reply = {
        "id": reply_id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "choices": [choice],
        "usage": usage(finished),
        "system_fingerprint": None,
    }
    return json.dumps(reply, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _data(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


def _split(frame: str) -> tuple[bytes, bytes]:
    """The event's bytes before and after its text."""
    # The text stands last among the values that a client chose, so the last mark is ours.
    before, _, after = frame.rpartition('"%TEXT%"')
    return f"data: {before}".encode(), f"{after}\n\n".encode()

"""What travels in place of KV between simulated engines: a label and the ids. There is no cache to copy."""

import json
from dataclasses import dataclass
from typing import Self

import numpy as np

from paceline_executor.contract import EngineError, Ids
from paceline_executor.simulated.attempt import Attempt

_LABEL = "simulated KV state, no tensors"


@dataclass(frozen=True)
class SimulatedState:
    """The positions of one attempt."""

    model_hash: str
    prompt_tokens: int
    ids: Ids
    """Ids of the positions, prompt then output."""

    @classmethod
    def of(cls, attempt: Attempt, model_hash: str) -> Self:
        """The state of an attempt now."""
        outputs, _, _ = attempt.answer.slice(0)
        ids = np.concatenate([attempt.prompt_ids, outputs])[: attempt.kv_tokens].astype(np.int32)
        return cls(model_hash, attempt.prompt_tokens, ids)

    def pack(self) -> bytes:
        """A line of JSON, then the ids."""
        head = {"label": _LABEL, "model_hash": self.model_hash, "prompt_tokens": self.prompt_tokens}
        return json.dumps(head).encode() + b"\n" + self.ids.astype("<i4").tobytes()

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The reverse of `pack`; raises `EngineError` STATE_CORRUPT for anything else."""
        head, _, ids = data.partition(b"\n")
        try:
            fields = json.loads(head)
            if fields["label"] != _LABEL:
                raise ValueError("it is not a simulated state")
            return cls(
                str(fields["model_hash"]),
                int(fields["prompt_tokens"]),
                np.frombuffer(ids, "<i4").astype(np.int32),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError("STATE_CORRUPT", f"the KV state cannot be read: {error}") from error

    def usable_tokens(self, attempt: Attempt, model_hash: str) -> int:
        """Leading positions that are the attempt's own ids, at least one; raises `EngineError`."""
        outputs, _, _ = attempt.answer.slice(0)
        known = np.concatenate([attempt.prompt_ids, outputs])
        both = min(len(known), len(self.ids))
        differing = np.flatnonzero(known[:both] != self.ids[:both])
        tokens = int(differing[0]) if len(differing) else both
        if self.model_hash != model_hash or self.prompt_tokens != attempt.prompt_tokens or tokens == 0:
            raise EngineError("STATE_INCOMPATIBLE", "the pulled state is of another model or prompt")
        return tokens

"""What an attempt must be before an engine takes it: one answer for all engines."""

import math
from collections.abc import Collection
from typing import Protocol

from paceline_executor.contract import AttemptSpec, EngineError, Ids, Sampling

_MAX_STOPS = 16
_MAX_STOP_BYTES = 256
_MAX_BIAS = 100.0
_MAX_PENALTY = 100.0


class PromptTokenizer(Protocol):
    """What checking a prompt needs to know of a model."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    def longest_piece_bytes(self) -> int:
        """Bytes of the longest token."""

    def tokenize_prompt(self, text: str) -> Ids:
        """Token ids of a prompt."""


def prompt_ids_of(spec: AttemptSpec, model: PromptTokenizer, context_tokens: int) -> Ids:
    """Token ids of the prompt; raises `EngineError` with the reason a client should see."""
    if (spec.prompt_text is None) == (spec.prompt_ids is None):
        raise EngineError("INVALID_PROMPT", "give the prompt either as text or as token ids")
    if spec.prompt_ids is not None:
        ids = spec.prompt_ids.astype("int32")
        if len(ids) and not bool(((ids >= 0) & (ids < model.vocab_size)).all()):
            raise EngineError("INVALID_TOKEN_ID", f"prompt ids must be in 0..{model.vocab_size - 1}")
    else:
        text = spec.prompt_text or ""
        # Cheaper than tokenising megabytes: no token stands for more bytes than the longest piece.
        if len(text) > context_tokens * model.longest_piece_bytes:
            raise _too_long(f"more than {context_tokens}", context_tokens)
        ids = model.tokenize_prompt(text)
    if len(ids) == 0:
        raise EngineError("EMPTY_PROMPT", "the prompt has no tokens")
    if len(ids) >= context_tokens:
        raise _too_long(str(len(ids)), context_tokens)
    return ids


def check_spec(spec: AttemptSpec, vocab_size: int, adapters: Collection[str] = ()) -> None:
    """Refuse limits, forced ids, adapters and sampling that cannot be meant; raises `EngineError`."""
    if spec.adapter and spec.adapter not in adapters:
        known = f"it has {', '.join(adapters)}" if adapters else "it has none"
        raise EngineError("UNKNOWN_MODEL", f"this engine has no adapter {spec.adapter[:200]!r}; {known}")
    if spec.max_tokens < 1:
        raise EngineError("INVALID_MAX_TOKENS", "max_tokens must be at least 1")
    forced = spec.forced_ids
    if len(forced) and not bool(((forced >= 0) & (forced < vocab_size)).all()):
        raise EngineError("INVALID_TOKEN_ID", f"forced ids must be in 0..{vocab_size - 1}")
    check_sampling(spec.sampling, vocab_size)


def check_sampling(sampling: Sampling, vocab_size: int) -> None:
    """Refuse sampling parameters outside their ranges; raises `EngineError` INVALID_SAMPLING."""
    wrong: list[str] = []
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        wrong.append("temperature must be 0 or more")
    if not 0 < sampling.top_p <= 1:
        wrong.append("top_p must be in (0, 1]")
    if sampling.top_k < 0:
        wrong.append("top_k must be 0 or more")
    # Past these bounds logits overflow, and a sampler without finite logits has nothing to draw from.
    if not all(abs(p) <= _MAX_PENALTY for p in (sampling.presence_penalty, sampling.frequency_penalty)):
        wrong.append(f"presence and frequency penalties must be in -{_MAX_PENALTY:g}..{_MAX_PENALTY:g}")
    if not 1 / _MAX_PENALTY <= sampling.repetition_penalty <= _MAX_PENALTY:
        wrong.append(f"repetition_penalty must be in {1 / _MAX_PENALTY:g}..{_MAX_PENALTY:g}")
    if any(not 0 <= token < vocab_size or not abs(bias) <= _MAX_BIAS for token, bias in sampling.logit_bias):
        wrong.append(
            f"logit_bias takes token ids of the vocabulary and values in -{_MAX_BIAS:g}..{_MAX_BIAS:g}"
        )
    if len(sampling.stop) > _MAX_STOPS or any(len(stop.encode()) > _MAX_STOP_BYTES for stop in sampling.stop):
        wrong.append(f"at most {_MAX_STOPS} stop strings of at most {_MAX_STOP_BYTES} bytes each")
    if wrong:
        raise EngineError("INVALID_SAMPLING", "; ".join(wrong))


def _too_long(tokens: str, context_tokens: int) -> EngineError:
    return EngineError(
        "CONTEXT_LENGTH_EXCEEDED",
        f"the prompt has {tokens} tokens; this engine's context holds {context_tokens}, answer included",
    )

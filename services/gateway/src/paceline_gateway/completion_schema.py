"""`/v1/completions`: the request, and its prompt in the form of the line."""

import struct
from typing import Any

from pydantic import Field

from paceline_gateway.openai_errors import coded, unsupported
from paceline_gateway.schema import GenerationParams, check_text

_MAX_ID = 2**31


class CompletionRequest(GenerationParams):
    """The request. `prompt` is checked by `single_prompt`, whose messages are clearer than those of a union."""

    prompt: Any = Field(default=None)

    def single_prompt(self) -> str | bytes:
        """Text, or token ids as little-endian int32. Raises a 400 for anything but one prompt that is not empty."""
        prompt = self.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if prompt is None:
            raise coded("prompt is required", param="prompt", code="missing_required_parameter")
        if isinstance(prompt, str):
            if not prompt:
                raise coded("prompt must not be empty", param="prompt", code="invalid_value")
            return check_text(prompt, "prompt")
        if isinstance(prompt, list) and prompt:
            if all(type(one) is int and 0 <= one < _MAX_ID for one in prompt):
                return struct.pack(f"<{len(prompt)}i", *prompt)
            if all(isinstance(one, str) for one in prompt) or all(isinstance(one, list) for one in prompt):
                raise unsupported("prompt", "one prompt is answered per request: send the prompts one by one")
        raise coded(
            "prompt must be a string, a list of one string, or a list of token ids",
            param="prompt",
            code="invalid_value",
        )

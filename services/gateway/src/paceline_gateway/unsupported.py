"""Features that Paceline does not have: refused by name, never ignored, since ignoring them changes the answer."""

from collections.abc import Mapping
from typing import Any

from paceline_gateway.openai_errors import unsupported

# Field -> the values that ask for nothing.
_COMMON: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "prompt_logprobs": (0, False),
    "use_beam_search": (False,),
    "min_p": (0, 0.0),
    "min_tokens": (0,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "lora_request": (),
}
_CHAT: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"], []),
    "prediction": (),
    "web_search_options": (),
    "response_format": ({"type": "text"},),
}
_COMPLETION: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "logprobs": (),
    "suffix": ("",),
}
_WHY = {
    "n": "only one choice is generated per request: n must be 1",
    "response_format": "answers are plain text: response_format must be absent or {'type': 'text'}",
    "echo": "the prompt cannot be echoed",
    "logprobs": "log probabilities are not available",
}


def refuse_unsupported_chat(body: Mapping[str, Any]) -> None:
    """Raise a 400 naming the first feature in a chat request that Paceline does not have."""
    _refuse(body, _CHAT)
    tools, choice = body.get("tools"), body.get("tool_choice")
    if tools and choice != "none":
        raise unsupported("tools", "tools cannot be called: leave tools out, or send tool_choice 'none'")
    if choice is not None and choice not in ("none", "auto"):
        raise unsupported("tool_choice", "tools cannot be called: tool_choice must be 'none'")


def refuse_unsupported_completion(body: Mapping[str, Any]) -> None:
    """Raise a 400 naming the first feature in a completion request that Paceline does not have."""
    _refuse(body, _COMPLETION)


def _refuse(body: Mapping[str, Any], more: Mapping[str, tuple[Any, ...]]) -> None:
    for table in (_COMMON, more):
        for name, harmless in table.items():
            value = body.get(name)
            if value is not None and not any(type(value) is type(one) and value == one for one in harmless):
                raise unsupported(name, _WHY.get(name, f"{name} is not supported"))

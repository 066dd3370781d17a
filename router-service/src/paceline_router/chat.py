"""Chat templates: the model's own Jinja template turns a conversation into one prompt, in a sandbox."""

from collections import OrderedDict
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from paceline.common.v1 import engine_pb2
from paceline.router.v1 import generation_pb2
from paceline_runtime.errors import PacelineError, Reason, invalid

FALLBACK: Final = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}\n{% endfor %}<|assistant|>\n"
)
MAX_TEMPLATES: Final = 64


class ChatTemplates:
    """Compiled templates, kept by their text. `fallback` serves models that bring none."""

    def __init__(self, fallback: str = "") -> None:
        self._fallback = fallback or FALLBACK
        self._compiled: OrderedDict[str, Template] = OrderedDict()
        self._environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._environment.globals["raise_exception"] = _raise_exception
        # Templates get no loops longer than this from `range`: the sandbox bounds it at 100,000.

    def render(self, capabilities: engine_pb2.EngineCapabilities, messages: generation_pb2.Messages) -> str:
        """The prompt. Raises INVALID_ARGUMENT when the template refuses the conversation."""
        source = capabilities.chat_template or self._fallback
        turns = [_turn(message) for message in messages.messages]
        try:
            return self._template(source).render(
                messages=turns,
                add_generation_prompt=True,
                bos_token=capabilities.bos_token,
                eos_token=capabilities.eos_token,
            )
        except _Refused as error:
            raise invalid(
                f"the model's chat template refuses the conversation: {error}", field="messages"
            ) from None
        except SecurityError as error:
            raise PacelineError(
                Reason.FAILED_PRECONDITION, f"the model's chat template is unsafe: {error}"
            ) from None
        except (
            TemplateError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            OverflowError,
            ZeroDivisionError,
        ) as error:
            raise invalid(f"the model's chat template failed: {error}", field="messages") from None

    def _template(self, source: str) -> Template:
        template = self._compiled.get(source)
        if template is None:
            template = self._compiled[source] = self._environment.from_string(source)
            if len(self._compiled) > MAX_TEMPLATES:
                self._compiled.popitem(last=False)
        return template


class _Refused(Exception):
    """What a template says through raise_exception."""


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _turn(message: generation_pb2.Message) -> dict[str, Any]:
    turn = {"role": message.role, "content": message.content}
    if message.name:
        turn["name"] = message.name
    return turn

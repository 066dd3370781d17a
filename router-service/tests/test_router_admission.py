"""What is refused, with which words, and what a refusal leaves behind: nothing."""

import math

import pytest

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.router.v1 import generation_pb2, router_pb2
from paceline_router.chat import ChatTemplates
from paceline_runtime.errors import PacelineError, Reason

Sampling = attempt_pb2.SamplingParams


def slo(**fields):
    return slo_pb2.Slo(**fields)


def chat(*turns):
    return generation_pb2.Messages(messages=[generation_pb2.Message(role=r, content=c) for r, c in turns])


BAD = {
    "no input": ({"text": ""}, Reason.INVALID_ARGUMENT, "empty"),
    "no messages": ({"messages": chat()}, Reason.INVALID_ARGUMENT, "messages is empty"),
    "empty messages": ({"messages": chat(("user", " "))}, Reason.INVALID_ARGUMENT, "no message has content"),
    "role": ({"messages": chat(("robot", "hi"))}, Reason.INVALID_ARGUMENT, "role must be one of"),
    "ids": ({"token_ids": b"123"}, Reason.INVALID_ARGUMENT, "four bytes each"),
    "negative ids": ({"token_ids": b"\xff\xff\xff\xff"}, Reason.INVALID_ARGUMENT, "negative"),
    "model": ({"model": "gpt-9"}, Reason.UNKNOWN_MODEL, "served: sim"),
    "id": ({"request_id": "a b"}, Reason.INVALID_ARGUMENT, "request_id must be"),
    "app": ({"app": "x" * 65}, Reason.INVALID_ARGUMENT, "app must be"),
    "app with a line end": ({"app": "a\nlevel=error"}, Reason.INVALID_ARGUMENT, "printable"),
    "tenant with a line end": ({"tenant": "a\nb"}, Reason.INVALID_ARGUMENT, "printable"),
    "task id with a line end": (
        {"slo": slo(task=slo_pb2.TaskSlo(task_id="a\nb", e2e_ms=1.0))},
        Reason.INVALID_SLO,
        "task_id must be",
    ),
    "parents": (
        {"slo": slo(task=slo_pb2.TaskSlo(task_id="t", e2e_ms=1.0, parent_request_ids=["r"] * 65))},
        Reason.INVALID_SLO,
        "parent_request_ids",
    ),
    "priority": ({"priority": 101}, Reason.INVALID_ARGUMENT, "priority must be"),
    "max_wait": ({"max_wait_ms": -1.0}, Reason.INVALID_ARGUMENT, "max_wait_ms"),
    "nan wait": ({"max_wait_ms": math.nan}, Reason.INVALID_ARGUMENT, "max_wait_ms"),
    "temperature": ({"sampling": Sampling(temperature=-1)}, Reason.INVALID_ARGUMENT, "temperature"),
    "nan": ({"sampling": Sampling(temperature=math.nan)}, Reason.INVALID_ARGUMENT, "temperature"),
    "top_p": ({"sampling": Sampling(top_p=1.5)}, Reason.INVALID_ARGUMENT, "top_p"),
    "penalty": ({"sampling": Sampling(presence_penalty=3)}, Reason.INVALID_ARGUMENT, "presence_penalty"),
    "stops": ({"sampling": Sampling(stop=["x"] * 17)}, Reason.INVALID_ARGUMENT, "16 stop strings"),
    "empty stop": ({"sampling": Sampling(stop=[""])}, Reason.INVALID_ARGUMENT, "stop string"),
    "bias": ({"sampling": Sampling(logit_bias={1: 200})}, Reason.INVALID_ARGUMENT, "logit_bias"),
    "ttft": (
        {"slo": slo(latency=slo_pb2.LatencySlo(ttft_ms=-5, tbt_ms=5))},
        Reason.INVALID_SLO,
        "ttft_ms must be",
    ),
    "nan slo": ({"slo": slo(deadline=slo_pb2.DeadlineSlo(e2e_ms=math.nan))}, Reason.INVALID_SLO, "e2e_ms"),
    "task id": ({"slo": slo(task=slo_pb2.TaskSlo(e2e_ms=100))}, Reason.INVALID_SLO, "task id"),
    "context": ({"text": "word " * 3000}, Reason.CONTEXT_LENGTH_EXCEEDED, "context"),
    "far over": ({"text": "word " * 30_000}, Reason.CONTEXT_LENGTH_EXCEEDED, "longest context"),
    "size": ({"text": "x" * 1_000_001}, Reason.INVALID_ARGUMENT, "at most 1000000"),
}


async def test_bad_requests_are_refused_with_a_reason_and_leave_nothing(line, spec):
    await line.engine("e0", context_tokens=2048)
    router = await line.router()
    for name, (fields, reason, words) in BAD.items():
        error = await router.refused(spec(**fields))
        assert error.reason is reason, f"{name}: {error}"
        assert words in error.message, f"{name}: {error}"
        assert not error.retryable
    assert router.app.ledger.live_count == 0
    assert not list(router.app.ledger.all())


async def test_a_session_tells_refusals_by_stream_and_goes_on(line, spec):
    await line.engine("e0", context_tokens=2048)
    router = await line.router()
    session = await router.session()
    bad = [await session.submit(spec(**fields)) for fields, _, _ in BAD.values() if "text" not in fields]
    good = await session.submit(spec())
    await session.ended(good, *bad)
    assert good.count == 16
    assert all(a.reason == attempt_pb2.FINISH_REASON_REJECTED and a.accepted is None for a in bad)
    wanted = [reason for fields, reason, _ in BAD.values() if "text" not in fields]
    assert [a.finished.failure.reason for a in bad] == wanted


async def test_ids_are_taken_once_while_live_and_after_the_end(line, spec):
    await line.engine("e0")
    router = await line.router()
    session = await router.session()
    first = await session.submit(spec(tokens=100, request_id="twice"), token_limit=5)
    await session.until(lambda: first.accepted is not None)
    assert (await router.refused(spec(request_id="twice"))).reason is Reason.DUPLICATE_REQUEST
    assert first.finished is None
    await session.credit(first, 100)
    await session.ended(first)
    assert (await router.refused(spec(request_id="twice"))).reason is Reason.DUPLICATE_REQUEST


async def test_a_refused_id_may_be_used_again(line, spec):
    await line.engine("e0", context_tokens=2048)
    router = await line.router()
    await router.refused(spec("word " * 3000, request_id="again"))
    assert (await router.generate(spec(request_id="again"))).count == 16


async def test_live_requests_are_bounded_and_the_refusal_says_when_to_return(line, spec, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router(max_live_requests=3, retry_after_ms=750.0)
    session = await router.session()
    live = [await session.submit(endless()) for _ in range(3)]
    await session.until(lambda: all(a.accepted is not None for a in live))
    error = await router.refused(spec())
    assert error.reason is Reason.QUEUE_FULL
    assert error.retryable
    assert error.retry_after_ms == 750.0
    for answer in live:
        await session.cancel(answer)
    await session.ended(*live)
    assert (await router.generate(spec())).count == 16


async def test_without_an_engine_new_work_is_refused(line, spec):
    router = await line.router()
    error = await router.refused(spec())
    assert error.reason is Reason.NO_ENGINE
    assert error.retryable
    assert error.retry_after_ms


async def test_after_its_only_engine_went_new_work_is_refused(line, spec):
    await line.engine("e0")
    router = await line.router()
    await line.kill_executor("e0")
    await router.until(lambda: not any(e.up for e in router.app.fleet))
    error = await router.refused(spec())
    assert error.reason is Reason.NO_ENGINE
    assert "down" in error.message


async def test_a_stream_id_in_use_ends_the_session_with_a_clear_word(line, spec, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    session = await router.session()
    await session.submit(endless())
    await session.send(submit=router_pb2.SessionSubmit(stream_id=1, spec=spec()))
    await session.closed()
    assert session.error.reason is Reason.INVALID_ARGUMENT
    assert "in use" in session.error.message


async def test_a_session_must_be_opened(line, spec):
    await line.engine("e0")
    router = await line.router()
    call = router.stub.Session()
    await call.write(router_pb2.SessionRequest(submit=router_pb2.SessionSubmit(stream_id=1, spec=spec())))
    with pytest.raises(PacelineError, match="open"):
        await router.read(call, router.tape())


async def test_a_dead_session_leaves_its_admissions_clean(line, endless):
    await line.engine("e0")
    router = await line.router(detach_ttl_s=0.0)
    session = await router.session()
    for _ in range(20):
        await session.submit(endless())
    await session.hang_up()
    await router.until(lambda: router.app.ledger.live_count == 0)


def capabilities(template):
    from paceline.common.v1 import engine_pb2

    return engine_pb2.EngineCapabilities(chat_template=template, bos_token="<s>", eos_token="</s>")


def test_templates_render_once_with_the_models_tokens():
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ eos_token }}"
    )
    prompt = ChatTemplates().render(capabilities(template), chat(("system", "s"), ("user", "{{ 7 * 7 }}")))
    assert prompt == "<s>[system]s[user]{{ 7 * 7 }}</s>"


def test_without_a_template_the_fallback_serves():
    assert "hi" in ChatTemplates().render(capabilities(""), chat(("user", "hi")))
    own = ChatTemplates("{{ messages[0].content }}!")
    assert own.render(capabilities(""), chat(("user", "hi"))) == "hi!"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{% for %}",
        "{{ messages[9].content }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
    ],
)
def test_templates_cannot_break_out_or_crash(template):
    with pytest.raises(PacelineError):
        ChatTemplates().render(capabilities(template), chat(("user", "hi")))

"""What a newcomer does first: curl, the openai client, reflection, a back end on the stubs."""

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import openai
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc import insecure_channel
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from line_client import PATIENCE_S
from stack_process import StackProcess

BACKEND = Path(__file__).with_name("backend_example.py")


def test_openai_client(stack: StackProcess) -> None:
    client = openai.OpenAI(base_url=f"http://{stack.gateway}/v1", api_key="none", max_retries=0)
    (model,) = client.models.list().data
    messages = [{"role": "user", "content": "Hello"}]
    answer = client.chat.completions.create(
        model=model.id,
        messages=messages,  # type: ignore[arg-type]
        max_tokens=12,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    stream = client.chat.completions.create(
        model=model.id,
        messages=messages,  # type: ignore[arg-type]
        max_tokens=12,
        temperature=0,
        extra_body={"ignore_eos": True},
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert chunks[-1].usage == answer.usage


def test_reflection_is_enough_to_call(stack: StackProcess) -> None:
    """As grpcurl does: no stub, only what the server says of itself."""
    with insecure_channel(stack.router) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "paceline.router.v1.RouterService" in database.get_services()
        pool = DescriptorPool(database)
        method = pool.FindServiceByName("paceline.router.v1.RouterService").FindMethodByName("Generate")
        request = ParseDict(
            {"spec": {"text": "Hello", "maxTokens": 5, "sampling": {"ignoreEos": True}}},
            GetMessageClass(method.input_type)(),
        )
        call = channel.unary_stream(
            "/paceline.router.v1.RouterService/Generate",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        replies = [MessageToDict(reply) for reply in call(request, timeout=PATIENCE_S)]
    assert "accepted" in replies[0]
    assert replies[-1]["finished"]["outputTokens"] == 5


def test_health_of_every_service(stack: StackProcess) -> None:
    for role in ("router", "scheduler", "executor", "predictor"):
        for address in stack.addresses(role):
            with insecure_channel(address) as channel:
                for service in ("liveness", "readiness", ""):
                    reply = health_pb2_grpc.HealthStub(channel).Check(
                        health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S
                    )
                    assert reply.status == health_pb2.HealthCheckResponse.SERVING, (role, service)
    assert httpx.get(f"http://{stack.gateway}/readyz", timeout=PATIENCE_S).status_code == 200


def test_thirty_line_backend(stack: StackProcess) -> None:
    done = subprocess.run(
        [sys.executable, str(BACKEND), stack.router, "Hello"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert "tokens, in time:" in done.stdout.splitlines()[-1]


async def test_metrics(stack: StackProcess) -> None:
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 2}
        replies = await asyncio.gather(
            *(client.post(f"http://{stack.gateway}/v1/completions", json=body) for _ in range(4))
        )
        assert {reply.status_code for reply in replies} == {200}
        text = (await client.get(f"http://{stack.gateway}/metrics")).text
    assert "paceline_" in text

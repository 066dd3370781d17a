"""A back end in 30 lines: streams one generation over gRPC, with nothing but the generated stubs.

python tests/backend_example.py 127.0.0.1:7400 "Name three uses of a paper clip."
"""

import sys

import grpc

from paceline.common.v1.attempt_pb2 import SamplingParams
from paceline.common.v1.slo_pb2 import LatencySlo, Slo
from paceline.router.v1.generation_pb2 import GenerationSpec, Message, Messages
from paceline.router.v1.router_pb2 import GenerateRequest
from paceline.router.v1.router_pb2_grpc import RouterServiceStub


def main(target: str, question: str) -> None:
    spec = GenerationSpec(
        messages=Messages(messages=[Message(role="user", content=question)]),
        max_tokens=64,
        sampling=SamplingParams(temperature=0),
        slo=Slo(latency=LatencySlo(ttft_ms=2000, tbt_ms=200)),  # when the answer is still worth something
        streaming=True,
    )
    with grpc.insecure_channel(target) as channel:
        for reply in RouterServiceStub(channel).Generate(GenerateRequest(spec=spec), timeout=120):
            if reply.HasField("tokens"):
                print(reply.tokens.text, end="", flush=True)
            elif reply.HasField("finished"):
                print(
                    f"\n[{reply.finished.output_tokens} tokens, in time: {reply.finished.outcome.attained}]"
                )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

"""What commands send to a router: the token, and a deadline that leaves the router its time."""

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from paceline.router.v1 import router_pb2, router_pb2_grpc
from paceline_cli.app import app


class FakeRouter(router_pb2_grpc.RouterServiceServicer):
    """Answers at once, and remembers with what it was called."""

    def __init__(self) -> None:
        self.address = ""
        self.authorization = ""
        self.time_left_s = 0.0

    def _note(self, context: Any) -> None:
        self.authorization = dict(context.invocation_metadata()).get("authorization", "")
        self.time_left_s = context.time_remaining()

    def DrainEngine(
        self, request: router_pb2.DrainEngineRequest, context: Any
    ) -> router_pb2.DrainEngineResponse:
        self._note(context)
        return router_pb2.DrainEngineResponse(state=router_pb2.ENGINE_STATE_DRAINING)

    def ListRequests(
        self, request: router_pb2.ListRequestsRequest, context: Any
    ) -> router_pb2.ListRequestsResponse:
        self._note(context)
        return router_pb2.ListRequestsResponse()

    def ListEngines(
        self, request: router_pb2.ListEnginesRequest, context: Any
    ) -> router_pb2.ListEnginesResponse:
        self._note(context)
        return router_pb2.ListEnginesResponse()


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    fake = FakeRouter()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    router_pb2_grpc.add_RouterServiceServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield fake
    server.stop(None).wait(5)


@pytest.mark.parametrize("command", [["drain", "e0"], ["request", "list"], ["status"]])
def test_the_token_is_sent(router: FakeRouter, tmp_path: Path, command: list[str]) -> None:
    common = [*command, "--router", router.address, "--state-dir", str(tmp_path)]
    CliRunner().invoke(app, [*common, "--token", "secret"])
    assert router.authorization == "Bearer secret"
    CliRunner().invoke(app, common, env={"PACELINE_TOKEN": "from the environment"})
    assert router.authorization == "Bearer from the environment"
    CliRunner().invoke(app, common)
    assert router.authorization == ""


def test_a_drain_waits_as_long_as_it_may_take(router: FakeRouter, tmp_path: Path) -> None:
    common = ["drain", "e0", "--router", router.address, "--state-dir", str(tmp_path)]
    assert CliRunner().invoke(app, [*common, "--timeout", "300"]).exit_code == 0
    assert router.time_left_s > 325

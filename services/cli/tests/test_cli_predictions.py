"""What `paceline status` shows of the predictor, asked of a real one."""

import socket
from dataclasses import asdict

import pytest

from paceline.predictor.v1 import predictor_pb2 as pb
from paceline.predictor.v1 import predictor_pb2_grpc
from paceline_cli.predictions import print_predictor, read_predictor
from paceline_predictor.app import PredictorApp
from paceline_predictor.config import Config
from paceline_runtime.channel import channel


async def test_the_predictor_is_shown_with_its_coverage_and_its_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    section = {"listen": "127.0.0.1:0", "length_model": "/no/such/file.onnx"}
    config = Config.model_validate({"predictor": section, "store": {"url": ""}})
    async with PredictorApp(config) as app:
        async with channel(app.address) as opened:
            row = pb.LengthOutcome(query=pb.LengthQuery(model="small", app="chat"), output_tokens=50)
            await predictor_pb2_grpc.PredictorServiceStub(opened).Observe(
                iter([pb.ObserveRequest(lengths=[row] * 60)])
            )
        view = await read_predictor(app.address)
    model = next(model for model in view.models if model.name == "length")
    assert (model.kind, model.observed) == ("histogram", 60)
    assert {(row.model, row.app, row.whole_model) for row in model.coverage} == {
        ("small", "chat", False),
        ("small", "", True),
    }
    assert 0 < model.coverage_p50 <= model.coverage_p90 <= 1
    print_predictor(asdict(view))
    printed = capsys.readouterr().out
    assert "60 outcomes, covered by P50 " in printed
    assert "/no/such/file.onnx: there is no such file" in printed
    assert "small" in printed


async def test_a_predictor_that_is_away_is_a_line_and_no_failure() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    view = await read_predictor(f"127.0.0.1:{port}")
    assert view.models == ()
    assert "UNAVAILABLE" in view.problem

"""Serving needs nothing of what training needs."""

import subprocess
import sys
from pathlib import Path

from tiny_length_model import tiny_length_model

_SERVE = """
import asyncio, sys
from importlib.abc import MetaPathFinder

BLOCKED = {"sklearn", "quantile_forest", "onnx", "scipy", "pandas", "matplotlib", "paceline_lab"}

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not for serving")
        return None

sys.meta_path.insert(0, Blocker())

from paceline.predictor.v1 import predictor_pb2 as pb
from paceline.predictor.v1 import predictor_pb2_grpc
from paceline_predictor.app import PredictorApp
from paceline_predictor.config import Config
from paceline_runtime.channel import channel

async def main():
    section = {"listen": "127.0.0.1:0", "length_model": sys.argv[1]}
    config = Config.model_validate({"predictor": section, "store": {"url": ""}})
    async with PredictorApp(config) as app, channel(app.address) as opened:
        stub = predictor_pb2_grpc.PredictorServiceStub(opened)
        query = pb.LengthQuery(model="m", app="chat", prompt_head="Hello")
        async def outcomes():
            yield pb.ObserveRequest(lengths=[pb.LengthOutcome(query=query, output_tokens=30)])
        await stub.Observe(outcomes())
        answer = await stub.PredictLength(pb.PredictLengthRequest(queries=[query]))
        print(answer.estimates[0].source, answer.estimates[0].model_version)
    print(sorted(BLOCKED & {name.partition(".")[0] for name in sys.modules}))

asyncio.run(main())
"""


def test_a_predictor_serves_without_anything_of_training(tmp_path: Path) -> None:
    file = tiny_length_model(tmp_path / "length.onnx")
    done = subprocess.run(
        [sys.executable, "-c", _SERVE, str(file)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["qrf tiny-1", "[]"]

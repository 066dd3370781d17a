"""Reads what deploy/ holds, as Docker, Compose and Kubernetes would, so that tests can ask whether it fits together."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paceline_executor.config import ExecutorServiceConfig
from paceline_gateway.app import GatewayServiceConfig
from paceline_predictor.config import Config as PredictorServiceConfig
from paceline_router.config import Config as RouterServiceConfig
from paceline_runtime.config import load_config
from paceline_runtime.service import ServiceConfig
from paceline_scheduler.config import SchedulerServiceConfig

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "paceline"
MODELS: dict[str, type[ServiceConfig]] = {
    "gateway": GatewayServiceConfig,
    "router": RouterServiceConfig,
    "predictor": PredictorServiceConfig,
    "scheduler": SchedulerServiceConfig,
    "executor": ExecutorServiceConfig,
}


@dataclass(frozen=True)
class Instance:
    """One service as it is started: the names it is reached by, its settings, the seconds it has to end."""

    service: str
    hosts: frozenset[str]
    environ: Mapping[str, str]
    file: Path
    stop_grace_s: float
    probed_ports: frozenset[int] = frozenset()

    def config(self, *overrides: str) -> Any:
        """Its configuration. Raises ConfigError."""
        return load_config(MODELS[self.service], self.file, overrides=overrides, environ=self.environ)


@dataclass
class Stage:
    """One stage of a Dockerfile; instructions of the stages below it are included."""

    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        """The arguments of every such instruction."""
        return [text for word, text in self.instructions if word == keyword]

    def last(self, keyword: str) -> str:
        """The arguments of the one that holds."""
        return self.all(keyword)[-1]


def dockerfile_stages(path: Path) -> dict[str, Stage]:
    """The named stages of a Dockerfile."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    stage = Stage("")
    for line in re.sub(r"\\\n", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = Stage(name, list(stages[base].instructions) if base in stages else [])
            stages[name] = stage
        elif word:
            stage.instructions.append((word, rest.strip()))
    return stages


def compose(env: Mapping[str, str]) -> dict[str, Any]:
    """The compose file with its variables filled in. KeyError for one that `env` lacks."""
    raw = (DEPLOY / "compose.yaml").read_text()
    filled = re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda found: env[found.group(1)], raw)
    document: dict[str, Any] = yaml.safe_load(filled)
    return document


def compose_env() -> dict[str, str]:
    """A filled-in copy of the example environment."""
    lines = (DEPLOY / "compose.env.example").read_text().splitlines()
    names = [line.partition("=")[0] for line in lines if line and not line.startswith("#")]
    return {name: "pl-" + name.lower().replace("_", "-") for name in names}


def compose_instances() -> list[Instance]:
    """Paceline's services in the compose file."""
    found = []
    for name, service in compose(compose_env())["services"].items():
        if "build" not in service:
            continue
        config = next(
            v.split(":")[0] for v in service["volumes"] if v.split(":")[1] == "/etc/paceline/paceline.yaml"
        )
        found.append(
            Instance(
                service["build"]["target"],
                frozenset({name}),
                service["environment"],
                DEPLOY / config,
                float(service["stop_grace_period"].removesuffix("s")),
            )
        )
    return found


def render_chart(release: str, values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The chart's objects, by the `helm` command or the `helm-python-sdk` package; None where there is neither."""
    if shutil.which("helm"):
        command = ["helm", "template", release, str(CHART)]
        for key, value in values.items():
            command += ["--set-json", f"{key}={json.dumps(value)}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return [document for document in yaml.safe_load_all(done.stdout) if document]
    try:
        from helm_python.chart import Chart
    except ImportError:
        return None
    rendered = Chart.load(str(CHART)).render(dict(values), name=release)
    return [document for text in rendered.values() for document in yaml.safe_load_all(text) if document]


def chart_instances(objects: list[dict[str, Any]], folder: Path) -> list[Instance]:
    """Every container of every pod of the rendered chart; its configuration is written into `folder`."""
    (config_map,) = (o for o in objects if o["kind"] == "ConfigMap")
    file = folder / "paceline.yaml"
    file.write_text(config_map["data"]["paceline.yaml"])
    found = []
    for owner in objects:
        if owner["kind"] not in ("Deployment", "StatefulSet"):
            continue
        pod = owner["spec"]["template"]["spec"]
        for number in range(owner["spec"]["replicas"]):
            name = owner["metadata"]["name"]
            hosts = {name}
            if owner["kind"] == "StatefulSet":
                hosts = {f"{name}-{number}.{owner['spec']['serviceName']}", "127.0.0.1"}
                name = f"{name}-{number}"
            for container in pod["containers"]:
                probes = [container[kind] for kind in container if kind.endswith("Probe")]
                found.append(
                    Instance(
                        container["name"],
                        frozenset(hosts),
                        _environment(container["env"], name),
                        file,
                        float(pod["terminationGracePeriodSeconds"]),
                        frozenset(probe["grpc"]["port"] for probe in probes if "grpc" in probe),
                    )
                )
    return found


def _environment(entries: list[dict[str, Any]], pod: str) -> dict[str, str]:
    """As the kubelet builds it: in order, with `$(NAME)` of earlier ones filled in."""
    environ: dict[str, str] = {}
    for entry in entries:
        if "value" in entry:
            text = re.sub(r"\$\((\w+)\)", lambda found: environ[found.group(1)], entry["value"])
        elif "fieldRef" in entry["valueFrom"]:
            text = pod
        else:
            text = _secret(entry["valueFrom"]["secretKeyRef"]["key"])
        environ[entry["name"]] = text
    return environ


def _secret(key: str) -> str:
    """A value as deploy/README.md has it made."""
    special = {
        "api-keys": '{"pl-api-key": default}',
        "store-url": "postgresql+asyncpg://paceline:pl-password@postgres/paceline",
    }
    return special.get(key, f"pl-{key}")

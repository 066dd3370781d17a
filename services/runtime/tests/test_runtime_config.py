"""Config: sources and their order, strictness, and messages that say what to change."""

from typing import Literal

import pytest
from pydantic import Field

from paceline_runtime.channel import ChannelConfig
from paceline_runtime.config import load_config
from paceline_runtime.config_docs import config_keys, render_config, render_markdown, undocumented_keys
from paceline_runtime.config_model import ConfigError, ConfigModel
from paceline_runtime.server import ServerConfig
from paceline_runtime.service import ServiceConfig


class EngineConfig(ConfigModel):
    """An engine."""

    address: str
    """Where it listens."""
    weight: float = Field(default=1.0, gt=0, description="Share of work, relative.")


class RouterConfig(ConfigModel):
    """The router section."""

    server: ServerConfig = ServerConfig()
    """Its server."""
    placement: Literal["round-robin", "least-request"] = "round-robin"
    """Placement policy."""
    engines: tuple[EngineConfig, ...] = ()
    """Engines to dial."""
    limits: dict[str, int] = Field(default_factory=dict, description="Requests at a time, per tenant.")
    hidden: int = 3


class File(ServiceConfig):
    router: RouterConfig = RouterConfig()


def problems(*args, **kwargs) -> str:
    with pytest.raises(ConfigError) as raised:
        load_config(File, *args, environ=kwargs.pop("environ", {}), **kwargs)
    return "\n".join(raised.value.problems)


def write(tmp_path, text):
    path = tmp_path / "paceline.yaml"
    path.write_text(text)
    return path


def test_later_sources_win(tmp_path):
    path = write(tmp_path, "router: {placement: least-request, limits: {a: 1, b: 2}}\nlog:\n  level: debug\n")
    environ = {
        "PACELINE_ROUTER__LIMITS__A": "10",
        "PACELINE_ROUTER__SERVER__LISTEN": "127.0.0.1:7001",
        "PACELINE_HOME": "/elsewhere",
        "OTHER__X": "1",
    }
    config = load_config(
        File, path, overrides=["router.server.listen=[::]:0", "log.level=error"], environ=environ
    )
    assert config.router.placement == "least-request"
    assert config.router.limits == {"a": 10, "b": 2}
    assert config.router.server.listen == "[::]:0"
    assert config.log.level == "error"


def test_file_may_have_the_sections_of_others(tmp_path):
    path = write(tmp_path, "gateway: {anything: 1}\nscheduler: [1]\nrouter:\n")
    environ = {"PACELINE_GATEWAY__X": "1"}
    assert load_config(File, path, environ=environ).router == RouterConfig()


def test_lists_come_from_set(tmp_path):
    config = load_config(File, overrides=["router.engines=[{address: 'unix:/x', weight: 2}]"], environ={})
    assert config.router.engines == (EngineConfig(address="unix:/x", weight=2.0),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("router: {placment: x}", "router.placment: unknown key; did you mean 'placement'?"),
        ("ruoter: {}", "ruoter: unknown key; did you mean 'router'?"),
        ("router: {server: {grpc: {keepalive: 1}}}", "did you mean 'keepalive_s'"),
        ("router: {engines: [{adress: x}]}", "router.engines.0.adress: unknown key; did you mean 'address'?"),
        ("router: {engines: [{}]}", "router.engines.0.address: Field required"),
        ("router: {placement: fastest}", "(got 'fastest')"),
        ("router: {limits: {a: many}}", "router.limits.a: "),
        ("router: 3", "router: "),
        ("- router", "the top level must be sections"),
        ("router: [", "not valid YAML"),
    ],
)
def test_faults_are_named(tmp_path, text, expected):
    message = problems(write(tmp_path, text))
    assert expected in message
    assert "paceline.yaml" in message or "engines" in message


def test_all_faults_are_reported_with_their_source():
    message = problems(overrides=["router.hiden=1"], environ={"PACELINE_LOG__LEVEL": "loud"})
    assert "router.hiden: unknown key; did you mean 'hidden'? [--set]" in message
    assert "log.level: " in message
    assert "[PACELINE_LOG__LEVEL]" in message


def test_unknown_environment_key_is_refused():
    assert "router.foo: unknown key" in problems(environ={"PACELINE_ROUTER__FOO": "1"})


def test_malformed_override_and_missing_file(tmp_path):
    assert "write it as section.key=value" in problems(overrides=["router"])
    assert "No such file" in problems(tmp_path / "none.yaml")


def test_documentation_covers_all_keys():
    assert undocumented_keys(File) == ["router.hidden"]
    assert undocumented_keys(ChannelConfig) == []
    keys = {key.path: key for key in config_keys(File)}
    assert keys["router.engines[].address"].default is None
    assert keys["router.engines[].weight"].description == "Share of work, relative."
    assert keys["router.server.listen"].default == "127.0.0.1:0"
    text = render_config(File)
    assert "router.server.grpc.keepalive_s  (number; default 10.0)" in text
    assert "| `router.placement` | round-robin or least-request | `round-robin` |" in render_markdown(File)

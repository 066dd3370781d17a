"""Who may call: tokens, and when they are demanded; TLS in both directions."""

import shutil
import subprocess

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr, ValidationError

from paceline_runtime.auth import AuthConfig, TokenConfig
from paceline_runtime.channel import ChannelConfig, channel
from paceline_runtime.config_model import ConfigError
from paceline_runtime.errors import Reason
from paceline_runtime.server import Server, ServerConfig
from paceline_runtime.status import from_rpc_error
from paceline_runtime.tls import TlsConfig

ACME = TokenConfig(token=SecretStr("s3cret"), tenant="acme")


@pytest.fixture
async def guarded(echo, add_echo_to):
    server = Server(ServerConfig(), auth=AuthConfig(tokens=(ACME,)))
    server.add(add_echo_to, echo)
    async with server:
        yield server


async def test_token_names_the_tenant(guarded, echo_stub):
    config = ChannelConfig(token=SecretStr("s3cret"))
    async with channel(guarded.address, config) as opened:
        assert (await echo_stub(opened).unary(b"")).endswith(b"|acme")
        assert [m async for m in echo_stub(opened).count(b"1")] == [b"0"]


@pytest.mark.parametrize("sent", [None, "Bearer wrong", "Basic s3cret", "s3cret", "Bearer "])
async def test_other_callers_are_refused(guarded, echo_stub, echo, sent):
    metadata = () if sent is None else (("authorization", sent),)
    async with channel(guarded.address) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await echo_stub(opened).unary(b"", metadata=metadata)
        assert from_rpc_error(raised.value).reason is Reason.UNAUTHENTICATED
        assert "s3cret" not in raised.value.details()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await echo_stub(opened).count(b"3", metadata=metadata).read()
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not echo.started.is_set()


async def test_health_needs_no_token(guarded):
    async with channel(guarded.address) as opened:
        answer = await health_pb2_grpc.HealthStub(opened).Check(
            health_pb2.HealthCheckRequest(service="liveness")
        )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.1.2.3:7000", "example:1"])
async def test_open_address_without_tokens_is_refused(listen):
    with pytest.raises(ConfigError, match="auth.tokens"):
        Server(ServerConfig(listen=listen))
    Server(ServerConfig(listen=listen), auth=AuthConfig(required=False))


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0", "unix:/x"])
async def test_local_address_needs_no_tokens(listen):
    Server(ServerConfig(listen=listen))


def test_secrets_do_not_show():
    assert "s3cret" not in repr(AuthConfig(tokens=(ACME,)))


def test_tls_config_must_be_complete(tmp_path):
    with pytest.raises(ValidationError, match="go together"):
        TlsConfig(cert_file=tmp_path / "x")
    with pytest.raises(ValidationError, match="needs cert_file"):
        TlsConfig(client_ca_file=tmp_path / "x")
    with pytest.raises(ConfigError, match=r"tls.key_file: cannot read"):
        Server(ServerConfig(), tls=TlsConfig(cert_file=tmp_path / "x", key_file=tmp_path / "y"))


@pytest.fixture
def certificates(tmp_path):
    """A CA, and a certificate for `paceline.test` signed by it, made by the openssl command."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the certificates")

    def openssl(*args):
        subprocess.run(["openssl", *args], cwd=tmp_path, check=True, capture_output=True, timeout=100)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test ca")
    openssl("req", *key, "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=leaf")
    (tmp_path / "ext").write_text("subjectAltName=DNS:paceline.test")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "ext", "-days", "2"]
    openssl("x509", "-req", "-in", "leaf.csr", "-out", "leaf.pem", *signing)
    return tmp_path


async def test_mutual_tls(certificates, echo, add_echo_to, echo_stub):
    own = {"cert_file": certificates / "leaf.pem", "key_file": certificates / "leaf.key"}
    ca = certificates / "ca.pem"
    server = Server(ServerConfig(), tls=TlsConfig(**own, client_ca_file=ca))
    server.add(add_echo_to, echo)
    async with server:
        trusted = TlsConfig(**own, server_ca_file=ca, server_name="paceline.test")
        async with channel(server.address, ChannelConfig(token=SecretStr("t")), tls=trusted) as opened:
            assert (await echo_stub(opened).unary(b"")).endswith(b"|")
        strangers = (
            None,
            TlsConfig(server_ca_file=ca, server_name="paceline.test"),
            TlsConfig(**own, server_ca_file=ca),
        )
        for tls in strangers:
            async with channel(server.address, tls=tls) as opened:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await echo_stub(opened).unary(b"")
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE

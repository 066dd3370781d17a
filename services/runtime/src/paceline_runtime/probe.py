"""`python -m paceline_runtime.probe TARGET`: is a service well? Exit code 0 says yes. For containers' health checks.

TARGET is a gRPC address (`127.0.0.1:7400`, asked through grpc.health.v1) or a URL (`http://127.0.0.1:8080/readyz`).
"""

import argparse
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline_runtime.config import load_config
from paceline_runtime.config_model import ConfigError, ConfigModel
from paceline_runtime.health import READINESS
from paceline_runtime.tls import TlsConfig, channel_credentials

EXIT_WELL = 0
EXIT_UNWELL = 1
EXIT_CONFIG = 2


class _Certificates(ConfigModel):
    """The one section that a probe reads."""

    tls: TlsConfig = TlsConfig()
    """Certificates."""


def grpc_problem(
    target: str, service: str = READINESS, *, tls: TlsConfig | None = None, timeout_s: float = 2.0
) -> str:
    """What is wrong with a gRPC server: its health status or the status of the call. Empty when it is SERVING."""
    tls = tls or TlsConfig()
    credentials = channel_credentials(tls)
    options = [("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name is not None else []
    opened = (
        grpc.insecure_channel(target)
        if credentials is None
        else grpc.secure_channel(target, credentials, options)
    )
    with opened:
        try:
            answer = health_pb2_grpc.HealthStub(opened).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout_s
            )
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def http_problem(url: str, *, timeout_s: float = 2.0) -> str:
    """What is wrong with an HTTP server. Empty when it answers 2xx."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s):
            return ""
    except urllib.error.HTTPError as error:
        return f"{error.code}: {error.read(200).decode('utf-8', 'replace')}"
    except OSError as error:
        return str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Probe once; the problem, if any, goes to standard error."""
    parser = argparse.ArgumentParser(prog="python -m paceline_runtime.probe", description=__doc__)
    parser.add_argument("target", help="host:port of a gRPC server, or an http:// URL")
    parser.add_argument("--service", default=READINESS, help="readiness, liveness or a full service name")
    parser.add_argument("--timeout", type=float, default=2.0, metavar="S", help="seconds to wait")
    parser.add_argument("--config", type=Path, help="YAML file; its section `tls` says how to dial")
    args = parser.parse_args(argv)
    if args.target.startswith(("http://", "https://")):
        problem = http_problem(args.target, timeout_s=args.timeout)
    else:
        try:
            tls = load_config(_Certificates, args.config).tls
            problem = grpc_problem(args.target, args.service, tls=tls, timeout_s=args.timeout)
        except ConfigError as error:
            print(*error.problems, sep="\n", file=sys.stderr)
            return EXIT_CONFIG
    if problem:
        print(f"{args.target}: {problem}", file=sys.stderr)
    return EXIT_UNWELL if problem else EXIT_WELL


if __name__ == "__main__":
    sys.exit(main())

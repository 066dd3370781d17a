"""Which ports the stack needs, whether they are free, and who holds them."""

import contextlib
import socket
from dataclasses import dataclass

import psutil


class PortConflictError(RuntimeError):
    """A port the stack needs is taken."""


@dataclass(frozen=True, slots=True)
class PortHolder:
    """Who listens on a port; `pid` None: another user's process, or unknown."""

    port: int
    pid: int | None
    command: str


def is_free(host: str, port: int) -> bool:
    """True if a server could bind `host:port` now."""
    with contextlib.closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_ports(host: str, count: int) -> list[int]:
    """Ports nobody listens on now. All are held together while they are drawn, so that none comes twice."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            probe = stack.enter_context(contextlib.closing(socket.socket()))
            probe.bind((host, 0))
            ports.append(int(probe.getsockname()[1]))
        return ports


def holder_of(port: int) -> PortHolder:
    """Who listens on a TCP port of this machine."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port:
                return PortHolder(port, connection.pid, _command_of(connection.pid))
    return PortHolder(port, None, "")


def require_free(host: str, wanted: dict[str, int]) -> None:
    """Raise `PortConflictError` that names every taken port of `wanted` (service name -> port) and its holder."""
    problems = []
    for name, port in wanted.items():
        if port and not is_free(host, port):
            holder = holder_of(port)
            who = f"pid {holder.pid} ({holder.command})" if holder.pid else "another process"
            problems.append(f"port {port} ({name}) is held by {who}")
    if problems:
        raise PortConflictError(
            "; ".join(problems)
            + ". Stop it, choose another with --port, or take free ones with --set up.ports=auto"
        )


def _command_of(pid: int | None) -> str:
    if pid is None:
        return ""
    try:
        return " ".join(psutil.Process(pid).cmdline())[:80]
    except psutil.Error:
        return "?"

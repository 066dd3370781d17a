"""Addresses as gRPC writes them: `host:port`, `[v6]:port`, `unix:/path`."""

import ipaddress


def is_local(address: str) -> bool:
    """True when only processes of this machine can reach the address."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = host_of(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(address: str) -> str:
    """The host part of `host:port`, without brackets."""
    host, _, _ = address.removeprefix("dns:").rpartition(":")
    return host.strip("[]")


def with_port(address: str, port: int) -> str:
    """The address with the port that the system chose, when port 0 was asked for."""
    if address.startswith(("unix:", "unix-abstract:")):
        return address
    host, _, _ = address.rpartition(":")
    return f"{host}:{port}"

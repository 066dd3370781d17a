"""Asks a service of the stack whether it is well, without a client library."""

import asyncio

_MAX_BODY_BYTES = 1 << 20


async def listens(address: str, *, timeout_s: float = 1.0) -> bool:
    """True if somebody accepts connections at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def http_get(address: str, path: str, *, timeout_s: float = 2.0) -> tuple[int, bytes]:
    """Status and body of `GET http://address/path`; status 0 when nobody answers."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            try:
                request = f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.read(_MAX_BODY_BYTES)
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return 0, b""
    parts = head.split(b" ", 2)
    return (int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0), body


async def http_status(address: str, path: str) -> int:
    """Status of a GET; 0 when nobody answers."""
    return (await http_get(address, path))[0]

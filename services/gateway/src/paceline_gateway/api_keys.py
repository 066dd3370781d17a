"""Who may call over HTTP: static API keys, each of one tenant, and no other web page's scripts when there are none."""

import hashlib
from collections.abc import Mapping
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers

from paceline_gateway.config import GatewayConfig
from paceline_runtime.address import is_local
from paceline_runtime.config_model import ConfigError
from paceline_runtime.errors import PacelineError, Reason


class ApiKeys:
    """Knows keys by their digests, so that the time of a look-up tells nothing. Without keys all may call."""

    def __init__(self, keys: Mapping[SecretStr, str]) -> None:
        self._tenants = {_digest(key.get_secret_value()): tenant for key, tenant in keys.items()}

    @property
    def required(self) -> bool:
        """Whether callers need a key."""
        return bool(self._tenants)

    def tenant_of(self, headers: Headers) -> str:
        """The tenant of the caller, empty when no keys are in use. Raises UNAUTHENTICATED, PERMISSION_DENIED."""
        if not self._tenants:
            _refuse_foreign_origin(headers)
            return ""
        sent = headers.get("authorization", "")
        scheme, _, key = sent.partition(" ")
        tenant = self._tenants.get(_digest(key.strip())) if scheme.lower() == "bearer" else None
        if tenant is None:
            raise PacelineError(
                Reason.UNAUTHENTICATED,
                "the API key is not known" if sent else "send an API key as `Authorization: Bearer <key>`",
            )
        return tenant


def check_exposure(config: GatewayConfig) -> None:
    """Raise ConfigError when other machines could call without a key and nobody said that they may."""
    if not config.api_keys and not config.allow_without_keys and not is_local(config.listen):
        raise ConfigError(
            [
                f"gateway.api_keys: none is configured, but {config.listen} is reachable from other machines; "
                "add a key, listen on 127.0.0.1, or say gateway.allow_without_keys=true if the network is trusted"
            ]
        )


def _refuse_foreign_origin(headers: Headers) -> None:
    """Without keys the address is the only guard, and a browser on this machine carries any web page past it."""
    origin = headers.get("origin")
    if origin and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise PacelineError(
            Reason.PERMISSION_DENIED,
            f"calls from web pages of {origin[:200]} need an API key, and none is configured",
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

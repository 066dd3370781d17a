"""Static bearer tokens. A token names a tenant; with no token configured, only loopback is served without question."""

import hashlib
from typing import Any

from pydantic import Field, SecretStr

from paceline_runtime import rpc_context
from paceline_runtime.address import is_local
from paceline_runtime.config_model import ConfigError, ConfigModel
from paceline_runtime.errors import PacelineError, Reason
from paceline_runtime.interceptor import Call, RpcInfo, ServicerContext
from paceline_runtime.layers import HEALTH_SERVICE

AUTHORIZATION_KEY = "authorization"


class TokenConfig(ConfigModel):
    """One accepted token."""

    token: SecretStr
    """The secret that a caller sends as `authorization: Bearer <token>`."""
    tenant: str
    """Name of the tenant that the token stands for."""


class AuthConfig(ConfigModel):
    """Who may call."""

    required: bool | None = None
    """Whether callers must send a token. Not set: required as soon as a token is configured, or when the address is not
    loopback and callers are not checked by a TLS certificate."""
    tokens: tuple[TokenConfig, ...] = Field(default=())
    """Accepted tokens, at most one tenant each."""


class Authenticator:
    """Knows the tokens; compares digests, so that the time of a look-up says nothing about a token."""

    def __init__(self, config: AuthConfig) -> None:
        self._tenants = {_digest(entry.token.get_secret_value()): entry.tenant for entry in config.tokens}

    def tenant_of(self, authorization: str) -> str:
        """The tenant of an `authorization` header. Raises UNAUTHENTICATED."""
        scheme, _, token = authorization.partition(" ")
        tenant = self._tenants.get(_digest(token.strip())) if scheme.lower() == "bearer" else None
        if tenant is None:
            raise PacelineError(
                Reason.UNAUTHENTICATED,
                "send a known token as `authorization: Bearer <token>`"
                + (": the one sent is not known" if authorization else ": none was sent"),
            )
        return tenant

    async def layer(self, info: RpcInfo, context: ServicerContext, call: Call) -> Any:
        """Server layer: checks the token and binds the tenant. Health checks pass without one."""
        if info.service == HEALTH_SERVICE:
            return await call()
        with rpc_context.bound(tenant=self.tenant_of(info.text(AUTHORIZATION_KEY))):
            return await call()


def authenticator(
    config: AuthConfig, listen: tuple[str, ...], *, callers_have_certificates: bool
) -> Authenticator | None:
    """The authenticator to use at these addresses; None when callers are not asked. Raises ConfigError."""
    required = config.required
    if required is None:
        exposed = not all(is_local(address) for address in listen)
        required = bool(config.tokens) or (exposed and not callers_have_certificates)
    if not required:
        return None
    if not config.tokens:
        raise ConfigError(
            [
                f"auth.tokens: none is configured, but {', '.join(listen)} is reachable from other machines; "
                "add a token, use TLS with tls.client_ca_file, or say auth.required=false if the network is trusted"
            ]
        )
    return Authenticator(config)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()

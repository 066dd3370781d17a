"""TLS for both ends of a hop; with a client CA, mutual TLS."""

from pathlib import Path

import grpc
from pydantic import model_validator

from paceline_runtime.config_model import ConfigError, ConfigModel


class TlsConfig(ConfigModel):
    """Certificates. Nothing set: plain text, for loopback and trusted networks."""

    cert_file: Path | None = None
    """PEM certificate chain that this process shows, as a server and (with mutual TLS) as a client."""
    key_file: Path | None = None
    """PEM private key of `cert_file`."""
    client_ca_file: Path | None = None
    """PEM authorities whose client certificates the server demands. Not set: clients need no certificate."""
    server_ca_file: Path | None = None
    """PEM authorities that this process trusts when it dials others. Set: it dials with TLS."""
    server_name: str | None = None
    """Name expected in the certificates of dialled servers, when it is not the name that is dialled."""

    @model_validator(mode="after")
    def _complete(self) -> "TlsConfig":
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if self.client_ca_file is not None and self.cert_file is None:
            raise ValueError("client_ca_file needs cert_file and key_file")
        return self

    @property
    def serves(self) -> bool:
        """Whether servers of this process speak TLS."""
        return self.cert_file is not None


def server_credentials(config: TlsConfig) -> grpc.ServerCredentials | None:
    """Credentials for listening; None for plain text. Raises ConfigError when a file cannot be read."""
    if config.cert_file is None or config.key_file is None:
        return None
    authorities = _read("tls.client_ca_file", config.client_ca_file)
    return grpc.ssl_server_credentials(
        [(_read_all("tls.key_file", config.key_file), _read_all("tls.cert_file", config.cert_file))],
        root_certificates=authorities,
        require_client_auth=authorities is not None,
    )


def channel_credentials(config: TlsConfig) -> grpc.ChannelCredentials | None:
    """Credentials for dialling; None for plain text. Raises ConfigError when a file cannot be read."""
    if config.server_ca_file is None:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=_read("tls.server_ca_file", config.server_ca_file),
        private_key=_read("tls.key_file", config.key_file),
        certificate_chain=_read("tls.cert_file", config.cert_file),
    )


def _read(key: str, path: Path | None) -> bytes | None:
    return None if path is None else _read_all(key, path)


def _read_all(key: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{key}: cannot read {path}: {error.strerror or error}"]) from None

"""The `store` section of the configuration."""

from pydantic import Field

from paceline_runtime.config_model import ConfigModel


class StoreConfig(ConfigModel):
    """Where request state is kept, and how writes are grouped."""

    url: str = "sqlite+aiosqlite:///paceline.db"
    """SQLAlchemy URL of a SQLite file or of a PostgreSQL database (`postgresql+asyncpg://user:password@host/name`);
    empty: nothing is kept."""
    flush_interval_ms: float = Field(default=20, gt=0, le=10_000)
    """Longest wait of a row for others to be committed with it, milliseconds."""
    max_batch: int = Field(default=256, ge=1, le=10_000)
    """Most rows in one commit."""
    max_buffer_bytes: int = Field(default=64 * 1024 * 1024, ge=64 * 1024)
    """Bound on rows that wait for the store, bytes. Past it rows are refused and counted."""
    close_timeout_s: float = Field(default=5.0, ge=0, le=600)
    """Longest wait at shutdown for buffered rows to be written, seconds."""
    keep_ended_s: float = Field(default=7 * 86_400.0, ge=0)
    """How long ended requests and tasks are kept, seconds; 0: for ever."""
    lease_ttl_s: float = Field(default=5.0, gt=0, le=3600)
    """Life of a router's lease without renewal, seconds."""

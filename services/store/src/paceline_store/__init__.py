"""Request state in SQL: schema, migrations, ledger, write-behind.

Where to look: `store` (open, read, leases), `write_behind` (group commit off the token path), `rows` (what is written),
`tables` and `migrations` (the schema). `config.StoreConfig` is the section of the configuration.
"""

from paceline_store.errors import Fenced, LeaseHeld, SchemaMismatch, StoreRejected, StoreUnavailable
from paceline_store.pruning import LedgerSize
from paceline_store.rows import (
    AttemptRow,
    CheckpointRow,
    EngineRow,
    EstimateRow,
    Lease,
    ListedRequest,
    OutcomeRow,
    RequestChange,
    RequestRow,
    Row,
    StoredRequest,
    StoredTask,
    TaskCallRow,
    TaskRow,
    TokenRun,
)
from paceline_store.store import Store
from paceline_store.write_behind import WriteBehind, WriteBehindStats

__all__ = [
    "AttemptRow",
    "CheckpointRow",
    "EngineRow",
    "EstimateRow",
    "Fenced",
    "Lease",
    "LeaseHeld",
    "LedgerSize",
    "ListedRequest",
    "OutcomeRow",
    "RequestChange",
    "RequestRow",
    "Row",
    "SchemaMismatch",
    "Store",
    "StoreRejected",
    "StoreUnavailable",
    "StoredRequest",
    "StoredTask",
    "TaskCallRow",
    "TaskRow",
    "TokenRun",
    "WriteBehind",
    "WriteBehindStats",
]

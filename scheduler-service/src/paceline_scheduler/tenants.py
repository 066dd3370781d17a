"""Tenants' accounts: what the engine did for whom, and how far each tenant is behind its share."""

from collections.abc import Mapping

import numpy as np

from paceline_core.batch.fairness import TenantAccounts
from paceline_core.batch.table import LiveTable
from paceline_core.batch.view import IntArray
from paceline_scheduler.attempt import Attempt


class Tenants:
    """Keeps the accounts from step to step, by the numbers of `LiveTable.tenant`."""

    def __init__(self, table: LiveTable[Attempt], shares: Mapping[str, float]) -> None:
        """`shares`: weight of each tenant, by name; 1 where nothing is said."""
        self._table = table
        self._shares = shares
        self._accounts = TenantAccounts()
        self._names: dict[int, str] = {}
        self._rows: list[IntArray] = []
        self._tokens: list[IntArray] = []

    def joined(self, attempt: Attempt) -> None:
        """A new row: its tenant's number may have been somebody else's."""
        number = int(self._table.tenant[attempt.row])
        if self._names.get(number) != attempt.tenant:
            self._names[number] = attempt.tenant
            self._accounts.open(number, self._shares.get(attempt.tenant, 1.0))

    def served(self, rows: IntArray, tokens: IntArray) -> None:
        """The engine worked `tokens` [M], prompt or output, for `rows` [M]."""
        self._rows.append(rows)
        self._tokens.append(tokens)

    def settle(self) -> None:
        """A step is over: whom it served pays, and everybody with requests is owed a share of it."""
        if not self._rows:
            return
        rows, tokens = np.concatenate(self._rows), np.concatenate(self._tokens)
        self._rows.clear()
        self._tokens.clear()
        present = self._table.tenant[self._table.live_rows()]
        self._accounts.serve(present, self._table.tenant[rows], tokens)

    def tell(self, rows: IntArray) -> None:
        """Write the balance into the table, for the policy to see."""
        table = self._table
        table.tenant_lag_tokens[rows] = self._accounts.lag_tokens(table.tenant[rows])

"""Request state in SQL: schema, migrations, ledger, write-behind."""

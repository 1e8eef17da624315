"""What everything stands on: errors, quantities, both languages, a ledger row. Imports nothing of the package."""

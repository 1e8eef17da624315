"""The accounts: what the papers' formulas say beside what was counted, row by row.

The predicted side is computed from plan and shapes; the counted side comes from the graph and the memory
ledger, which know no formula. Where theory is exact the two must be equal, not close.

Each strategy's rows.py says what its own papers promise, and `PLACE` where in the ledger. Nothing else lists
it. What is compared with one device is in check.py.
"""

from __future__ import annotations

from glasscluster.base.rows import Row
from glasscluster.strategies.folders import having
from glasscluster.strategies.layout.judged import Judged

STRATEGIES = sorted(having("rows"), key=lambda strategy: strategy.PLACE)


def rows(run: Judged) -> list[Row]:
    """Every row of every strategy that the plan has."""
    return [row for strategy in STRATEGIES for row in strategy.predict(run)]

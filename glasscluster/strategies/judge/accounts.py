"""The accounts: what the papers' formulas say beside what was counted, row by row.

The predicted side is computed from plan and shapes; the counted side comes from the graph and the memory ledger,
which know no formula. Where theory is exact the two must be equal, not close.

Each strategy's rows.py says what its own papers promise. A strategy more is its folder, a line in plan.PARTS for
its options, and a line here.
"""

from __future__ import annotations

from glasscluster.base.rows import Row
from glasscluster.strategies.context import rows as context
from glasscluster.strategies.data import rows as data
from glasscluster.strategies.experts import rows as experts
from glasscluster.strategies.layout.judged import Judged
from glasscluster.strategies.memory import rows as memory
from glasscluster.strategies.pipeline import rows as pipeline
from glasscluster.strategies.tensor import rows as tensor

# In the order of the ledger.
STRATEGIES = (
    data,
    tensor,
    context,
    pipeline,
    experts,
    memory,
)


def rows(run: Judged) -> list[Row]:
    """Every row of every strategy that the plan has."""
    return [row for strategy in STRATEGIES for row in strategy.predict(run)]

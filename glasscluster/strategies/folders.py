"""The strategies' folders, found by standing there: whoever needs a part of every strategy asks for it by
name.

options.py    its options of `train`, `predict` and `plan`: a part of the Plan (plan.py)
rows.py       its rows of the ledger (judge/accounts.py)
comm_hook.py  what sums gradients in place of an all-reduce (data/comm_hooks.py)
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

HOME = Path(__file__).parent


def having(part: str) -> list[ModuleType]:
    """The modules of this name, one of each folder that has one, by the folder's name."""
    files = sorted(HOME.glob(f"*/{part}.py"))
    return [import_module(f"{__package__}.{file.parent.name}.{part}") for file in files]

"""Which process of a torchrun job this is: only its rank 0 speaks and writes."""

from __future__ import annotations

import os


def is_leader() -> bool:
    """False in the processes of a torchrun job that are not rank 0."""
    return os.environ.get("RANK", "0") == "0" or "WORLD_SIZE" not in os.environ


def default_backend() -> str:
    """Under torchrun it is torchrun, elsewhere ray."""
    under = "TORCHELASTIC_RUN_ID" in os.environ or ("WORLD_SIZE" in os.environ and "RANK" in os.environ)
    return "torchrun" if under else "ray"

"""Which roles share a GPU when memory is short: as few GPUs as possible, filled as evenly as possible.

Eq 39 says how many bytes of model state a role holds; `spare` bytes of every GPU stay free for activations.
Five roles can be grouped in 52 ways (the Bell number), so all of them are tried.

But: a role is never split. One that does not fit a GPU would need ZeRO or tensor parallelism.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from glasscluster.base.errors import InputError
from glasscluster.strategies.preference.job import Tuning
from glasscluster.strategies.preference.ranks import predict_state

Groups = list[tuple[str, ...]]


def partitions(roles: Sequence[str]) -> Iterator[Groups]:
    """Every way to divide roles into groups, each once.

    For each way to group all roles but the first, the first one gets a group of its own or joins a group.
    """
    if not roles:
        yield []
        return
    first, *others = roles
    for groups in partitions(others):
        yield [(first,), *groups]
        for i, group in enumerate(groups):
            yield [*groups[:i], (first, *group), *groups[i + 1 :]]


def fewest(state_bytes: Mapping[str, int], capacity: float, spare: float = 0.0) -> Groups:
    """Group roles on as few GPUs as their state fits on, and among such groupings as evenly as possible.

    Args:
        state_bytes: role -> bytes that it holds.
        capacity: bytes of a GPU.
        spare: bytes of each GPU that stay free.

    Raises:
        InputError: if one role does not fit a GPU.
    """
    for role, held in state_bytes.items():
        if held + spare > capacity:
            raise InputError(
                "capacity",
                capacity,
                f"the {role} alone holds {held:,} bytes, and {spare:,.0f} are to stay free: cut it",
            )

    def fullest(groups: Groups) -> int:
        return max(sum(state_bytes[role] for role in group) for group in groups)

    fitting = [g for g in partitions(list(state_bytes)) if fullest(g) + spare <= capacity]
    return min(fitting, key=lambda groups: (len(groups), fullest(groups)))


def fit(job: Tuning, capacity: float, spare: float = 0.0) -> Groups:
    """Group a job's roles on as few GPUs as fit, one group for each GPU; see `fewest`.

    The rollout shares the actor's GPU, and uses its weights.
    """
    alone = predict_state(job)
    if "rollout" not in alone:
        return fewest(alone, capacity, spare)
    together = {role: held for role, held in alone.items() if role != "rollout"}
    groups = fewest(together, capacity, spare)
    return [(*group, "rollout") if "actor" in group else group for group in groups]

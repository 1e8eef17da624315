"""Which roles share a GPU when memory is short: the fewest GPUs of a capacity, and among those ways the most
even one.

Eq 39 says what a role holds; to that come activations, for which `spare` is left on every GPU. Five roles can
be put together in 52 ways (Bell's number), so all of them are tried.
But: a role is one piece here. Where a single one does not fit it has to be cut, by ZeRO or tensor
parallelism.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from glasscluster.base.errors import InputError
from glasscluster.strategies.preference.job import Tuning
from glasscluster.strategies.preference.ranks import predict_state

Groups = list[tuple[str, ...]]


def partitions(roles: Sequence[str]) -> Iterator[Groups]:
    """Every way to put roles together, each once: the first joins a group of the others', or stays alone."""
    if not roles:
        yield []
        return
    first, *others = roles
    for groups in partitions(others):
        yield [(first,), *groups]
        for i, group in enumerate(groups):
            yield [*groups[:i], (first, *group), *groups[i + 1 :]]


def fewest(state_bytes: Mapping[str, int], capacity: float, spare: float = 0.0) -> Groups:
    """Groups of roles that share a GPU. state_bytes: of each role; capacity and spare: bytes of a GPU, and of
    it what stays free.
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
    """Groups of a job's roles, one group a GPU, as few as fit.

    The rollout stands with the actor, whose weights it can use, if that fits.
    """
    alone = predict_state(job)
    if "rollout" not in alone:
        return fewest(alone, capacity, spare)
    together = {role: held for role, held in alone.items() if role != "rollout"}
    groups = fewest(together, capacity, spare)
    return [(*group, "rollout") if "actor" in group else group for group in groups]

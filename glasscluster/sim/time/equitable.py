"""Which ranks have one role on some hardware: the coarsest equitable classes, by refinement.

Ranks begin with the class of the program that they run. Classes are split until all ranks of each agree on

    slow       by what factor their compute takes longer
    wires      over what kind of wire each of their messages goes, and each of their collectives
    partners   of what class the other rank of each message is, and which are in each collective's group

Each round looks at partners by the classes of the round before; when a round splits nothing, ranks of one
class are alike (sim/recording/roles.py says why they then begin and end every row at the same moment).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from glasscluster.sim.recording.cuts import Partition
from glasscluster.sim.recording.relative import Partners
from glasscluster.sim.time.hardware import Hardware


def refined(
    classes: np.ndarray,
    partners: Sequence[Partners],
    partitions: Sequence[Mapping[int, Partition]],
    hw: Hardware,
    slow_ranks: Mapping[int, float],
) -> np.ndarray:
    """Split classes of ranks until they are equitable.

    Args:
        classes: of every rank the number of its class, [gpus].
        partners: of each class, with whom its ranks have to do.
        partitions: of each class, from a communicator's number to the groups of its kind.
        hw: on which they shall be alike.
        slow_ranks: from a rank to the factor by which its compute takes longer.

    Returns:
        Of every rank its role, numbered by their lowest ranks, [gpus].
    """
    factor = np.ones(len(classes))
    for rank, slower in slow_ranks.items():
        factor[rank] = slower
    messages, collectives = _used(classes, partners, partitions)
    fixed = [classes, np.unique(factor, return_inverse=True)[1].reshape(-1)]
    for ranks, peers in messages:
        fixed.append(_filled(len(classes), ranks, _wires(hw, ranks, peers)))
    for partition, ranks in collectives:
        fixed.append(_filled(len(classes), ranks, partition.size[ranks]))
        fixed.append(_filled(len(classes), ranks, _spread(hw, partition)[ranks]))
    colour = _numbered(fixed)
    while True:
        columns = [colour]
        columns += [_filled(len(colour), ranks, colour[peers]) for ranks, peers in messages]
        columns += [_filled(len(colour), ranks, _sets(p, colour)[ranks]) for p, ranks in collectives]
        finer = _numbered(columns)
        if finer.max() == colour.max():
            return finer
        colour = finer


def _used(
    classes: np.ndarray, partners: Sequence[Partners], partitions: Sequence[Mapping[int, Partition]]
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[tuple[Partition, np.ndarray]]]:
    """Who has to do with whom: pairs of ranks and their peers, one for each kind of message; and for each cut
    whose groups run collectives, the ranks that do.
    """
    senders: dict[tuple[Partition, int], list[int]] = {}
    callers: dict[Partition, list[int]] = {}
    for number, (partner, of) in enumerate(zip(partners, partitions, strict=True)):
        for group, shift in partner.messages:
            senders.setdefault((of[group], shift), []).append(number)
        for group in partner.collectives:
            callers.setdefault(of[group], []).append(number)
    messages = []
    for (partition, shift), numbers in senders.items():
        ranks = np.flatnonzero(np.isin(classes, numbers))
        messages.append((ranks, partition.shifted(ranks, shift)))
    return messages, [(p, np.flatnonzero(np.isin(classes, numbers))) for p, numbers in callers.items()]


def _filled(n: int, ranks: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of some ranks, -1 for the others."""
    column = np.full(n, -1, dtype=np.int64)
    column[ranks] = values
    return column


def _wires(hw: Hardware, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    """The number of the kind of wire between each pair, in both directions: [pairs]."""
    if hw.topology is None:
        return (src // hw.node_size == dst // hw.node_size).astype(np.int64)
    there, back = (hw.topology.wires(a, b)[1] for a, b in ((src, dst), (dst, src)))
    return there * (back.max(initial=0) + 1) + back


def _spread(hw: Hardware, partition: Partition) -> np.ndarray:
    """Of every rank's group, what a library's collective costs by, beside its size: how many nodes it is
    spread over, and which kinds of wire are in a ring round it. -1 without a group, [gpus].
    """
    ranks = np.flatnonzero(partition.group >= 0)
    wire, node = np.full(len(partition.group), -1), np.full(len(partition.group), -1)
    wire[ranks] = _wires(hw, ranks, partition.shifted(ranks, 1))
    node[ranks] = ranks // hw.node_size
    return _numbered([_each_group(partition, node, lambda nodes: len(set(nodes))), _sets(partition, wire)])


def _sets(partition: Partition, colour: np.ndarray) -> np.ndarray:
    """Of every rank, a number of the set of colours in its group; -1 without a group, [gpus]."""
    known: dict[tuple[int, ...], int] = {}
    return _each_group(partition, colour, lambda colours: known.setdefault(colours, len(known)))


def _each_group(
    partition: Partition, colour: np.ndarray, number: Callable[[tuple[int, ...]], int]
) -> np.ndarray:
    """A number for each group's different colours, which `number` gets in ascending order: [gpus]."""
    group = partition.group[partition.members]
    pairs = np.unique(np.stack([group, colour[partition.members]], axis=1), axis=0)
    ends = np.cumsum(np.bincount(pairs[:, 0], minlength=len(partition.first) - 1)).tolist()
    colours = pairs[:, 1].tolist()
    numbers = [number(tuple(colours[a:b])) for a, b in zip([0, *ends], ends, strict=False)]
    return np.array([*numbers, -1])[partition.group]


def _numbered(columns: list[np.ndarray]) -> np.ndarray:
    """Ranks with equal columns get one number; numbers ascend with the lowest rank that has each."""
    number = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        _, narrow = np.unique(column, return_inverse=True)
        _, first, number = np.unique(
            number * (narrow.max() + 1) + narrow.reshape(-1), return_index=True, return_inverse=True
        )
        number = np.argsort(np.argsort(first))[number.reshape(-1)]
    return number

"""The one schema of a recording: kinds of event, phases, purposes of a message, categories of memory, the
columns of a row.
"""

from __future__ import annotations

COMPUTE, SEND, RECV, REDUCE, COLLECTIVE, BEGIN, HOST = range(7)
KINDS = ("compute", "send", "recv", "reduce", "collective", "begin", "host")

PHASES = ("other", "forward", "backward", "weight", "recompute", "optimizer")
OTHER, FORWARD, BACKWARD, WEIGHT, RECOMPUTE, OPTIMIZER = range(6)

PURPOSES = ("activations", "gradients", "parameters", "scalars", "data")
CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "buffers")

LANES_PER_GROUP = 6  # stream, sends, receives, launches of collectives; sends, receives of the program


def group_lane(group: int, which: int) -> int:
    """The number of a lane of a communicator.

    Args:
        group: the communicator's number.
        which: of its collectives 0 the stream, 1 sends, 2 receives, 3 launches; of the program 4 sends, 5
            receives.

    Returns:
        The lane's number; lane 0 is compute's.
    """
    return 1 + group * LANES_PER_GROUP + which


# One rank's row, then the local numbers of the rows it depends on.
FIELDS = (
    *(
        "lane",
        "order",
        "kind",
        "phase",
        "layer",
        "micro_batch",
        "op",
        "flops",
        "bytes",
        "peer",
        "tag",
        "purpose",
        "label",
    ),
    *("sequence", "offset"),
)
COLUMNS = ("rank", *FIELDS)  # of the graph of all ranks

"""The action lists that the installed PyTorch writes: an oracle for ours. Its schedules are made with stages
that do nothing.
"""

from __future__ import annotations

from typing import Any

import torch.distributed.pipelining.schedules as pytorch

THEIRS = {
    "gpipe": "ScheduleGPipe",
    "1f1b": "Schedule1F1B",
    "interleaved": "ScheduleInterleaved1F1B",
    "looped-bfs": "ScheduleLoopedBFS",
    "interleaved-zb": "ScheduleInterleavedZeroBubble",
    "zb-v": "ScheduleZBVZeroBubble",
    "dualpipe-v": "ScheduleDualPipeV",
}


class Stage:
    """What a schedule asks a stage when it is made; any other question is answered by nothing."""

    def __init__(self, index: int, stages: int, ranks: int) -> None:
        self.stage_index, self.num_stages, self.group_size, self.group_rank = index, stages, ranks, 0
        self.is_first, self.is_last, self.has_backward = index == 0, index == stages - 1, True
        self.device, self.group, self.submod = "cpu", None, None

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_named: None


def pytorch_lists(name: str, p: int, m: int, v: int) -> list[list[str]] | None:
    """One list of tokens a rank, idle time and gradient reductions left out; None if this PyTorch has no such
    schedule or list.
    """
    kind = getattr(pytorch, THEIRS[name], None)
    if kind is None:
        return None
    own = [0, 2 * p - 1] if name in ("zb-v", "dualpipe-v") else range(0, p * v, p)
    stages = [Stage(s, p * v, p) for s in own]
    schedule = kind(stages[0] if name in ("gpipe", "1f1b") else stages, m, loss_fn=lambda *_: 0)
    order = getattr(schedule, "pipeline_order", None)
    if order is None:
        return None
    return [[str(a) for a in order[r] if a is not None and "REDUCE" not in str(a)] for r in range(p)]

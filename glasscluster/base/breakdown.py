"""The words for where a rank's time goes: one list, and whoever says where time went takes them from here.

Every instant of a rank belongs to exactly one entry, so the entries add up to the time of the run:

    compute lane     | forward | backward |......idle......| optimizer |
    entry              compute   compute    which of these   optimizer
                                            is decided by what the rank waits for:
                                            its message is in flight        exposed_AXIS
                                            the host's link or CPU is busy  host
                                            another pipeline stage is late  bubble
                                            anything else                   wait

Names, order, colours and definitions of figures, pages, commands and docs/time.md come from this file. The
arithmetic is in sim/time/idle.py. Papers on pipelines call something else the bubble: see `PAPERS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from glasscluster.base.text import Said

COMPUTE, RECOMPUTE, HOST, BUBBLE, WAIT, OPTIMIZER = (
    "compute",
    "recompute",
    "host",
    "bubble",
    "wait",
    "optimizer",
)
BUSY = (COMPUTE, RECOMPUTE, OPTIMIZER)  # entries in which the compute lane works; in the others it is idle
EXPOSED = "exposed"  # with the axis behind it: exposed_dp
AXES = {
    "tp": Said("tensor parallelism", "张量并行"),
    "pp": Said("the pipeline", "流水线并行"),
    "dp": Said("data parallelism", "数据并行"),
    "cp": Said("context parallelism", "上下文并行"),
    "ep": Said("expert parallelism", "专家并行"),
}


def capital(text: str) -> str:
    """A text with a capital at its beginning, as a legend has it."""
    return text[:1].upper() + text[1:]


def _sentence(name: Said, meaning: Said) -> Said:
    return Said(f"{capital(name.en)}: {meaning.en}.", f"{name.zh}：{meaning.zh}。")


@dataclass(frozen=True)
class Entry:
    """One entry of the breakdown of a rank's time.

    Attributes:
        key: its key in JSON.
        name: what a legend or a sentence calls it.
        meaning: its definition, a phrase that can follow a colon.
        fill, text, hatch, ink: how it is drawn: the fill's colour, that of text on it, a plotly pattern
            shape, and the pattern's colour. What works is solid, what waits is pale and hatched.
    """

    key: str
    name: Said
    meaning: Said
    fill: str
    text: str = "#000000"
    hatch: str = ""
    ink: str = "#ffffff"

    @property
    def definition(self) -> Said:
        """Name and meaning as one sentence."""
        return _sentence(self.name, self.meaning)


LOOKS = {  # fill, hatch and ink of waiting for the messages of an axis
    "tp": ("#f9dcc8", "/", "#d55e00"),
    "pp": ("#f3dce8", "x", "#b3548a"),
    "dp": ("#fcecc6", "-", "#b87f00"),
    "cp": ("#d2ece3", ".", "#00795a"),
    "ep": ("#dcd9f0", "/", "#5b4fa8"),
    "": ("#f6d5d5", "x", "#a83232"),
}


def _exposed(axis: str) -> Entry:
    """Waiting for the messages of an axis, which may be one that only a user's own program has."""
    fill, hatch, ink = LOOKS.get(axis, LOOKS[""])
    whose = AXES.get(axis, Said(f"communicator {axis}", f"通信器 {axis}"))
    return Entry(
        f"{EXPOSED}_{axis}",
        Said(f"exposed communication ({axis})", f"暴露的通信（{axis}）"),
        Said(
            f"the rank computes nothing while the message it waits for, of {whose.en}, is in flight",
            f"rank 没有计算，它等待的{whose.zh}消息正在传输",
        ),
        fill,
        hatch=hatch,
        ink=ink,
    )


ENTRIES: dict[str, Entry] = {
    entry.key: entry
    for entry in (
        Entry(
            COMPUTE,
            Said("compute", "计算"),
            Said(
                "the rank computes: forward, backward and all other work but recomputation and the optimizer",
                "rank 在计算：前向、反向与其他计算，不含重计算与优化器",
            ),
            "#0072B2",
            "#ffffff",
        ),
        Entry(
            RECOMPUTE,
            Said("recompute", "重计算"),
            Said(
                "the forward once more, for activations that were not kept",
                "再做一次前向，补上没有保存的激活",
            ),
            "#56B4E9",
            hatch=".",
        ),
        *(_exposed(axis) for axis in AXES),
        Entry(
            HOST,
            Said("waiting for the host", "等待主机"),
            Said(
                "the rank computes nothing while the host's link or CPU works on what it waits for",
                "rank 没有计算，主机的链路或 CPU 正在处理它等待的内容",
            ),
            "#e9e3d2",
            hatch="-",
            ink="#8a7747",
        ),
        Entry(
            BUBBLE,
            Said("bubble", "气泡"),
            Said(
                "the rank waits for another pipeline stage, and no message that it waits for is in flight",
                "rank 在等另一个流水线阶段，而它等的消息还没有发出",
            ),
            "#e3e3e3",
            hatch="/",
            ink="#9a9a9a",
        ),
        Entry(
            WAIT,
            Said("other waiting", "其他等待"),
            Said(
                "the rank waits for anything else, such as a rank that comes late to a collective or ends later",
                "rank 在等别的事，例如还没来到集合通信的 rank，或比它更晚结束的 rank",
            ),
            "#f4f4f4",
            hatch=".",
            ink="#9a9a9a",
        ),
        Entry(
            OPTIMIZER,
            Said("optimizer", "优化器"),
            Said("the optimizer's update of the parameters", "优化器更新参数"),
            "#F0E442",
        ),
    )
}

# What papers on pipelines call the bubble; where nothing is pipelined these do not exist (null).
PAPERS: dict[str, tuple[Said, Said]] = {
    "bubble_fraction": (
        Said("papers' bubble", "论文口径的气泡"),
        Said(
            "all idle time of all ranks, time of messages included, as a share of ranks × window; "
            "the window is from the first forward to the last backward",
            "窗口内所有 rank 的全部空闲时间（含消息时间），占 rank 数 × 窗口的比例；窗口从首个前向到最后一个反向",
        ),
    ),
    "bubble_over_ideal": (
        Said("papers' bubble over ideal", "论文口径的气泡（相对理想）"),
        Said(
            "the same idle time over the useful time, which is all that an ideal pipeline would take",
            "同样的空闲时间除以有效时间；理想流水线只需要有效时间",
        ),
    ),
    "stage_span_bubble_fraction": (
        Said("stage-span bubble", "阶段跨度气泡"),
        Said(
            "idle time inside the longest stage's own span, from its first to its last work, as a share of "
            "that span (what the zero-bubble paper reports)",
            "最长的阶段从首个到最后一个操作的跨度内，空闲时间所占的比例（零气泡论文报告的量）",
        ),
    ),
}
PAPERS_DEFINITIONS = {key: _sentence(*said) for key, said in PAPERS.items()}


def entry_of(key: str) -> Entry:
    """The entry of a key; for an axis of a user's own program one is made."""
    return ENTRIES[key] if key in ENTRIES else _exposed(key.removeprefix(f"{EXPOSED}_"))


def in_order(keys: Iterable[str]) -> list[str]:
    """Keys in the order of the list; those of other axes, by name, stand behind the five of plans."""
    order = list(ENTRIES)
    before_host = order.index(HOST) - 0.5
    return sorted(keys, key=lambda key: (order.index(key) if key in ENTRIES else before_host, key))


def tenths(breakdown: Mapping[str, float]) -> dict[str, int]:
    """Shares of a breakdown in tenths of a percent, rounded so that they add up to exactly 1000.

    What was cut off decides who is rounded up: the largest remainders first. Entries that come out as zero
    are left out.
    """
    total = sum(breakdown.values())
    if not total > 0:
        return {}
    exact = {key: 1000 * breakdown[key] / total for key in in_order(breakdown)}
    whole = {key: int(share + 1e-9) for key, share in exact.items()}
    missing = 1000 - sum(whole.values())
    for key in sorted(exact, key=lambda key: round(whole[key] - exact[key], 6))[: max(missing, 0)]:
        whole[key] += 1
    return {key: share for key, share in whole.items() if share}


def listed(breakdown: Mapping[str, float]) -> Said:
    """A breakdown in words: `compute 54.8%, exposed communication (dp) 45.2%`; the shares add up to 100 %."""
    shares = [(entry_of(key).name, f"{share / 10:.1f}%") for key, share in tenths(breakdown).items()]
    return Said(
        ", ".join(f"{name.en} {share}" for name, share in shares),
        "、".join(f"{name.zh} {share}" for name, share in shares),
    )

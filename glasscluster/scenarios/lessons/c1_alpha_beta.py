"""C1: latency and bandwidth of a message, by ping-pong."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

LINKS = ("classroom", "dgx-h100", "pcie-4090", "laptop")


def ping_pong(gpu: Any, nbytes: int) -> None:
    """Rank 0 sends, rank 1 sends back."""
    import torch

    with gpu.unrecorded():  # only the messages are timed
        x = torch.zeros(nbytes, dtype=torch.uint8)
    if gpu.rank == 0:
        gpu.comm.send(x, 1)
        gpu.comm.recv(x, 1)
    else:
        gpu.comm.recv(x, 0)
        gpu.comm.send(x, 0)


@lesson(
    "C1",
    title=("α–β: latency and bandwidth", "α–β：延迟与带宽"),
    topic=("communication", "通信"),
    question=("A message of 1 KB and one of 1 GB: which constant of the link matters?", "1 KB 和 1 GB 的消息：链路的哪个常数重要？"),
    formula=Formula("Eq 8", "t = α + S/β,  α = o + L", "V", "Hockney 1994; Thakur et al. 2005"),
    kills=(
        "“Bandwidth is all that matters.” Below α·β bytes a message costs its latency.",
        "“只有带宽重要。”小于 α·β 字节的消息，时间就是延迟。",
    ),
    card=Card(
        ("When is communication latency bound?", "什么时候通信受延迟限制？"),
        (
            "When the message is smaller than α·β: on a 10 GB/s link with 10 µs latency, below 100 KB. Then fuse messages.",
            "消息小于 α·β 时：10 GB/s、10 µs 的链路上即 100 KB 以下。此时应合并消息。",
        ),
        (
            "A message takes α + S/β. At S = αβ both parts are equal; a tenth of that and you pay 91 % latency. A ring all-reduce splits S into "
            "N chunks and takes 2(N−1) steps, so its own threshold is N times higher. That is why gradients are bucketed and why trees "
            "win for small sizes.",
            "一条消息用时 α + S/β。S = αβ 时两部分相等；再小十倍，91% 是延迟。环形 all-reduce 把 S 切成 N 块走 2(N−1) 步，门槛再高 N 倍。"
            "所以梯度要分桶，小消息用树形算法更好。",
        ),
        (
            ("How would you measure α and β?", "怎样测量 α 和 β？"),
            ("What does o, the overhead, block that L does not?", "开销 o 会阻塞什么而 L 不会？"),
        ),
    ),
)
def alpha_beta(lab: Lab, small: int = 1000) -> None:
    """Two ranks play ping-pong with messages of 100 bytes to 10 MB; the recordings are replayed on four links."""
    from glasscluster.sim.time.hardware import hardware
    from glasscluster.visualize.figures.plots import lines

    sizes = sorted({100, small, 10_000, 100_000, 1_000_000, 10_000_000})
    runs = {s: lab.run(f"bytes-{s}", (f"{s:,} bytes", f"{s:,} 字节"), ping_pong, s, gpus=2) for s in sizes}
    half = {name: [runs[s].replay(name).makespan / 2 for s in sizes] for name in LINKS}
    link = hardware(lab.hardware).link(0, 1)
    lab.ask(f"How many microseconds does a message of {small} bytes take on {lab.hardware}?",
            f"在 {lab.hardware} 上，{small} 字节的消息要多少微秒？", runs[small].timeline.makespan / 2 * 1e6, "µs")  # fmt: skip
    for s in sizes:
        lab.check(f"time of {s} bytes, one way", link.alpha + s / link.bandwidth, None, "Eq 8",
                  simulated=runs[s].timeline.makespan / 2, unit="s", match="virtual", tolerance=1e-9)  # fmt: skip
    big, tiny = sizes[-1], sizes[0]
    times = {s: runs[s].timeline.makespan / 2 for s in (tiny, big)}
    beta = (big - tiny) / (times[big] - times[tiny])
    alpha = times[tiny] - tiny / beta
    lab.check("α fitted from two sizes", link.alpha, None, "Eq 8", simulated=alpha, unit="s", match="virtual", tolerance=1e-6)
    lab.check("β fitted from two sizes", link.bandwidth, None, "Eq 8", simulated=beta, unit="bytes/s", match="virtual", tolerance=1e-6)
    axes = {"en": ("message (bytes)", "one way (µs)"), "zh": ("消息（字节）", "单程（µs）")}
    lab.figure(
        ("Time against size on four links", "四种链路上时间与大小的关系"),
        lambda lang: lines({n: (sizes, [t * 1e6 for t in half[n]]) for n in LINKS}, *axes[lang], log_x=True, log_y=True),
    )
    knee = link.alpha * link.bandwidth
    lab.tell(
        f"On {lab.hardware} α = {alpha * 1e6:.3g} µs and β = {beta / 1e9:.3g} GB/s, fitted from two sizes: the knee is at {knee:,.0f} bytes.",
        f"在 {lab.hardware} 上由两个大小拟合得 α = {alpha * 1e6:.3g} µs，β = {beta / 1e9:.3g} GB/s：拐点在 {knee:,.0f} 字节。",
    )
    lab.conclude(f"Below {knee:,.0f} bytes this link is all latency.", f"小于 {knee:,.0f} 字节时，这条链路上只剩延迟。")
    lab.explain(
        "The lines are flat while α dominates and rise with slope one when S/β does; links differ in where they bend.",
        "α 占主导时曲线是平的，S/β 占主导时斜率为一；不同链路的区别在于拐点的位置。",
        ("α is paid per message, S/β per byte; they are equal at S = αβ.", "α 按消息付，S/β 按字节付；两者在 S = αβ 处相等。"),
        ("Below that size a faster wire hardly helps.", "小于该大小时，换更快的线几乎没用。"),
    )
    lab.own_number(f"α·β = {knee:,.0f} bytes on {lab.hardware}.", f"{lab.hardware}：α·β = {knee:,.0f} 字节。")

"""What MFU and HFU count, in one place: whoever prints one of them says so in these words."""

from __future__ import annotations

from glasscluster.base.text import Said

MEANINGS = {
    "mfu": (
        Said("MFU", "MFU"),
        Said(
            "FLOPs that the model needs, attention dense whatever its mask hides, over time × GPUs × peak",
            "模型所需的 FLOPs（注意力一律按稠密计，不管掩码遮住多少），除以时间 × GPU 数 × 峰值",
        ),
    ),
    "mfu_causal": (
        Said("causal MFU", "因果 MFU"),
        Said(
            "the same, but of attention only the pairs of tokens that the mask lets see each other",
            "同上，但注意力只计掩码允许互相看见的 token 对",
        ),
    ),
    "hfu": (
        Said("HFU", "HFU"),
        Said(
            "FLOPs that ran: with recomputation, without what a kernel skipped. A causal kernel that skips "
            "half of the attention can bring it below MFU",
            "实际运行的 FLOPs：含重计算，不含内核跳过的部分。因果内核跳过一半注意力时，它会低于 MFU",
        ),
    ),
}
DEFINITIONS = {
    key: Said(f"{name.en}: {meaning.en}.", f"{name.zh}：{meaning.zh}。")
    for key, (name, meaning) in MEANINGS.items()
}

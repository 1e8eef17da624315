"""A5: pre-norm, post-norm, sandwich; LayerNorm, RMSNorm: whose gradients explode in 24 layers, before any training."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

SEEDS = 4
KINDS = {"post": ("post", "layernorm"), "pre": ("pre", "layernorm"), "pre, RMSNorm": ("pre", "rmsnorm"), "sandwich": ("sandwich", "layernorm")}  # fmt: skip


# fmt: off
def program(gpu: Any, depths: list[int], h: int) -> dict[str, Any]:
    """One backward through models of each kind and depth, as they are born: the gradient norm of every layer's last MLP matrix."""
    import torch

    from glasscluster.model.gpt import GPTStage
    from glasscluster.model.kernels.rms_norm import rms_norm
    from glasscluster.strategies.plan import make_model

    found: dict[str, Any] = {"gradients": {}, "stream": {}}
    def born(kind: str, depth: int, seed: int) -> tuple[list[float], list[float]]:
        """Gradient norms, and sizes of the residual stream, by layer."""
        draw = torch.Generator().manual_seed(seed)
        tokens, targets = torch.randint(0, 64, (2, 8, 16), generator=draw)
        place, norm = KINDS[kind]
        config = make_model("tiny", layers=depth, hidden=h, heads=4, vocab=64, seq=16, norm_position=place, norm=norm, init_std=h**-0.5, tied=False, bias=False)
        model, sizes = GPTStage(config, seed=seed), []
        for block in model.layers.values():
            with torch.no_grad():  # as in the paper: no branch is made smaller because there are many
                block.down_weight.mul_((2 * depth) ** 0.5)
                block.out_weight.mul_((2 * depth) ** 0.5)
            block.register_forward_hook(lambda _m, _i, out: sizes.append(float(out.detach().square().mean().sqrt())))
        (model(tokens, targets) / tokens.numel()).backward()
        return [float(b.down_weight.grad.norm()) for b in model.layers.values()], sizes

    with gpu.unrecorded():
        draw = torch.Generator().manual_seed(0)
        for kind in KINDS:
            for depth in depths:
                several = [born(kind, depth, seed) for seed in range(SEEDS)]
                found["gradients"][kind, depth], found["stream"][kind, depth] = (torch.tensor(x).mean(0).tolist() for x in zip(*several, strict=True))
        x, weight = torch.randn(5, h, generator=draw, dtype=torch.float64).requires_grad_(), torch.randn(h, generator=draw, dtype=torch.float64).requires_grad_()
        up = torch.randn(5, h, generator=draw, dtype=torch.float64)
        pairs = [(f(x, weight), torch.autograd.grad(f(x, weight), (x, weight), up)) for f in (lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: torch.nn.functional.rms_norm(x, (h,), w, 1e-5))]
        (a, grads), (b, others) = pairs
        found["apart"] = max(float((p - q).abs().max().detach()) for p, q in zip((a, *grads), (b, *others), strict=True))
        found["checked"] = int(torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x[:2, :8].detach().requires_grad_(), weight[:8].detach().requires_grad_())))
    with gpu.region("forward", layer=0, micro_batch=0):
        rms_norm(x.detach(), weight.detach(), 1e-5)
    return found


@lesson(
    "A5",
    title=("Where the norm goes", "Pre/Post-Norm 与 RMSNorm"),
    topic=("the model", "模型"),
    question=("24 layers, nothing trained yet: where is the gradient largest, in Pre-LN and in Post-LN?", "24 层、尚未训练：Pre-LN 和 Post-LN 的梯度各在哪里最大？"),
    formula=Formula("Eq 5", "gradient of the last MLP at birth: Post-LN O(d √ln d), whatever L; Pre-LN O(d √(ln d / L))", "T", "Xiong 2002.04745 Thm 1"),
    kills=("“RMSNorm is only for speed, and Post-LN never works.” RMSNorm drops the mean and trains as well; Post-LN works with warm-up, or with scaled branches.",
           "“RMSNorm 只是为了快；Post-LN 根本不能用。”RMSNorm 去掉均值而效果相当；Post-LN 加上预热或缩放分支就能用。"),
    card=Card(
        ("Pre-LN or Post-LN? And why RMSNorm?", "Pre-LN 还是 Post-LN？为什么用 RMSNorm？"),
        ("Post-LN normalises the residual itself: near the output its gradients are large whatever the depth, so it needs warm-up. Pre-LN leaves the residual alone; it grows with depth and its gradients shrink like 1/√L. RMSNorm drops the mean: fewer operations, the same training.",
         "Post-LN 对残差本身做归一化：靠近输出处的梯度无论多深都很大，所以需要预热。Pre-LN 不动残差；残差随深度增长，梯度按 1/√L 变小。RMSNorm 去掉均值：运算更少，训练效果相同。"),
        ("In Pre-LN, x grows by a branch a layer: after L layers its variance is about L, and the final norm divides by √L, so each layer's gradient has a factor 1/√L: stable from the first step. Its price: deep layers add little to a large stream. Post-LN keeps the stream at 1, so nothing divides by the depth: "
         "the last layer's gradient is O(d√ln d) at birth however deep the model is, several times Pre-LN's, hence warm-up (or DeepNorm's scaled residuals). Sandwich adds a norm behind each branch. RMSNorm: x / √mean(x²); invariance to scale is what matters, not to shift. "
         "QK-norm puts one on q and k so that logits cannot blow up. GroupNorm and WeightNorm normalise other things: groups of channels, and the weights' length.",
         "Pre-LN 中每层给 x 加一个分支：L 层之后方差约为 L，最后的归一化除以 √L，所以每层梯度带 1/√L：从第一步起就稳定。代价：深层对已经很大的残差贡献不大。Post-LN 把残差保持在 1，没有任何东西除以深度："
         "无论多深，最后一层在初始时的梯度都是 O(d√ln d)，是 Pre-LN 的数倍，因此要预热（或用 DeepNorm 缩放残差）。Sandwich 在每个分支之后再加一个归一化。RMSNorm：x / √mean(x²)；重要的是对缩放不变，而不是对平移不变。"
         "QK-norm 给 q 和 k 各加一个，使 logits 不会爆炸。GroupNorm 与 WeightNorm 归一化的是别的东西：通道组，以及权重的长度。"),
        (("What does warm-up protect Post-LN from?", "预热保护 Post-LN 免于什么？"), ("Why scale residual branches by 1/√(2L) in GPT-2?", "GPT-2 为什么把残差分支乘 1/√(2L)？")),
    ),
)
def where_the_norm_goes(lab: Lab, layers: int = 24, h: int = 64) -> None:
    """Models of growing depth are made, and one gradient is taken: by layer, for each place of the norm and each norm."""
    import numpy as np

    from glasscluster.visualize.figures.plots import lines

    depths = [layers // 4, layers]
    run = lab.run("born", ("Gradients at birth", "初始时的梯度"), program, depths, h, gpus=1)
    found = run.results[0]
    last = {kind: [found["gradients"][kind, depth][-1] for depth in depths] for kind in KINDS}
    power = {kind: float(np.polyfit(np.log(depths), np.log(values), 1)[0]) for kind, values in last.items()}
    for kind, expected in (("pre", -0.5), ("pre, RMSNorm", -0.5), ("post", 0.0)):
        lab.check(f"{kind}: power of L in the last MLP's gradient", expected, power[kind], "Eq 5", unit="", match="statistical", tolerance=0.2)
    grown = {kind: found["stream"][kind, layers] for kind in KINDS}
    stretch = grown["pre"][-1] / grown["pre"][layers // 4 - 1]
    lab.check(f"pre: residual stream after {layers} layers over that after {layers // 4}", 2, stretch, "variances of branches add: √4", unit="×", match="statistical", tolerance=0.3)
    lab.check(f"post: residual stream after {layers} layers", 1, grown["post"][-1], "it is a norm's output", unit="rms", match="statistical", tolerance=0.1)
    lab.check("largest difference of RMSNorm, output and gradients, from torch's", 0, found["apart"], "1910.07467, float64", unit="absolute", tolerance=1e-12)
    lab.check("RMSNorm passes gradcheck", 1, found["checked"], "finite differences", unit="")
    ratio = last["post"][-1] / last["pre"][-1]
    lab.ask(f"{layers} layers at birth: how many times as large is the last MLP's gradient in Post-LN as in Pre-LN?", f"{layers} 层、初始时：最后一个 MLP 的梯度，Post-LN 是 Pre-LN 的几倍？", ratio, "×")
    names = {"en": {"post": "Post-LN", "pre": "Pre-LN", "pre, RMSNorm": "Pre-RMSNorm", "sandwich": "Sandwich"}, "zh": {"post": "Post-LN（后置）", "pre": "Pre-LN（前置）", "pre, RMSNorm": "前置 RMSNorm", "sandwich": "Sandwich（前后）"}}
    axes = {"en": ("layer", "gradient norm of its last matrix", "layers L", "its gradient norm", "size of the residual stream (rms)"), "zh": ("层", "该层最后一个矩阵的梯度范数", "层数 L", "其梯度范数", "残差的大小 (rms)")}
    at = list(range(layers))
    lab.figure((f"The gradient of every layer, {layers} layers, before any training", f"每一层的梯度，{layers} 层，尚未训练"), lambda lang: lines({names[lang][k]: (at, found["gradients"][k, layers]) for k in KINDS}, *axes[lang][:2], log_y=True))
    lab.figure(("The last layer's last matrix: its gradient against depth", "最后一层的最后一个矩阵：梯度与深度"), lambda lang: lines({names[lang][k]: (depths, last[k]) for k in KINDS}, *axes[lang][2:4], log_x=True, log_y=True))
    lab.figure(("The residual stream on its way through the layers", "残差经过各层时的大小"), lambda lang: lines({names[lang][k]: (at, grown[k]) for k in KINDS}, axes[lang][0], axes[lang][4]))
    first = {kind: found["gradients"][kind, layers][0] for kind in KINDS}
    lab.tell(f"Last layer: Post-LN {last['post'][-1]:.3f}, Pre-LN {last['pre'][-1]:.3f}: {ratio:.2f} times as large.", f"最后一层：Post-LN {last['post'][-1]:.3f}，Pre-LN {last['pre'][-1]:.3f}：{ratio:.2f} 倍。", "tab=story")
    lab.tell(f"From {depths[0]} to {depths[-1]} layers Pre-LN's goes with L to the {power['pre']:.2f}, Post-LN's with L to the {power['post']:.2f}.", f"从 {depths[0]} 到 {depths[-1]} 层，Pre-LN 的梯度按 L 的 {power['pre']:.2f} 次方变化，Post-LN 按 {power['post']:.2f} 次方。", "tab=ledger")
    lab.tell(f"Post-LN's first layer gets {first['post'] / last['post'][-1]:.3f} of its last layer's gradient, Pre-LN's {first['pre'] / last['pre'][-1]:.3f}.", f"Post-LN 第一层的梯度是最后一层的 {first['post'] / last['post'][-1]:.3f}，Pre-LN 为 {first['pre'] / last['pre'][-1]:.3f}。", "tab=story")
    lab.tell(f"RMSNorm in LayerNorm's place: {last['pre, RMSNorm'][-1]:.3f} against {last['pre'][-1]:.3f} on the last layer.", f"用 RMSNorm 代替 LayerNorm：最后一层为 {last['pre, RMSNorm'][-1]:.3f}，对 {last['pre'][-1]:.3f}。", "tab=ledger")
    lab.conclude(f"At birth, Post-LN's last gradient is {ratio:.2f} times Pre-LN's in {layers} layers, and does not shrink with depth.", f"初始时 {layers} 层中，Post-LN 的最后一个梯度是 Pre-LN 的 {ratio:.2f} 倍，且不随深度变小。")
    lab.explain("Pre-LN's stream grows like √L and the final norm divides by it; Post-LN's stream is normalised after every layer, so nothing divides by the depth.", "Pre-LN 的残差按 √L 增长，最后的归一化除以它；Post-LN 每层之后都归一化，所以没有任何东西除以深度。",
                ("Variances of the branches add up along the residual stream.", "各分支的方差沿残差相加。"), ("A large gradient at birth is why Post-LN wants warm-up.", "初始梯度大，正是 Post-LN 需要预热的原因。"))
    lab.own_number(f"{ratio:.2f}× on {layers} layers.", f"{layers} 层：{ratio:.2f} 倍。")

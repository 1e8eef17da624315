"""B6: which gradients vanish in fp16, and the scale that saves them."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

RAISED = 2.0**16


def program(gpu: Any, job: Any) -> dict[str, Any]:
    """One fp32 backward of the mean loss: gradients by exponent, and what fp16 makes of them, as they are and raised."""
    import torch

    from glasscluster.model.gpt import GPTStage

    model = GPTStage(job.model, seed=job.seed)
    tokens, targets = job.batch(0)
    with gpu.region("forward"):
        loss = model(tokens, targets) / targets.numel()
    with gpu.region("backward"):
        loss.backward()
    with gpu.unrecorded():
        g = torch.cat([p.grad.flatten() for p, _ in model.full_names().values() if p.grad is not None]).abs()
        g = g[g > 0]
        found: dict[str, Any] = {"all": len(g)}
        for scale in (1.0, RAISED):
            x = g * scale
            at, counts = torch.frexp(x)[1].sub(1).unique(return_counts=True)
            half = x.half()
            found[f"x{scale:.0f}"] = {
                "exponents": dict(zip(at.tolist(), counts.tolist(), strict=True)),
                "small": int((x < 2.0**-14).sum()), "gone": int((half == 0).sum()), "below": int((x <= 2.0**-25).sum()),
                "over": int(half.isinf().sum()), "above": int((x >= 65520).sum()),
            }  # fmt: skip
        return found


@lesson(
    "B6",
    title=("Mixed precision and loss scale", "混合精度与损失缩放"),
    topic=("one GPU", "单卡"),
    question=("Which gradients vanish in fp16, and what brings them back?", "哪些梯度在 fp16 中消失？怎样找回？"),
    formula=Formula("F28", "S from 65536: ×½ on inf or nan and skip the step, ×2 after 2000 clean;  |g| ≤ 2⁻²⁵ becomes 0", "X", "Mixed precision 1710.03740 §3.2; torch GradScaler"),
    kills=(
        "“bf16 is more precise than fp16.” It has 3 bits less and fp32's range: no scale needed. “Unscale after clipping.” Then the clip sees a norm S times too large.",
        "“bf16 比 fp16 更精确。”它少 3 位尾数，但有 fp32 的范围：不需要缩放。“先裁剪再反缩放。”那样裁剪看到的范数大了 S 倍。",
    ),
    card=Card(
        ("Why does fp16 training need a loss scale and bf16 not?", "为什么 fp16 训练需要损失缩放而 bf16 不需要？"),
        (
            "fp16 has nothing below 2⁻²⁴; small gradients become zero. Multiplying the loss by S moves all gradients up by the same factor; they are divided by S in fp32 before the step. bf16 has fp32's exponents.",
            "fp16 在 2⁻²⁴ 以下没有数；小梯度变成零。把损失乘以 S 使所有梯度同倍上移；更新前在 fp32 中除以 S。bf16 的指数范围与 fp32 相同。",
        ),
        (
            "Keep fp32 master weights, since an update of lr × g is often below half a unit of a 16-bit weight. Scale the loss by S, start at 65536. If any gradient on any rank is inf or nan, skip the step on all ranks and halve S; "
            "after 2000 clean steps double it. Order: reduce, look for inf over all ranks, unscale in fp32, clip by the global norm, step. Ranks that decide alone diverge. A skipped step counts no step for Adam's bias correction.",
            "保留 fp32 主权重，因为 lr × g 的更新常小于 16 位权重的半个单位。损失乘以 S，从 65536 起。任何 rank 上任何梯度为 inf 或 nan，则所有 rank 跳过该步并把 S 减半；连续 2000 步干净则加倍。"
            "顺序：规约、在所有 rank 上查 inf、在 fp32 中反缩放、按全局范数裁剪、更新。各自决定的 rank 会分叉。跳过的步不计入 Adam 的偏差修正。",
        ),
        (
            ("What goes wrong if one rank skips and the others do not?", "如果只有一个 rank 跳过会怎样？"),
            ("Why keep master weights in fp32 with bf16, too?", "bf16 为什么也要保留 fp32 主权重？"),
        ),
    ),
)  # fmt: skip
def mixed_precision(lab: Lab, steps: int = 19, interval: int = 4) -> None:
    """A gradient is looked at exponent by exponent; then fp16 trains from far too high a scale, and overflows on its own."""
    import torch

    from glasscluster.strategies.job import Job
    from glasscluster.strategies.numerics.loss_scale import ScaleRule
    from glasscluster.strategies.plan import make_model, make_plan
    from glasscluster.visualize.figures.precision import exponents, staircase

    model = make_model("tiny", layers=2, hidden=32, seq=32)
    look = lab.run(
        "gradients", ("One backward, in fp32", "一次反向，fp32"), program, Job(make_plan(global_batch=8), model, 1, None, lab.seed), gpus=1
    ).results[0]
    plain, raised = look["x1"], look[f"x{RAISED:.0f}"]
    for name, of in (("as they are", plain), ("times 65536", raised)):
        lab.check(f"gradients that become 0 in fp16, {name}", of["below"], of["gone"], "F28: |g| ≤ 2⁻²⁵", unit="gradients")
        lab.check(f"gradients that become infinite in fp16, {name}", of["above"], of["over"], "|g| ≥ 65520 rounds to 2¹⁶", unit="gradients")
    rule = ScaleRule(initial=2.0**24, interval=interval)
    plan: dict[str, Any] = {"dp": 2, "tp": 2, "global_batch": 8}
    wide = lab.train("fp32", ("fp32", "fp32"), model=model, steps=steps, checked=False, **plan)
    brain = lab.train("bf16", ("bf16, no scale", "bf16，无缩放"), model=model, steps=steps, checked=False, precision="bf16", **plan)
    half = lab.train("fp16", ("fp16, scaled", "fp16，缩放"), model=model, steps=steps, precision="fp16", loss_scale=rule, **plan)
    first = half.run.results[0]
    scales, skipped = first.loss_scales, first.skipped
    theirs = torch.amp.GradScaler("cpu", init_scale=rule.initial, growth_interval=interval)
    other, weight = 0, torch.zeros(1, requires_grad=True)
    for scale, overflow in zip(scales, skipped, strict=True):
        theirs.scale(loss := torch.ones(()))
        other += scale != theirs.get_scale()
        weight.grad = torch.full((1,), float("inf") * float(loss) if overflow else 1.0)
        theirs.step(torch.optim.SGD([weight], lr=0.0))
        theirs.update()
    lab.check("steps whose scale differs from torch's GradScaler", 0, other, "torch.amp.GradScaler", unit="steps")
    lab.check(
        "ranks that decided otherwise than rank 0",
        0,
        sum(r.loss_scales != scales or r.skipped != skipped for r in half.run.results),
        "all ranks skip together",
        unit="ranks",
    )
    gone, small = 100 * plain["gone"] / look["all"], 100 * plain["small"] / look["all"]
    lab.ask("Of the non-zero gradients of the mean loss, what percentage is below 2⁻¹⁴, where fp16 loses digits and then everything?",
            "平均损失的非零梯度中，百分之几小于 2⁻¹⁴（fp16 在那里先丢位数，再全丢）？", small, "%")  # fmt: skip
    names = {"en": ("as they are", "times 65536", "exponent e of |g|: 2^e ≤ |g| < 2^(e+1); smaller than 2^-32 in one bar", "% of the gradients", ("becomes 0", "loses digits", "overflows")),
             "zh": ("原样", "乘以 65536", "|g| 的指数 e：2^e ≤ |g| < 2^(e+1)；小于 2^-32 的合为一条", "梯度的百分比", ("变成 0", "丢失位数", "溢出"))}  # fmt: skip
    share: list[dict[int, float]] = [{}, {}]
    for into, of in zip(share, (plain, raised), strict=True):
        for e, n in of["exponents"].items():
            into[max(e, -33)] = into.get(max(e, -33), 0.0) + n / look["all"]
    lab.figure(
        ("Gradients on fp16's scale of exponents", "梯度在 fp16 指数轴上的位置"),
        lambda lang: exponents(dict(zip(names[lang][:2], share, strict=True)), *names[lang][2:]),
    )
    steps_of = {
        "en": ("step", "loss scale S", ("scale", "step taken", "step skipped")),
        "zh": ("步", "损失缩放 S", ("缩放", "已更新的步", "跳过的步")),
    }
    lab.figure(
        (f"The staircase of the loss scale (×2 after {interval} clean steps)", f"损失缩放的阶梯（{interval} 步干净后 ×2）"),
        lambda lang: staircase(scales, skipped, *steps_of[lang]),
    )
    last = {k: float(t.run.results[-1].losses[-1]) for k, t in (("fp32", wide), ("bf16", brain), ("fp16", half))}
    lab.tell(f"Without a scale {small:.2f} % of the non-zero gradients are below 2⁻¹⁴ and {gone:.2f} % become 0; times 65536 it is {100 * raised['small'] / look['all']:.2f} % and {100 * raised['gone'] / look['all']:.2f} %, and {raised['over']} overflow.",
             f"不缩放时 {small:.2f} % 的非零梯度小于 2⁻¹⁴，{gone:.2f} % 变成 0；乘以 65536 后为 {100 * raised['small'] / look['all']:.2f} % 与 {100 * raised['gone'] / look['all']:.2f} %，溢出 {raised['over']} 个。")  # fmt: skip
    lab.tell(f"From 2²⁴ the scale fell to {min(scales):,.0f}; {sum(skipped)} of {steps} steps were skipped, on all {len(half.run.results)} ranks alike.",
             f"缩放从 2²⁴ 降到 {min(scales):,.0f}；{steps} 步中跳过 {sum(skipped)} 步，{len(half.run.results)} 个 rank 一致。", "tab=timeline&run=fp16")  # fmt: skip
    lab.tell(f"Losses of the last step: fp32 {last['fp32']:.4f}, bf16 {last['bf16']:.4f}, fp16 {last['fp16']:.4f} (it took fewer steps).",
             f"最后一步的损失：fp32 {last['fp32']:.4f}，bf16 {last['bf16']:.4f}，fp16 {last['fp16']:.4f}（更新步数较少）。", "tab=memory&run=bf16")  # fmt: skip
    lab.conclude(
        f"{small:.2f} % of the gradients lose digits or vanish without a scale; a scale too high costs skipped steps and repairs itself.",
        f"不缩放有 {small:.2f} % 的梯度丢失位数或消失；缩放过高只损失几步，并会自行恢复。",
    )
    lab.explain("A scale moves the whole histogram to the right by log₂ S. It must clear the left edge without touching the right one, so it searches: down at an overflow, up after a while without.",
                "缩放把整个直方图右移 log₂ S。既要离开左边界又不能碰到右边界，所以它在搜索：溢出则下降，一段时间无溢出则上升。",
                ("At or below 2⁻²⁵ a gradient becomes 0; above, up to 2⁻²⁴, it is rounded up.", "不大于 2⁻²⁵ 的梯度变成 0；再大一些、直到 2⁻²⁴ 的向上取整。"),
                ("All ranks must skip the same steps, and unscale before they clip.", "所有 rank 必须跳过相同的步，并且先反缩放再裁剪。"))  # fmt: skip
    lab.own_number(
        f"{small:.2f} % below 2⁻¹⁴ without a scale; {sum(skipped)} of {steps} steps skipped from 2²⁴.",
        f"不缩放时 {small:.2f} % 小于 2⁻¹⁴；从 2²⁴ 起 {steps} 步中跳过 {sum(skipped)} 步。",
    )

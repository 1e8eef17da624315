"""B6: which gradients vanish in fp16, and the scale that saves them."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.model.gpt import GPTStage
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.numerics.loss_scale import ScaleRule
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import Job
from glasscluster.visualize.figures.precision import exponents, staircase

RAISED = 2.0**16


def program(gpu: Any, job: Any) -> dict[str, Any]:
    """One fp32 backward of the mean loss: gradients by exponent, and what fp16 makes of them, as they are and raised."""

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
                "small": int((x < 2.0**-14).sum()),
                "gone": int((half == 0).sum()),
                "below": int((x <= 2.0**-25).sum()),
                "over": int(half.isinf().sum()),
                "above": int((x >= 65520).sum()),
            }
        return found


@lesson
def mixed_precision(lab: Lab, steps: int = 19, interval: int = 4) -> None:
    """A gradient is looked at exponent by exponent; then fp16 trains from far too high a scale, and overflows on its own."""

    model = make_model("tiny", layers=2, hidden=32, seq=32)
    look = lab.run(
        "gradients",
        lab.text("backward_fp32"),
        program,
        Job(make_plan(global_batch=8), model, 1, None, lab.seed),
        gpus=1,
    ).results[0]
    plain, raised = look["x1"], look[f"x{RAISED:.0f}"]
    for name, of in (("as they are", plain), ("times 65536", raised)):
        lab.row(
            "gradients_become_fp16", of["below"], of["gone"], "F28: |g| ≤ 2⁻²⁵", unit="gradients", name=name
        )
        lab.row(
            "gradients_become_infinite_fp16",
            of["above"],
            of["over"],
            "|g| ≥ 65520 rounds to 2¹⁶",
            unit="gradients",
            name=name,
        )
    rule = ScaleRule(initial=2.0**24, interval=interval)
    plan: dict[str, Any] = {"dp": 2, "tp": 2, "global_batch": 8}
    wide = lab.train("fp32", lab.text("fp32"), model=model, steps=steps, checked=False, **plan)
    brain = lab.train(
        "bf16", lab.text("bf16_no_scale"), model=model, steps=steps, checked=False, precision="bf16", **plan
    )
    half = lab.train(
        "fp16", lab.text("fp16_scaled"), model=model, steps=steps, precision="fp16", loss_scale=rule, **plan
    )
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
    lab.row("steps_whose_scale_differs_torch_gradscaler", 0, other, "torch.amp.GradScaler", unit="steps")
    lab.row(
        "ranks_decided_otherwise_rank",
        0,
        sum(r.loss_scales != scales or r.skipped != skipped for r in half.run.results),
        "all ranks skip together",
        unit="ranks",
    )
    gone, small = 100 * plain["gone"] / look["all"], 100 * plain["small"] / look["all"]
    lab.ask("number", small, "%")
    share: list[dict[int, float]] = [{}, {}]
    for into, of in zip(share, (plain, raised), strict=True):
        for e, n in of["exponents"].items():
            into[max(e, -33)] = into.get(max(e, -33), 0.0) + n / look["all"]
    lab.figure(
        "gradients_fp16_scale_exponents",
        lambda lang: exponents(
            dict(
                zip(
                    (
                        lab.word("they", lang),
                        lab.word("times", lang),
                    ),
                    share,
                    strict=True,
                )
            ),
            *(
                lab.word("exponent_smaller_bar", lang),
                lab.word("gradients", lang),
                (
                    lab.word("becomes", lang),
                    lab.word("loses_digits", lang),
                    lab.word("overflows", lang),
                ),
            ),
        ),
    )
    lab.figure(
        lab.text("staircase_loss_scale_after", interval=interval),
        lambda lang: staircase(
            scales,
            skipped,
            *(
                lab.word("step", lang),
                lab.word("loss_scale", lang),
                (
                    lab.word("scale", lang),
                    lab.word("step_taken", lang),
                    lab.word("step_skipped", lang),
                ),
            ),
        ),
    )
    last = {
        k: float(t.run.results[-1].losses[-1]) for k, t in (("fp32", wide), ("bf16", brain), ("fp16", half))
    }
    lab.tell(
        "without_scale_non_zero",
        small=small,
        gone=gone,
        raised_small=100 * raised["small"] / look["all"],
        raised_gone=100 * raised["gone"] / look["all"],
        over=raised["over"],
    )
    lab.tell(
        "scale_fell_steps_skipped",
        view="tab=timeline&run=fp16",
        lowest=min(scales),
        skipped=sum(skipped),
        steps=steps,
        ranks=len(half.run.results),
    )
    lab.tell(
        "losses_last_step_fp32",
        view="tab=memory&run=bf16",
        fp32=last["fp32"],
        bf16=last["bf16"],
        fp16=last["fp16"],
    )
    lab.conclude(small=small)
    lab.explain()
    lab.own_number(small=small, skipped=sum(skipped), steps=steps)

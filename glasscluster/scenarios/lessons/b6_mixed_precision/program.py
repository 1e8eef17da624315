"""B6: which gradients vanish in fp16, and the scale that saves them."""

from __future__ import annotations

import math
from typing import Any

import torch

from glasscluster.model.gpt import GPTStage
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.job import Job
from glasscluster.strategies.numerics.loss_scale import ScaleRule
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.precision import exponents, staircase

RAISED = 2.0**16


def program(gpu: Any, job: Any) -> dict[str, Any]:
    """Run one fp32 backward of the mean loss; count its gradients by exponent, and those that fp16 loses at
    each scale.
    """

    model = GPTStage(job.model, seed=job.seed)
    tokens, targets = job.batch(0)
    with gpu.region("forward"):
        loss = model(tokens, targets) / targets.numel()
    with gpu.region("backward"):
        loss.backward()
    with gpu.unrecorded():
        g = torch.cat([p.grad.flatten() for p, _ in model.full_names().values() if p.grad is not None]).abs()
        g = g[g > 0]
        measured: dict[str, Any] = {"all": len(g), "clipped": clipped_in_both_orders(g.double())}
        measured["mean"], measured["spread"] = float(g.log2().mean()), float(g.log2().std())
        for scale in (1.0, RAISED):
            x = g * scale
            at, counts = torch.frexp(x)[1].sub(1).unique(return_counts=True)
            half = x.half()
            measured[f"x{scale:.0f}"] = {
                "exponents": dict(zip(at.tolist(), counts.tolist(), strict=True)),
                "small": int((x < 2.0**-14).sum()),
                "subnormal": int((x < 2.0**-14 - 2.0**-25).sum()),  # what is closer rounds up to 2⁻¹⁴
                "coarse": int((half < torch.finfo(torch.half).smallest_normal).sum()),
                "gone": int((half == 0).sum()),
                "below": int((x <= 2.0**-25).sum()),
                "over": int(half.isinf().sum()),
                "above": int((x >= 65520).sum()),
            }
        return measured


def clipped_in_both_orders(g: Any) -> tuple[float, float]:
    """The norm of gradients that were multiplied by the scale: unscaled, then clipped; and the other way
    round.
    """
    limit, norms = float(g.norm()) / 2, []
    for unscale_first in (True, False):
        x = torch.nn.Parameter(torch.zeros_like(g))
        x.grad = g * RAISED
        for unscales in (unscale_first, not unscale_first):
            if unscales:
                x.grad /= RAISED
            else:
                torch.nn.utils.clip_grad_norm_([x], limit)
        norms.append(float(x.grad.norm()))
    return norms[0], norms[1]


@lesson
def mixed_precision(lab: Lab, steps: int = 19, interval: int = 4) -> None:
    """A gradient is looked at exponent by exponent; then fp16 trains from far too high a scale, and overflows
    on its own.
    """
    model = make_model("tiny", layers=2, hidden=32, seq=32)
    job = Job(make_plan(global_batch=8), model, 1, None, lab.seed)
    look = lab.run("gradients", lab.text("one_backward"), program, job, gpus=1).results[0]
    looks = {"as_they_are": look["x1"], "raised": look[f"x{RAISED:.0f}"]}
    count: dict[str, Any] = {"unit": "gradients"}
    for name, of in looks.items():
        title = lab.text(f"name_{name}")
        lab.row("become_zero", of["below"], of["gone"], "Eq 28: |g| ≤ 2⁻²⁵", **count, name=title)
        lab.row("become_infinite", of["above"], of["over"], "|g| ≥ 65520 rounds to 2¹⁶", **count, name=title)
    lab.row(
        "below_normal", look["x1"]["subnormal"], look["x1"]["coarse"], "Eq 28: |g| < 2⁻¹⁴ − 2⁻²⁵", **count
    )
    bits = math.log2(torch.finfo(torch.bfloat16).eps / torch.finfo(torch.half).eps)
    lab.row("bits_less", 10 - 7, bits, "10 bits and 7", unit="bits")
    right, wrong = look["clipped"]
    lab.row("clipped_first", RAISED, right / wrong, "S", unit="×", tolerance=1)

    rule = ScaleRule(initial=2.0**24, interval=interval)
    plan: dict[str, Any] = {
        "model": model,
        "steps": steps,
        "dp": 2,
        "tp": 2,
        "global_batch": 8,
        "micro_batch": 4,
    }
    trained = {
        "fp32": lab.train("fp32", lab.text("fp32"), checked=False, **plan),
        "bf16": lab.train("bf16", lab.text("bf16"), checked=False, precision="bf16", **plan),
        "fp16": lab.train("fp16", lab.text("fp16"), precision="fp16", loss_scale=rule, **plan),
    }
    ranks = trained["fp16"].run.results
    scales, skipped = ranks[0].loss_scales, ranks[0].skipped
    other = steps_unlike_torch(rule, scales, skipped)
    lab.row("scale_and_torch", 0, other, "torch.amp.GradScaler", unit="steps")
    otherwise = sum(r.loss_scales != scales or r.skipped != skipped for r in ranks)
    lab.row("ranks_decided_otherwise", 0, otherwise, "all ranks skip together", unit="ranks")

    def percent(name: str, what: str) -> float:
        return 100 * looks[name][what] / look["all"]

    small, gone = percent("as_they_are", "small"), percent("as_they_are", "gone")
    lab.ask("below_normal", small, "%", mean=look["mean"], spread=look["spread"])
    lab.figure("by_exponent", lambda lang: by_exponent(lab, looks, look["all"], lang))
    lab.figure("staircase", lambda lang: loss_scale(lab, scales, skipped, lang), interval=interval)
    raised: dict[str, Any] = {f"raised_{what}": percent("raised", what) for what in ("small", "gone")}
    lab.tell("without_a_scale", small=small, gone=gone, **raised, over=looks["raised"]["over"])
    fell: dict[str, Any] = {
        "first": rule.initial,
        "lowest": min(scales),
        "skipped": sum(skipped),
        "steps": steps,
        "ranks": len(ranks),
    }
    lab.tell("scale_fell", view="tab=timeline&run=fp16", **fell)
    last: dict[str, Any] = {name: float(t.run.results[-1].losses[-1]) for name, t in trained.items()}
    taken = steps - sum(skipped)
    lab.tell("last_losses", view="tab=memory&run=bf16", taken=taken, steps=steps, **last)
    lab.conclude(small=small)
    lab.explain()
    lab.card(gone=gone, bits=round(bits))
    lab.own_number(small=small, skipped=sum(skipped), steps=steps, first=rule.initial)


def steps_unlike_torch(rule: ScaleRule, scales: list[float], skipped: list[bool]) -> int:
    """The number of steps at which torch's GradScaler, given the same overflows, has another scale."""
    theirs = torch.amp.GradScaler("cpu", init_scale=rule.initial, growth_interval=rule.interval)
    other, weight = 0, torch.zeros(1, requires_grad=True)
    for scale, overflow in zip(scales, skipped, strict=True):
        theirs.scale(loss := torch.ones(()))
        other += scale != theirs.get_scale()
        weight.grad = torch.full((1,), float("inf") * float(loss) if overflow else 1.0)
        theirs.step(torch.optim.SGD([weight], lr=0.0))
        theirs.update()
    return other


def by_exponent(lab: Lab, looks: dict[str, Any], total: int, lang: str) -> Any:
    """Draw the share of gradients at each exponent, with those below 2^-32 in one bar."""
    series: dict[str, dict[int, float]] = {}
    for name, of in looks.items():
        share: dict[int, float] = {}
        for exponent, count in of["exponents"].items():
            bar = max(exponent, -33)
            share[bar] = share.get(bar, 0.0) + count / total
        series[lab.word(name, lang)] = share
    zones = (lab.word("becomes", lang), lab.word("loses_digits", lang), lab.word("overflows", lang))
    return exponents(series, lab.word("exponent", lang), lab.word("percent_of_gradients", lang), zones)


def loss_scale(lab: Lab, scales: list[float], skipped: list[bool], lang: str) -> Any:
    """Draw the loss scale, step by step."""
    words = (lab.word("scale", lang), lab.word("step_taken", lang), lab.word("step_skipped", lang))
    return staircase(scales, skipped, lab.word("step", lang), lab.word("loss_scale", lang), words)

"""A10: LayerNorm, RMSNorm, ScaleNorm, BatchNorm, GroupNorm: one function, and which elements share a
statistic; then Pre-Norm against Post-Norm, trained at several depths from several seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glasscluster.base.errors import InputError
from glasscluster.model.text.data import batch, corpus
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.scenarios.models_at_once import ModelsAtOnce, train
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.cells import Table, cells_figure, shade
from glasscluster.visualize.figures.plots import bars, lines

EPS = 1e-5
VOCAB, SEQ, SEQUENCES = 128, 16, 4  # of the small GPTs: bytes of text that are ASCII
RATES = (1e-3, 3e-3, 1e-2)  # without warm-up; the last one with warm-up, too
SEEDS = 3


@dataclass(frozen=True)
class Norm:
    """What tells one norm from another.

    Args:
        over: the dimensions of [sequences, tokens, groups, features of a group] that share a statistic.
        grouped: whether the features are cut into groups.
        centred: whether the mean is taken away.
        weights: "γβ" for both of every feature, "γ", or "g": one number in all.
        eps: added to the mean square.
    """

    over: tuple[int, ...]
    grouped: bool = False
    centred: bool = True
    weights: str = "γβ"
    eps: float = EPS


NORMS = {
    "batch": Norm(over=(0, 1)),
    "layer": Norm(over=(3,)),
    "rms": Norm(over=(3,), centred=False, weights="γ"),
    "scale": Norm(over=(3,), centred=False, weights="g", eps=0.0),
    "group": Norm(over=(3,), grouped=True),
    "group_sequence": Norm(over=(1, 3), grouped=True),
}


def forward(norm: Norm, x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Any of the norms without its weights: x [b, s, h] -> y [b, s, groups, h / groups], and 1/σ."""
    y = x.unflatten(-1, (groups if norm.grouped else 1, -1))
    if norm.centred:
        y = y - y.mean(norm.over, keepdim=True)
    scale = (y.square().mean(norm.over, keepdim=True) + norm.eps).rsqrt()
    return y * scale, scale


def backward(norm: Norm, upstream: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """The gradient of x [b, s, h] from y's: its mean, and what lies along y, are taken out of it."""
    through = upstream - y * (upstream * y).mean(norm.over, keepdim=True)
    if norm.centred:
        through = through - upstream.mean(norm.over, keepdim=True)
    return (through * scale).flatten(2)


class ScaleNorm(nn.Module):
    """g · x / |x|, which torch has not (Nguyen and Salazar, 1910.05895), with g starting at √h."""

    def __init__(self, h: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([h**0.5]))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., h]."""
        return nn.functional.normalize(x, dim=-1) * self.weight


def torchs(name: str, h: int, groups: int) -> nn.Module:
    """torch's own module of a norm, in float64."""
    made: dict[str, nn.Module] = {
        "batch": nn.BatchNorm1d(h, EPS),
        "layer": nn.LayerNorm(h, EPS),
        "rms": nn.RMSNorm(h, EPS),
        "scale": ScaleNorm(h),
        "group": nn.GroupNorm(groups, h, EPS),
        "group_sequence": nn.GroupNorm(groups, h, EPS),
    }
    return made[name].double()


def by_torch(name: str, module: nn.Module, x: Tensor) -> Tensor:
    """torch's norm of x [b, s, h]; two of them take the features before the places: [b, h, s]."""
    if name in ("batch", "group_sequence"):
        return module(x.mT).mT
    return module(x.flatten(0, 1)).view(x.shape)


def away_from_torch(name: str, x: Tensor, upstream: Tensor, groups: int) -> float:
    """The largest difference of our norm from torch's, in its output and the gradients of x and weights."""
    norm, module, h = NORMS[name], torchs(name, x.shape[-1], groups), x.shape[-1]
    weights = list(module.parameters())
    for number, weight in enumerate(weights):
        weight.data += torch.linspace(-0.3, 0.4, len(weight), dtype=x.dtype) + number
    leaf = x.clone().requires_grad_()
    theirs = by_torch(name, module, leaf)
    their_gradients = torch.autograd.grad(theirs, (leaf, *weights), upstream)

    gamma = weights[0].data * (h**-0.5 if norm.weights == "g" else 1)  # x / |x| is x / rms(x) / √h
    y, scale = forward(norm, x, groups)
    flat = y.flatten(2)
    ours = [flat * gamma + (weights[1].data if norm.weights == "γβ" else 0)]
    ours += [backward(norm, (upstream * gamma).view(y.shape), y, scale)]
    if norm.weights == "g":
        ours += [(upstream * flat).sum().view(1) * h**-0.5]
    else:
        ours += [(upstream * flat).sum((0, 1)), upstream.sum((0, 1))][: len(weights)]
    pairs = zip(ours, (theirs, *their_gradients), strict=True)
    return max(float((a - b).abs().max().detach()) for a, b in pairs)


def output(name: str, x: Tensor, groups: int) -> Tensor:
    """What a norm makes of x [b, s, h], its weights one and its biases zero."""
    if name == "batch_running":  # at inference: a mean and a variance from training, nothing of this x
        return nn.functional.batch_norm(
            x.mT,
            torch.full(x.shape[-1:], 0.1, dtype=x.dtype),
            torch.full(x.shape[-1:], 1.2, dtype=x.dtype),
            eps=EPS,
        ).mT
    return forward(NORMS[name], x, groups)[0].flatten(2)


def disturbed(name: str, x: Tensor, groups: int) -> dict[str, Any]:
    """Which outputs change with one element of x, with padding behind it, and for a sequence alone."""
    b, s, _h = x.shape
    sequence, token, _ = marked = (b - 1, s // 2, 1)
    before, moved = output(name, x, groups), x.clone()
    moved[marked] += 1
    changed = output(name, moved, groups) != before
    padded = torch.cat([x, torch.zeros_like(x)[:, :1]], 1)
    alone = output(name, x[:1], groups)
    return {
        "changed": changed.tolist(),
        "reach": int(changed.sum()),
        "other_sequences": int(changed.sum() - changed[sequence].sum()),
        "earlier_tokens": int(changed[sequence, :token].sum()),
        "padding": int((output(name, padded, groups)[:, :s] != before).sum()),
        "alone": int((alone != before[:1]).sum()),
    }


def program(gpu: Any, b: int, s: int, h: int, groups: int) -> dict[str, Any]:
    """Hold every norm against torch's, and see which outputs change with what."""
    with gpu.unrecorded():
        draw = torch.Generator().manual_seed(0)
        x, upstream = torch.randn(2, b, s, h, generator=draw, dtype=torch.float64)
        measured: dict[str, Any] = {
            "away": {name: away_from_torch(name, x, upstream, groups) for name in NORMS},
            "disturbed": {name: disturbed(name, x, groups) for name in (*NORMS, "batch_running")},
        }
        measured["weights"] = {
            name: sum(p.numel() for p in torchs(name, h, groups).parameters()) for name in NORMS
        }
        measured["one_token"] = float(output("batch", x[:1, :1], groups).abs().max())
        try:
            torchs("batch", h, groups)(x[:1, 0])
            measured["refused"] = 0
        except ValueError:
            measured["refused"] = 1
    with gpu.region("forward", layer=0, micro_batch=0):
        for norm in NORMS.values():
            forward(norm, x, groups)
    return measured


def born(name: str, layers: int, h: int, seed: int) -> list[float]:
    """The gradient norm of every layer's last matrix before training, Pre-Norm: a mean over seeds."""
    norm, seeds = NORMS[name], range(SEEDS * seed, SEEDS * (seed + 1))
    config = shaped(layers, h, "pre", {"γβ": "layernorm", "γ": "rmsnorm", "g": "scalenorm"}[norm.weights])

    def normalise(x: Tensor) -> Tensor:
        y = torch.stack([forward(norm, one, groups=4)[0].flatten(2) for one in x])
        return y * h**-0.5 if name == "scale" else y

    models = ModelsAtOnce(config, seeds, normalise=normalise)
    losses = models.losses(*text_batch(0, seeds))
    (gradient,) = torch.autograd.grad(losses.sum(), models.flat)
    named = models.weights(gradient)
    return [
        float(named[f"layers.{layer}.down_weight"].flatten(1).norm(dim=1).mean()) for layer in range(layers)
    ]


def shaped(layers: int, h: int, place: str, norm: str = "layernorm") -> Any:
    """A GPT over bytes whose branches start as large as the stream: as in Xiong et al. (2002.04745)."""
    shape: dict[str, Any] = {"layers": layers, "hidden": h, "heads": 2, "vocab": VOCAB, "seq": SEQ}
    start: dict[str, Any] = {"init_std": h**-0.5, "residual_init": "plain", "tied": False}
    return make_model("tiny", **shape, **start, norm_position=place, norm=norm)


def text_batch(step: int, seeds: Any) -> tuple[Tensor, Tensor]:
    """Tokens and targets of a step, [M, B, S], other text for every seed."""
    each = [batch(corpus(), step, SEQUENCES, SEQ, VOCAB, seed) for seed in seeds]
    tokens, targets = (torch.stack(rows) for rows in zip(*each, strict=True))
    return tokens, targets


def last_steps(steps: int) -> int:
    """The steps whose mean loss is the loss at the end: a tenth."""
    return max(1, steps // 10)


def counting_bytes(steps: int, seed: int) -> list[float]:
    """For each seed the loss of a model that only knows each byte's frequency, on the last steps' text."""
    seeds = range(SEEDS * seed, SEEDS * (seed + 1))
    frequency = torch.bincount(torch.from_numpy(corpus() % VOCAB).long(), minlength=VOCAB) / len(corpus())
    last = [text_batch(step, seeds)[1] for step in range(steps - last_steps(steps), steps)]
    return (-frequency.log()[torch.stack(last)].mean((0, 2, 3))).tolist()


def trained(place: str, layers: int, h: int, steps: int, seed: int) -> Tensor:
    """The loss at the end, [every rate and the last with warm-up, seeds]: a mean over a tenth of the steps.

    The warm-up is linear, over the first third.
    """
    seeds = list(range(SEEDS * seed, SEEDS * (seed + 1)))
    arms = len(RATES) + 1
    models = ModelsAtOnce(shaped(layers, h, place), seeds * arms)
    peak = torch.tensor([*RATES, RATES[-1]]).repeat_interleave(SEEDS)

    def rates(step: int) -> Tensor:
        warm = peak.clone()
        warm[-SEEDS:] *= min(1.0, 3 * (step + 1) / steps)
        return warm

    def same_text(step: int) -> tuple[Tensor, Tensor]:
        tokens, targets = text_batch(step, seeds)
        return tokens.repeat(arms, 1, 1), targets.repeat(arms, 1, 1)

    losses = train(models, same_text, rates, steps)
    return losses[-last_steps(steps) :].mean(0).view(arms, SEEDS)


@lesson
def norms_compared(
    lab: Lab, b: int = 2, s: int = 4, h: int = 6, groups: int = 2, layers: int = 6, steps: int = 80
) -> None:
    """One element of a small tensor is changed, and every output that moves is marked, norm by norm; then
    small GPTs learn real text with Pre-Norm and with Post-Norm.
    """
    if h % groups:
        raise InputError("groups", groups, f"must divide h = {h}")
    run = lab.run("norms", lab.text("norms"), program, b, s, h, groups, gpus=1)
    measured = run.results[0]
    exact_rows(lab, measured, {"b": b, "s": s, "h": h, "groups": groups})
    reach = {name: moved["reach"] for name, moved in measured["disturbed"].items()}
    lab.ask("reach", reach["batch"], b=b, s=s, h=h)

    gradients = {name: born(name, 2 * layers, 32, lab.seed) for name in NORMS}
    fall = {name: values[0] / values[-1] for name, values in gradients.items()}
    rms = gradients["rms"][-1] / gradients["layer"][-1]
    chance: dict[str, Any] = {"match": "statistical", "layers": 2 * layers}
    # over twelve groups of three seeds the ratio was 1.00 to 1.11
    lab.row("rms_and_layer", 1, rms, "the mean is small beside σ", unit="×", **chance, tolerance=0.25)
    steepest = int(fall["batch"] > max(value for name, value in fall.items() if name != "batch"))
    lab.row("batch_is_steepest", 1, steepest, "1902.08129", unit="", **chance)

    shallow = max(1, layers // 3)
    losses = {
        (place, depth): trained(place, depth, 16, steps, lab.seed)
        for place in ("pre", "post")
        for depth in (shallow, layers)
    }
    finding = what_was_learnt(lab, losses, shallow, layers, steps)
    figures(lab, measured["disturbed"], gradients, losses, counting_bytes(steps, lab.seed))
    batch_norm = measured["disturbed"]["batch"]
    marked = {"sequence": b, "token": 1 + s // 2}  # what `disturbed` changes, counted from 1
    lab.tell("reach", view="tab=story", reach=reach["batch"], b=b, s=s, layer=reach["layer"], h=h, **marked)
    lab.tell(
        "elsewhere", view="tab=ledger", **{k: batch_norm[k] for k in ("other_sequences", "earlier_tokens")}
    )
    lab.tell("one_token", view="tab=ledger", one_token=measured["one_token"])
    falls = {f"fall_{name}": value for name, value in fall.items()}
    lab.tell("gradients", view="tab=story", deepest=2 * layers, **falls)
    lab.tell("trained", view="tab=story", layers=layers, shallow=shallow, steps=steps, **finding)
    lab.card(
        others=batch_norm["other_sequences"],
        earlier=batch_norm["earlier_tokens"],
        layer=reach["layer"],
        group=reach["group"],
        sequence=reach["group_sequence"],
        fall_batch=fall["batch"],
        fall_layer=fall["layer"],
        deepest=2 * layers,
        layers=layers,
        shallow=shallow,
        steps=steps,
        seeds=SEEDS,
        **finding,
    )
    lab.conclude(reach=reach["batch"], layer=reach["layer"], others=batch_norm["other_sequences"])
    lab.explain(reach=reach["batch"], layer=reach["layer"])
    lab.own_number(reach=reach["batch"], b=b, s=s)


def exact_rows(lab: Lab, measured: dict[str, Any], size: dict[str, int]) -> None:
    """The rows of the tensor: how far a change reaches, where to, and that the norms are torch's."""
    b, s, h, groups = size.values()
    token, wide = s // 2, h // groups
    sources = {
        "batch": "1502.03167",
        "layer": "1607.06450",
        "rms": "1910.07467",
        "scale": "1910.05895",
        "group": "1803.08494",
        "group_sequence": "1803.08494",
        "batch_running": "1502.03167, Algorithm 2",
    }
    reach = {"batch": b * s, "group": wide, "group_sequence": s * wide, "batch_running": 1}
    earlier = {"batch": token, "group_sequence": token * wide}
    padding = {"batch": b * s * h, "group_sequence": b * s * h}
    for name, moved in measured["disturbed"].items():
        what: dict[str, Any] = {"unit": "elements", "norm": lab.text(name)}
        lab.row("reach", reach.get(name, h), moved["reach"], sources[name], **what)
        others = (b - 1) * s if name == "batch" else 0
        lab.row("other_sequences", others, moved["other_sequences"], sources[name], **what)
        lab.row("earlier_tokens", earlier.get(name, 0), moved["earlier_tokens"], sources[name], **what)
        lab.row("padding", padding.get(name, 0), moved["padding"], sources[name], **what)
        alone = s * h if name == "batch" and b > 1 else 0
        lab.row("alone", alone, moved["alone"], sources[name], **what)
    for name, norm in NORMS.items():
        away = measured["away"][name]
        rounding: dict[str, Any] = {"unit": "absolute", "tolerance": 1e-12}
        lab.row("away_from_torch", 0, away, "torch.nn, float64", **rounding, norm=lab.text(name))
        weights = {"γβ": 2 * h, "γ": h, "g": 1}[norm.weights]
        lab.row("weights", weights, measured["weights"][name], sources[name], unit="", norm=lab.text(name))
    lab.row("one_token", 0, measured["one_token"], "x less its own mean", unit="absolute")
    lab.row("refused", 1, measured["refused"], "torch.nn.BatchNorm1d", unit="")


def what_was_learnt(lab: Lab, losses: Any, shallow: int, layers: int, steps: int) -> dict[str, float]:
    """The rows of the trainings, and their numbers for the texts. Losses are of `trained`, in nats.

    The same seeds have the same text in all of them, so that differences are taken seed by seed.
    """
    pre, post = (losses[place, shallow] for place in ("pre", "post"))
    pre, post = (loss[loss.mean(-1).argmin()] for loss in (pre, post))  # at the rate that is best for each
    best, ended = (float(pre.mean()), float(post.mean())), (pre - post).tolist()
    deep, post = losses["pre", layers][-2:], losses["post", layers][-2:]  # without and with warm-up
    warm = post[0] - post[1]
    counting = torch.tensor(counting_bytes(steps, lab.seed))
    chance: dict[str, Any] = {"match": "statistical", "layers": layers, "rate": RATES[-1], "steps": steps}
    below = int((deep < post).sum())
    lab.row("pre_below_post", 2 * SEEDS, below, "measured", unit="trainings", **chance)
    lab.row(
        "post_counts",
        0,
        float((post[0] - counting).mean()),
        "measured",
        unit="nats",
        **chance,
        tolerance=0.12,
    )
    lab.row("warm_up", 0, float(warm.mean()), "measured", unit="nats", **chance, tolerance=0.05)
    # the difference of a seed scatters by 0.03, that of three by 0.02
    shallow_row: dict[str, Any] = {**chance, "layers": shallow, "tolerance": 0.1}
    lab.row("ended", 0, best[0] - best[1], "measured", unit="nats", **shallow_row)
    return {
        "best_pre": best[0],
        "best_post": best[1],
        "difference": best[0] - best[1],
        "least": min(ended),
        "most": max(ended),
        "deep_pre": float(deep[0].mean()),
        "deep_post": float(post[0].mean()),
        "deep_warm": float(post[1].mean()),
        "counting": float(counting.mean()),
        "rate": RATES[-1],
    }


HEARS = ("other_sequences", "earlier_tokens", "padding", "alone")


def figures(lab: Lab, moved: dict[str, Any], gradients: Any, losses: Any, counting: list[float]) -> None:
    """Draw what shares a statistic, who hears of a change, gradients by layer, and losses by rate and
    warm-up.
    """

    def shared(lang: str) -> Any:
        shown = ("batch", "layer", "rms", "group", "group_sequence", "batch_running")
        return cells_figure([reach_table(lab, name, moved[name], lang) for name in shown], across=3)

    def hears(lang: str) -> Any:
        counts = [[moved[name][what] for what in HEARS] for name in moved]
        names, columns = [lab.word(name, lang) for name in moved], [lab.word(x, lang) for x in HEARS]
        fill = [["#c7461b" if n else shade(0) for n in row] for row in counts]
        return cells_figure([Table("", names, columns, [[str(n) for n in row] for row in counts], fill)])

    def by_layer(lang: str) -> Any:
        series = {lab.word(name, lang): (range(1, 1 + len(v)), v) for name, v in gradients.items()}
        return lines(series, lab.word("number_of_layer", lang), lab.word("gradient_norm", lang), log_y=True)

    def by_rate(lang: str) -> Any:
        series, ranges = {}, []
        for (place, depth), loss in losses.items():
            above = loss[:-1] - torch.tensor(counting)
            mean = above.mean(-1)
            series[lab.word(place, lang, depth=depth)] = (RATES, mean.tolist())
            ranges.append(((above.amax(-1) - mean).tolist(), (mean - above.amin(-1)).tolist()))
        series[lab.word("counting", lang)] = (RATES, [0.0] * len(RATES))
        figure = lines(series, lab.word("rate", lang), lab.word("above_counting", lang), log_x=True)
        for trace, (up, down) in zip(figure.data, ranges, strict=False):
            trace["error_y"] = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
        return figure.update_yaxes(rangemode="normal")

    def warmed(lang: str) -> Any:
        names = [lab.word(place, lang, depth=depth) for place, depth in losses]
        series = {
            lab.word(key, lang): [float(loss[warm - 2].mean()) for loss in losses.values()]
            for warm, key in enumerate(("no_warm_up", "with_warm_up"))
        }
        return bars(names, series, lab.word("loss", lang))

    b, s = (len(places) for places in (moved["layer"]["changed"], moved["layer"]["changed"][0]))
    lab.figure("shared", shared, sequence=b, token=1 + s // 2)
    lab.figure("hears", hears)
    lab.figure("by_rate", by_rate, seeds=SEEDS)
    lab.figure("warmed", warmed, rate=RATES[-1])
    lab.figure("by_layer", by_layer, deepest=len(gradients["layer"]))


def reach_table(lab: Lab, name: str, moved: dict[str, Any], lang: str) -> Table:
    """One norm's table: a row for each token, a column for each feature, dark where the output moved."""
    changed = moved["changed"]
    b, s, h = len(changed), len(changed[0]), len(changed[0][0])
    marked = (b - 1, s // 2, 1)
    places = [(i, j) for i in range(b) for j in range(s)]
    text = [["×" if (i, j, k) == marked else "" for k in range(h)] for i, j in places]
    fill = [[shade(0.9 if changed[i][j][k] else 0.02) for k in range(h)] for i, j in places]
    rows = [f"{i + 1}, {j + 1}" for i, j in places]
    title = lab.word(f"{name}_table" if name == "rms" else name, lang)
    columns, axes = (
        [str(k + 1) for k in range(h)],
        {"x": lab.word("feature", lang), "y": lab.word("places", lang)},
    )
    return Table(title, rows, columns, text, fill, **axes)

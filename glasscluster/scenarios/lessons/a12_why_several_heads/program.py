"""A12: why several heads: the rank of a head's scores, one distribution a token, what stays the same, and
which heads of a trained GPT can be pruned.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glasscluster.base.errors import InputError
from glasscluster.model.gpt import GPTStage
from glasscluster.model.layers.attention import unfused_attention
from glasscluster.model.text.data import batch, corpus
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.scenarios.models_at_once import Adam, ModelsAtOnce, linear, train
from glasscluster.sim.recording.events import COMPUTE
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.plots import bars, lines

PRIME = 2**31 - 1
SEEDS = 4
SYMBOLS, PLACES, WIDTH = 8, 8, 32  # of the task with two look-ups
TASK = {"places": PLACES, "symbols": SYMBOLS, "chance": 1 / SYMBOLS**2}
ARMS = {
    "one": (1, False),
    "two": (2, False),
    "one_mlp": (1, True),
}  # heads, an MLP behind
TEXT = {"layers": 2, "hidden": 32, "vocab": 128, "seq": 24, "tied": False, "init_std": 32**-0.5}  # small GPTs
SEQUENCES, HELD_OUT = 4, 32
NUMBERS_OF_HEADS = (1, 4, 16)
PRUNED = 4  # heads a layer of the GPT that is pruned


# ---- rank --------------------------------------------------------------------------------------------------
def rank_of(matrix: Tensor) -> int:
    """The rank of whole numbers [n, m] modulo a prime, by elimination: never above the true rank."""
    rows, rank = matrix.clone() % PRIME, 0
    for column in range(rows.shape[1]):
        pivots = rows[rank:, column].nonzero()
        if not len(pivots):
            continue
        pivot = rank + int(pivots[0])
        rows[[rank, pivot]] = rows[[pivot, rank]]
        rows[rank] = rows[rank] * pow(int(rows[rank, column]), -1, PRIME) % PRIME
        below = rows[rank + 1 :, column, None]
        rows[rank + 1 :] = (rows[rank + 1 :] - below * rows[rank]) % PRIME
        rank += 1
        if rank == len(rows):
            break
    return rank


def rank_of_triangle(matrix: Tensor) -> int:
    """What a lower triangle's rank is at least: the nonzeros of its diagonal. 0: it is no triangle."""
    return 0 if matrix.triu(1).any() else int((matrix.diagonal() != 0).sum())


def ranks(n: int, h: int, heads: int) -> dict[str, int]:
    """Ranks of a head's matrices [n, n], made from random whole numbers: of the scores, of the causal
    softmax, and, in float64, of the logarithm of the softmax without a mask.
    """
    draw, d = torch.Generator().manual_seed(heads), h // heads
    x = torch.randint(-3, 4, (n, h), generator=draw)
    to_q, to_k = torch.randint(-3, 4, (2, h, d), generator=draw)
    scores = (x @ to_q) @ (x @ to_k).T
    real = scores.double() / scores.double().std()
    causal = real.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)
    return {
        "scores": rank_of(scores),
        "causal": rank_of_triangle(causal),
        "logarithm": int(torch.linalg.matrix_rank(real.log_softmax(-1))),
    }


def program(gpu: Any, n: int, h: int, numbers: list[int]) -> dict[int, dict[str, int]]:
    """For each number of heads: ranks, an attention layer's parameters, and its products, recorded."""
    measured = {}
    for place, heads in enumerate(numbers):
        with gpu.unrecorded():
            measured[heads] = ranks(n, h, heads)
            gpt = GPTStage(make_model("tiny", layers=1, hidden=h, heads=heads, seq=n))
            of_attention = [
                p for name, (p, _) in gpt.full_names().items() if ".qkv_" in name or ".out_" in name
            ]
            measured[heads]["parameters"] = sum(p.numel() for p in of_attention)
            q, k, v = torch.randn(3, 1, heads, n, h // heads, generator=torch.Generator().manual_seed(0))
        with gpu.region("forward", layer=0, micro_batch=place):
            unfused_attention(q, k, v, causal=False)
    return measured


# ---- two look-ups ------------------------------------------------------------------------------------------
def shapes(mlp: bool) -> dict[str, tuple[int, ...]]:
    """The weights of the model that looks two places up: the same for any number of heads."""
    square = dict.fromkeys(("q", "k", "v", "out"), (WIDTH, WIDTH))
    tables = {"symbol": (SYMBOLS, WIDTH), **dict.fromkeys(("place", "first", "second"), (PLACES, WIDTH))}
    behind = {"up": (4 * WIDTH, WIDTH), "down": (WIDTH, 4 * WIDTH)} if mlp else {}
    return {**tables, **square, "read": (2 * SYMBOLS, WIDTH), **behind}


def look_up(w: dict[str, Tensor], task: tuple[Tensor, Tensor, Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """One query names two places; attention reads symbols there.

    Args:
        w: weights of `shapes`, [M, ...].
        task: symbols [M, B, places], and the two places that are asked for, [M, B] each.
        heads: of the attention.

    Returns:
        Logits of the two symbols, [M, B, 2, symbols], and the attention weights, [M, B, heads, places].
    """
    symbols, first, second = task
    models = torch.arange(len(symbols))[:, None]
    x = w["symbol"][models[..., None], symbols] + w["place"][:, None]
    asked_for = w["first"][models, first] + w["second"][models, second]
    q = linear(asked_for[:, :, None], w["q"], None)[:, :, 0].unflatten(-1, (heads, -1))
    k, v = (linear(x, w[name], None).unflatten(-1, (heads, -1)) for name in "kv")
    scores = torch.einsum("mbad,mbnad->mban", q, k) * q.shape[-1] ** -0.5
    weights = scores.softmax(-1)  # one distribution a head
    mixed = torch.einsum("mban,mbnad->mbad", weights, v).flatten(2)
    out = linear(mixed[:, :, None], w["out"], None)
    if "up" in w:
        out = out + linear(F.gelu(linear(out, w["up"], None)), w["down"], None)
    return linear(out, w["read"], None)[:, :, 0].unflatten(-1, (2, SYMBOLS)), weights


def task_of(models: int, queries: int, draw: torch.Generator) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Symbols, two different places in any order, and the symbols that stand there, [M, B, 2]."""
    symbols = torch.randint(SYMBOLS, (models, queries, PLACES), generator=draw)
    first = torch.randint(PLACES, (models, queries), generator=draw)
    second = (first + torch.randint(1, PLACES, (models, queries), generator=draw)) % PLACES
    places = torch.stack([first, second], -1)
    return (symbols, first, second), symbols.gather(2, places)


def looking_up(arm: str, steps: int, seed: int) -> dict[str, Any]:
    """Train one arm from every seed: the share of queries with both symbols right, [M], and the attention's
    weights on the two places, as the head with most gives each: [M, queries, 2].
    """
    (heads, mlp), draw = ARMS[arm], torch.Generator().manual_seed(seed)
    named = shapes(mlp)
    sizes = [torch.Size(shape).numel() for shape in named.values()]
    scale = torch.cat([torch.full((n,), s[-1] ** -0.5) for n, s in zip(sizes, named.values(), strict=True)])
    flat = (torch.randn(SEEDS, sum(sizes), generator=draw) * scale).requires_grad_()

    def weights() -> dict[str, Tensor]:
        cuts = flat.split(sizes, 1)
        return {n: c.unflatten(1, shape) for (n, shape), c in zip(named.items(), cuts, strict=True)}

    adam = Adam(flat.detach())
    for step in range(steps):
        task, right = task_of(SEEDS, 64, draw)
        logits, _ = look_up(weights(), task, heads)
        loss = F.cross_entropy(logits.flatten(0, 2), right.flatten(), reduction="sum") / (2 * 64)
        (gradient,) = torch.autograd.grad(loss, flat)
        adam.update(gradient, torch.full((SEEDS,), 1e-2 * min(1.0, 2 - 2 * step / steps)))
    with torch.no_grad():
        task, right = task_of(SEEDS, 512, draw)
        logits, attention = look_up(weights(), task, heads)
    at = torch.stack(task[1:], -1)[:, :, None].expand(-1, -1, heads, -1)
    on_places = attention.gather(3, at)  # [M, queries, heads, 2]
    return {
        "right": (logits.argmax(-1) == right).all(-1).double().mean(1),
        "weight": on_places.amax(2),
        "sum": on_places.sum(-1).amax(),
    }


# ---- small GPTs on text ------------------------------------------------------------------------------------
def text_batch(step: int, seeds: list[int], sequences: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets of a step, [M, B, S], other text for every seed."""
    each = [batch(corpus(), step, sequences, TEXT["seq"], TEXT["vocab"], seed) for seed in seeds]
    tokens, targets = (torch.stack(rows) for rows in zip(*each, strict=True))
    return tokens, targets


def on_text(heads: int, steps: int, seed: int) -> tuple[ModelsAtOnce, Tensor]:
    """GPTs of one number of heads, trained from every seed, and their losses on text held out, [M]."""
    seeds = list(range(SEEDS * seed, SEEDS * (seed + 1)))
    models = ModelsAtOnce(make_model("tiny", **TEXT, heads=heads), seeds)
    rates = [torch.full((SEEDS,), 1e-2 * min(1.0, 2 - 2 * step / steps)) for step in range(steps)]
    train(models, lambda step: text_batch(step, seeds, SEQUENCES), lambda step: rates[step], steps)
    with torch.no_grad():
        return models, models.losses(*held_out())


def held_out() -> tuple[Tensor, Tensor]:
    """The same text for every model, drawn by a seed that none was trained with."""
    return text_batch(0, [2**20] * SEEDS, HELD_OUT)


def pruning(models: ModelsAtOnce, whole: Tensor) -> dict[str, Tensor]:
    """What pruning adds to the loss: each head alone, [M, layers, heads], and the cheapest k of all heads at
    once, [heads + 1, M], in the order of what each costs alone.
    """
    layers, heads = TEXT["layers"], models.config.heads
    text, everything = held_out(), torch.ones(SEEDS, layers * heads)

    def cost(left: Tensor) -> Tensor:
        return models.losses(*text, left.view(SEEDS, layers, heads)) - whole

    with torch.no_grad():
        alone = []
        for head in range(layers * heads):
            left = everything.clone()
            left[:, head] = 0
            alone.append(cost(left))
        order = torch.stack(alone, 1).argsort(1)  # the cheapest first
        together = [cost(everything.scatter(1, order[:, :k], 0.0)) for k in range(layers * heads + 1)]
    return {"alone": torch.stack(alone, 1).view(SEEDS, layers, heads), "together": torch.stack(together)}


@lesson
def why_several_heads(
    lab: Lab, n: int = 48, h: int = 64, heads: int = 8, steps: int = 200, text_steps: int = 100
) -> None:
    """The ranks of attention matrices are counted for growing numbers of heads; small models learn to look
    two places up with one head and with two; small GPTs learn real text, and lose their heads one by one.
    """
    if h % heads:
        raise InputError("heads", heads, f"must divide h = {h}")
    numbers = sorted({1, 2, 4, heads, 16} if h % 16 == 0 else {1, heads})
    run = lab.run("ranks", lab.text("ranks"), program, n, h, numbers, gpus=1)
    measured = run.results[0]
    exact_rows(lab, run.graph, measured, n, h)
    times = measured[1]["scores"] / measured[heads]["scores"]
    lab.ask("rank", times, n=n, h=h, heads=heads)

    looked = {arm: looking_up(arm, steps, lab.seed) for arm in ARMS}
    finding = look_up_rows(lab, looked)
    trained = {number: on_text(number, text_steps, lab.seed) for number in NUMBERS_OF_HEADS}
    losses = {number: loss for number, (_, loss) in trained.items()}
    cost = pruning(*trained[PRUNED])
    finding |= text_rows(lab, losses, cost)

    figures(lab, measured, looked, losses, cost)
    one, many = measured[1], measured[heads]
    lab.tell(
        "ranks", view="tab=story", n=n, heads=heads, d=h // heads, one=one["scores"], many=many["scores"]
    )
    lab.tell("after", view="tab=ledger", causal=many["causal"], logarithm=many["logarithm"], heads=heads)
    lab.tell("same_cost", view="tab=ledger", parameters=many["parameters"])
    lab.tell("looked_up", view="tab=story", seeds=SEEDS, **finding, **TASK)
    lab.tell("on_text", view="tab=story", seeds=SEEDS, text_steps=text_steps, **finding)
    lab.tell("pruned", view="tab=story", seeds=SEEDS, **finding)
    lab.card(**finding, n=n, d=h // heads, many=many["scores"], one=one["scores"], causal=many["causal"])
    lab.card(**TASK, seeds=SEEDS, steps=text_steps, logarithm=many["logarithm"], pruned_heads=PRUNED)
    lab.conclude(times=times, **finding)
    lab.explain(d=h // heads)
    lab.own_number(times=times, heads=heads, n=n)


def exact_rows(lab: Lab, graph: Any, measured: dict[int, dict[str, int]], n: int, h: int) -> None:
    """The rows of ranks, parameters and products, for every number of heads."""
    for place, (heads, of) in enumerate(measured.items()):
        d = h // heads
        here: dict[str, Any] = {"heads": heads, "unit": ""}
        lab.row("rank_of_scores", min(n, d), of["scores"], "2002.07028: QKᵀ is n × d times d × n", **here)
        lab.row("rank_of_causal", n, of["causal"], "a triangle with a positive diagonal", **here)
        lab.row("rank_of_logarithm", min(n, d + 1), of["logarithm"], "scores less a number a row", **here)
        lab.row("parameters", 4 * h * h + 4 * h, of["parameters"], "1706.03762 §3.2.2", **here)
        products = int(graph.flops[(graph.kind == COMPUTE) & (graph.micro_batch == place)].sum())
        lab.row(
            "products",
            4 * n * n * h,
            products,
            "2n²d for QKᵀ, 2n²d for the weights times V",
            unit="FLOPs",
            heads=heads,
        )


def look_up_rows(lab: Lab, looked: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The rows of the task with two look-ups, and their numbers."""
    chance: dict[str, Any] = {"match": "statistical", "unit": ""}
    one, mixed = looked["one"], looked["one_mlp"]
    both = int((one["weight"].amin(-1) > 0.5).sum())
    lab.row("one_on_both", 0, both, "weights of a head sum to 1", unit="queries")
    lab.row(
        "sum_of_weights",
        1,
        max(1.0, float(one["sum"])),
        "weights of a head sum to 1",
        unit="",
        tolerance=1e-5,
    )
    # what they can do: about one seed in twenty gets stuck, and two heads then have fewer right
    two_best = float(looked["two"]["right"].max())
    lab.row("two_right", 1, two_best, "measured, best seed", **chance, tolerance=0.02)
    lab.row("one_right", SEEDS, int((one["right"] < 0.5).sum()), "measured", **chance)
    lab.row("mixed_right", 1, float(mixed["right"].max()), "measured, best seed", **chance, tolerance=0.02)
    worst = min(float(looked[arm]["right"].min()) for arm in ("two", "one_mlp"))
    lab.row("above_one", 1, int(worst > one["right"].max()), "measured, all seeds", **chance)
    return {
        "one_least": float(one["right"].min()),
        "one_most": float(one["right"].max()),
        "two_least": float(looked["two"]["right"].min()),
        "mixed_least": float(mixed["right"].min()),
        "two_weight": float(looked["two"]["weight"].amin(-1).mean()),
        "mixed_larger": float(mixed["weight"].amax(-1).mean()),
        "mixed_smaller": float(mixed["weight"].amin(-1).mean()),
    }


def text_rows(lab: Lab, losses: dict[int, Tensor], cost: dict[str, Tensor]) -> dict[str, float]:
    """The rows of the GPTs on text and of pruning, and their numbers."""
    chance: dict[str, Any] = {"match": "statistical"}
    fewest, most = losses[1], losses[NUMBERS_OF_HEADS[-1]]
    more = fewest - most
    lab.row("more_heads", 1, int(more.mean() > 0), "measured", unit="", **chance, most=NUMBERS_OF_HEADS[-1])
    half, none = cost["together"][PRUNED], cost["together"][-1]
    # over eight seeds half of the heads cost 0.00 to 0.01 nats, all of them 0.16 to 0.27
    lab.row(
        "half_pruned", 0, float(half.mean()), "1905.10650, measured", unit="nats", **chance, tolerance=0.05
    )
    lab.row("all_pruned", 1, int(none.min() > 2 * half.max()), "measured", unit="", **chance)
    last = float(cost["alone"][:, -1].max())
    lab.row("last_layer", 0, last, "measured", unit="nats", **chance, tolerance=0.03)
    dearest = cost["alone"].flatten(1).amax(1)
    return {
        "more_least": float(more.min()),
        "more_most": float(more.max()),
        "loss_one": float(fewest.mean()),
        "loss_most": float(most.mean()),
        "most_heads": NUMBERS_OF_HEADS[-1],
        "hidden": TEXT["hidden"],
        "smallest": TEXT["hidden"] // NUMBERS_OF_HEADS[-1],
        "half": float(half.mean()),
        "half_most": float(half.max()),
        "none": float(none.mean()),
        "dearest_least": float(dearest.min()),
        "dearest_most": float(dearest.max()),
        "median": float(cost["alone"].flatten(1).median(1).values.mean()),
    }


def figures(lab: Lab, measured: Any, looked: Any, losses: dict[int, Tensor], cost: dict[str, Tensor]) -> None:
    """Draw ranks by the number of heads, the two look-ups, the losses on text, and what pruning costs."""

    def by_heads(lang: str) -> Any:
        kinds = ("causal", "logarithm", "scores")
        series = {lab.word(k, lang): (list(measured), [of[k] for of in measured.values()]) for k in kinds}
        axes = (lab.word("number_of_heads", lang), lab.word("rank", lang))
        return lines(series, *axes, log_x=True)

    def both_right(lang: str) -> Any:
        shown = {"right": "right", "larger": "weight", "smaller": "weight"}
        values = {
            "right": [float(of["right"].mean()) for of in looked.values()],
            "larger": [float(of["weight"].amax(-1).mean()) for of in looked.values()],
            "smaller": [float(of["weight"].amin(-1).mean()) for of in looked.values()],
        }
        series = {lab.word(key, lang): values[key] for key in shown}
        return bars([lab.word(arm, lang) for arm in looked], series, lab.word("share", lang))

    def by_seed(lang: str) -> Any:
        series = {
            lab.word("seed", lang, seed=i + 1): (list(losses), [float(loss[i]) for loss in losses.values()])
            for i in range(SEEDS)
        }
        axes = (lab.word("number_of_heads", lang), lab.word("loss", lang))
        return lines(series, *axes, log_x=True).update_yaxes(rangemode="normal")

    def pruned(lang: str) -> Any:
        at = list(range(len(cost["together"])))
        series = {
            lab.word("seed", lang, seed=i + 1): (at, cost["together"][:, i].tolist()) for i in range(SEEDS)
        }
        return lines(series, lab.word("heads_pruned", lang), lab.word("added_loss", lang))

    def alone(lang: str) -> Any:
        names = [lab.word("head", lang, layer=i + 1, head=j + 1) for i in range(2) for j in range(PRUNED)]
        series = {
            lab.word("seed", lang, seed=i + 1): cost["alone"][i].flatten().tolist() for i in range(SEEDS)
        }
        return bars(names, series, lab.word("added_loss", lang)).update_traces(text=None)

    lab.figure("by_heads", by_heads)
    lab.figure("both_right", both_right)
    lab.figure("by_seed", by_seed)
    lab.figure("pruned", pruned)
    lab.figure("alone", alone)

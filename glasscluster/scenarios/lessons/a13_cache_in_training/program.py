"""A13: a KV cache in training: what the gradient loses when cached keys and values are constants, and why
one forward needs no cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from glasscluster.base.errors import InputError
from glasscluster.model.adamw import Optimizer
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import KeepAll
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.scenarios.two_before import VOCAB, best_loss, draw_table, language, train
from glasscluster.sim.recording.events import COMPUTE
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.plots import bars, lines

Values = dict[str, Any]
NAMES = {"q": "W_q", "k": "W_k", "v": "W_v", "out": "W_o", "up": "W_up", "down": "W_down"}
MATRICES = tuple(NAMES)
SEEDS = 2
RATES = 1e-3, 1e-5  # of learning, early and late
SIZES: Values = {"layers": 2, "hidden": 32, "heads": 4, "vocab": 64}
SHAPE: Values = {**SIZES, "bias": False, "qkv": "separate", "position": "rope", "attention": "unfused"}


# ---- a cache that training goes through --------------------------------------------------------------------
class Cache(KeepAll):
    """A block's `keep` where a sequence comes in chunks: attention reads the keys and values of the chunks
    before, as `hand` handed them over: as they are, or as constants, or as copies that collect a gradient.
    """

    def __init__(self, hand: Callable[[Any], Any]) -> None:
        self.hand = hand
        self.made: list[tuple[Any, Any]] = []  # keys and values [b, a, S, d] of each chunk
        self.handed: list[tuple[Any, Any]] = []  # what later chunks read of them

    def core(self, attention: Callable[..., Any], q: Any, k: Any, v: Any) -> Any:
        """The new queries to all cached keys and to their own; then these are cached."""
        past = [*self.handed, (k, v)]
        self.made.append((k, v))
        self.handed.append((self.hand(k), self.hand(v)))
        return causal(q, *(torch.cat(x, 2) for x in zip(*past, strict=True)))


def causal(q: Any, k: Any, v: Any) -> Any:
    """Attention of queries [b, a, S, d], the last of n, to keys and values [b, a, n, d]."""
    new, n = q.shape[2], k.shape[2]
    hidden = torch.ones(new, n, dtype=torch.bool).triu(n - new + 1)
    return (q @ k.mT * q.shape[3] ** -0.5).masked_fill(hidden, -math.inf).softmax(-1) @ v


def kept(x: Any) -> Any:
    """Handed over as it is: the gradient goes through the cache."""
    return x


def constant(x: Any) -> Any:
    """Handed over as a number: the gradient ends here (Transformer-XL's SG)."""
    return x.detach()


def copied(x: Any) -> Any:
    """Handed over as a copy that collects the gradient which later chunks have for it."""
    return x.detach().requires_grad_()


def by_chunks(model: Any, text: Any, size: int, hand: Callable[[Any], Any]) -> tuple[list[Any], list[Cache]]:
    """Losses of a text's chunks of `size` tokens, summed over tokens, and each layer's cache."""
    tokens, targets = text
    caches = [Cache(hand) for _ in model.layers]
    losses = []
    for first in range(0, tokens.shape[1], size):
        here = slice(first, first + size)
        for block, cache in zip(model.layers.values(), caches, strict=True):
            block.keep = cache
            cache.positions = [range(first, first + size)] * len(tokens)
        losses.append(model(tokens[:, here], targets[:, here]))
    model.keeping(KeepAll())
    return losses, caches


def relay(losses: Sequence[Any], caches: Sequence[Cache], weights: Sequence[Any]) -> tuple[Any, Any]:
    """Backward chunk by chunk, the last first: a chunk gets the gradient that later chunks left on the copies
    of its keys and values (2102.07988). Returns the gradients of the losses themselves, and those that came
    through the cache.
    """
    direct, through = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    left = [[torch.zeros_like(x) for c in caches for x in c.handed[i]] for i in range(len(losses))]
    for chunk in reversed(range(len(losses))):
        copies = [x for earlier in range(chunk) for c in caches for x in c.handed[earlier]]
        places = [x for earlier in range(chunk) for x in left[earlier]]
        made = [x for c in caches for x in c.made[chunk]]
        for total, ends, starts in ((direct, [losses[chunk]], None), (through, made, left[chunk])):
            got = torch.autograd.grad(
                *(ends, [*weights, *copies], starts), retain_graph=True, materialize_grads=True
            )
            for place, gradient in zip([*total, *places], got, strict=True):
                place += gradient
    return direct, through


class Cut(KeepAll):
    """The same constants in one forward: pairs of different chunks see keys and values without a gradient, or
    do not see each other (`seen` False).
    """

    def __init__(self, size: int, seen: bool = True) -> None:
        self.size, self.seen = size, seen

    def core(self, attention: Callable[..., Any], q: Any, k: Any, v: Any) -> Any:
        """Attention of all tokens [b, a, n, d]."""
        at = torch.arange(q.shape[2])
        same = at[:, None] // self.size == at // self.size
        visible = (at[:, None] >= at) & (same | self.seen)
        scores = torch.where(same, q @ k.mT, q @ k.detach().mT) * q.shape[3] ** -0.5
        weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
        return (weights * same) @ v + (weights * ~same) @ v.detach()


# ---- gradients ---------------------------------------------------------------------------------------------
def gradients(losses: Any, named: Values) -> Values:
    """The gradient of every weight, by name."""
    total = losses if isinstance(losses, torch.Tensor) else sum(losses)
    return dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))


def distances(one: Values, other: Values) -> Values:
    """How long the difference of two gradients is, over the length of the first, by weight."""
    return {name: float((one[name] - other[name]).norm() / one[name].norm()) for name in one}


def of_gradients(n: int, chunk: int, seed: int) -> Values:
    """One text's gradients: in one pass, by chunks with the cache kept, and with a constant one."""
    draw = torch.Generator().manual_seed(seed)
    config = make_model("tiny", seq=n, init_std=32**-0.5, **SHAPE)
    model = GPTStage(config, seed=seed, dtype=torch.float64)
    named: Values = {name: weight for name, (weight, _) in model.full_names().items()}
    tokens = torch.randint(0, 64, (2, n + 1), generator=draw)
    text = tokens[:, :-1], tokens[:, 1:]
    whole = gradients(model(*text), named)
    with torch.no_grad():
        pairs = [model(text[0][:, :t], text[1][:, :t]) for t in range(1, n + 1)]
        alone = torch.stack(by_chunks(model, text, 1, kept)[0]).cumsum(0)
    measured: Values = {"token by token": float((torch.stack(pairs) - alone).abs().max())}
    measured["kept"] = {
        size: max(distances(whole, gradients(by_chunks(model, text, size, kept)[0], named)).values())
        for size in (1, chunk)
    }
    detached = gradients(by_chunks(model, text, chunk, constant)[0], named)
    direct, through = (
        dict(zip(named, x, strict=True))
        for x in relay(*by_chunks(model, text, chunk, copied), list(named.values()))
    )
    both = {name: direct[name] + through[name] for name in named}
    parts = {name: detached[name] + through[name] for name in named}
    measured |= {
        "relay": max(distances(whole, both).values()),
        "parts": max(distances(whole, parts).values()),
    }
    for block in model.layers.values():
        block.keep = Cut(chunk)
    measured["cut"] = max(distances(detached, gradients(model(*text), named)).values())
    measured["sizes"] = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= n]
    measured["by_chunk"] = lost_by_chunk(model, text, whole, named, measured["sizes"])
    measured["stale"] = stale(model, text, whole, named, RATES)
    lost = distances(whole, detached)
    measured["lost"] = {(i, m): lost[f"layers.{i}.{m}_weight"] for i in range(2) for m in MATRICES}
    return measured


def stale(model: Any, text: Any, whole: Values, named: Values, rates: Sequence[float]) -> list[float]:
    """How far cached keys are from those of the weights after one step of AdamW, for some learning rates."""

    def keys() -> Any:
        return torch.cat(
            [k.flatten() for c in by_chunks(model, text, len(text[0][0]), kept)[1] for k, _ in c.made]
        )

    apart_by_rate = []
    with torch.no_grad():
        before, weights = keys(), {name: weight.clone() for name, weight in named.items()}
        for rate in rates:
            for name, weight in named.items():
                moments = [torch.zeros_like(weight) for _ in range(2)]
                Optimizer(lr=rate, weight_decay=0.0).update(weight, whole[name], moments, 1)
            apart_by_rate.append(float((keys() - before).norm() / before.norm()))
            for name, weight in named.items():
                weight.copy_(weights[name])
    return apart_by_rate


def lost_by_chunk(model: Any, text: Any, whole: Values, named: Values, sizes: Sequence[int]) -> list[float]:
    """How long the part is that chunks of each size lose, over the whole gradient, in %."""
    lost, flat = [], torch.cat([g.flatten() for g in whole.values()])
    for size in sizes:
        for block in model.layers.values():
            block.keep = Cut(size)
        cut = torch.cat([g.flatten() for g in gradients(model(*text), named).values()])
        lost.append(100 * float((flat - cut).norm() / flat.norm()))
    return lost


def pairs_that_teach(n: int, chunk: int) -> int:
    """Pairs of a query and a key, of one head, in which a gradient reaches the key's value: counted by asking
    every query for its gradient.
    """
    q, k, v = torch.randn(3, 1, 1, n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v.requires_grad_()
    cache, out = Cache(constant), []
    for first in range(0, n, chunk):
        here = slice(first, first + chunk)
        out.append(cache.core(causal, q[:, :, here], k[:, :, here], v[:, :, here]))
    rows = torch.cat(out, 2)[0, 0].sum(-1)
    slopes = [torch.autograd.grad(row, v, retain_graph=True)[0][0, 0] for row in rows]
    return sum(int(slope.any(-1).sum()) for slope in slopes)


# ---- training ----------------------------------------------------------------------------------------------
def trained(keep: KeepAll, seed: int, steps: int, n: int = 16) -> float:
    """Train a GPT of one layer; its loss on texts that it has not seen, read as it was trained."""
    shape: Values = {"layers": 1, "hidden": 32, "heads": 4, "vocab": VOCAB, "init_std": 32**-0.5, "seq": n}
    model = GPTStage(make_model("tiny", position="rope", attention="unfused", **shape), seed=seed)
    for block in model.layers.values():
        block.keep = keep
    draw = torch.Generator().manual_seed(seed)
    table = draw_table(draw)
    train(model, steps, n, table, draw)
    with torch.no_grad():
        tokens, targets = language(256, n, table, draw)
        return float(model(tokens, targets)) / targets.numel()


WAYS: dict[str, KeepAll] = {
    "whole": KeepAll(),
    "constant_4": Cut(4),
    "nothing_4": Cut(4, seen=False),
    "constant_1": Cut(1),
    "nothing_1": Cut(1, seen=False),
}


# ---- the lesson --------------------------------------------------------------------------------------------
def program(gpu: Any, n: int) -> None:
    """A text forward in one pass, and token by token through a cache."""
    model = GPTStage(make_model("tiny", seq=n, **SHAPE), seed=0)
    tokens = torch.randint(0, 64, (1, n + 1), generator=torch.Generator().manual_seed(0))
    text = tokens[:, :-1], tokens[:, 1:]
    with torch.no_grad():
        with gpu.region("forward", layer=0, micro_batch=0):
            model(*text)
        with gpu.region("forward", layer=1, micro_batch=0):
            by_chunks(model, text, 1, kept)


@lesson
def cache_in_training(lab: Lab, n: int = 32, chunk: int = 8, steps: int = 100) -> None:
    """One text's gradients are taken in one pass, and by chunks whose keys and values are cached: kept,
    handed back, or constant; then small GPTs are trained with each.
    """
    sizes = [size for size in range(1, n // 2 + 1) if n % size == 0]
    if chunk not in sizes:
        raise InputError("chunk", chunk, f"cuts n = {n} tokens into two chunks or more, of one size", sizes)
    run = lab.run("forward", lab.text("forward"), program, n, also_on=("dgx-h100",), gpus=1)
    measured = of_gradients(n, chunk, lab.seed)
    compare(lab, measured, chunk)
    pairs, within = n * (n + 1) // 2, pairs_that_teach(n, chunk)
    expected = n // chunk * (chunk * (chunk + 1) // 2)
    lab.row("pairs_that_teach", expected, within, "n/c · c(c+1)/2", unit="pairs", n=n, size=chunk)
    silent = 100 * (1 - within / pairs)
    lab.ask("silent", silent, n=n, size=chunk, pairs=pairs)
    cost = costs(lab, run, n)
    losses = {way: [trained(keep, lab.seed + i, steps) for i in range(SEEDS)] for way, keep in WAYS.items()}
    said = training(lab, losses)
    figures(lab, measured, losses, n)
    last, first = ({m: 100 * measured["lost"][layer, m] for m in MATRICES} for layer in (1, 0))
    values: Values = {"silent": silent, "n": n, "size": chunk, "k_last": last["k"], "v_last": last["v"]}
    values |= {"q_first": first["q"], "k_first": first["k"], "v_first": first["v"]}
    lab.tell("silent", view="tab=story", pairs=pairs, **values)
    lab.tell("same", view="tab=ledger", kept=measured["kept"][chunk], relay=measured["relay"])
    lab.tell("costs", view="tab=timeline", n=n, **cost)
    lab.tell("trained", view="tab=story", steps=steps, **said)
    lab.conclude(**values)
    lab.explain()
    lab.own_number(**values)
    lab.card(**cost, **said, **dict(zip(("early", "late"), measured["stale"], strict=True)))
    lab.card(rate=RATES[0], late_rate=RATES[1])


def compare(lab: Lab, measured: Values, chunk: int) -> None:
    """Rows of the gradients: which are the same, and which lose something."""
    rounding: Values = {"unit": "relative", "tolerance": 1e-12}
    same: Values = {"unit": "absolute", "tolerance": 1e-11}  # of sums of up to 2n losses
    lab.row("token_by_token", 0, measured["token by token"], "a cache holds what would be computed", **same)
    for size, difference in measured["kept"].items():
        lab.row("kept", 0, difference, "the same function, float64", **rounding, size=size)
    lab.row("relay", 0, measured["relay"], "2102.07988: dK and dV of later chunks", **rounding, size=chunk)
    lab.row("parts", 0, measured["parts"], "the chain rule", **rounding, size=chunk)
    lab.row("cut", 0, measured["cut"], "K, V and their constants side by side", **rounding, size=chunk)
    for matrix in ("q", "out", "up", "down"):
        lost = measured["lost"][1, matrix]
        lab.row("last_layer_keeps", 0, lost, "no later token reads it", **rounding, matrix=NAMES[matrix])
    for layer, matrix in ((1, "k"), (1, "v"), *((0, m) for m in MATRICES)):
        yes = int(measured["lost"][layer, matrix] > 0.05)
        lab.row("loses", 1, yes, "measured", unit="", layer=1 + layer, matrix=NAMES[matrix])
    early, late = measured["stale"]
    # a first step of AdamW moves every weight by its rate; what is not linear in that is of its order
    ratio: Values = {"unit": "×", "match": "statistical", "tolerance": 5}
    lab.row("stale", RATES[0] / RATES[1], early / late, "keys are smooth in the weights", **ratio)


def costs(lab: Lab, run: Any, n: int) -> Values:
    """Rows of what one pass and n steps through a cache cost: FLOPs, kernels, and time where kernels are
    short.
    """
    graph, h, layers, vocab = run.graph, SHAPE["hidden"], SHAPE["layers"], SHAPE["vocab"]
    names = [graph.names[number] for number in graph.op]
    counted: Values = {}
    for key, layer in (("pass", 0), ("steps", 1)):
        for kind, name in (("weights", "mm"), ("scores", "bmm")):
            at = [i for i in range(len(names)) if names[i] == name and graph.layer[i] == layer]
            counted[f"{kind}_{key}"] = int(graph.flops[at].sum())
            counted[f"{kind}_launches_{key}"] = len(at)
        counted[f"kernels_{key}"] = int(((graph.kind == COMPUTE) & (graph.layer == layer)).sum())
    products = 2 * n * (12 * h * h * layers + vocab * h)
    for key in ("pass", "steps"):
        source = "2n(12Lh² + h · vocabulary)"
        lab.row(f"weights_{key}", products, counted[f"weights_{key}"], source, unit="FLOPs", n=n)
    lab.row("scores_pass", 4 * n * n * h * layers, counted["scores_pass"], "4n²hL", unit="FLOPs", n=n)
    triangle = 2 * n * (n + 1) * h * layers
    lab.row("scores_steps", triangle, counted["scores_steps"], "Σ 4t·hL over t = 1 … n", unit="FLOPs", n=n)
    each = 6 * layers + 1
    lab.row("launches_pass", each, counted["weights_launches_pass"], "6L + 1", unit="kernels")
    lab.row("launches_steps", n * each, counted["weights_launches_steps"], "n(6L + 1)", unit="kernels", n=n)
    slower = {name: step_time(timeline, 1) / step_time(timeline, 0) for name, timeline in timelines(lab)}
    for name, ratio in slower.items():
        lab.row("slower", 1, int(ratio > 1), "replayed", unit="", hardware=name)
    said = {"launches": n * each, "launches_pass": each, "slower": slower["dgx-h100"]}
    return said | {"kernels": counted["kernels_steps"], "kernels_pass": counted["kernels_pass"]}


def timelines(lab: Lab) -> list[tuple[str, Any]]:
    """The recorded run on each hardware."""
    return list(lab.entries[-1].timelines.items())


def step_time(timeline: Any, layer: int) -> float:
    """Simulated seconds from the first kernel of a region to its last."""
    at = (timeline.graph.layer == layer) & (timeline.graph.kind == COMPUTE)
    return float(timeline.end[at].max() - timeline.start[at].min())


def training(lab: Lab, losses: dict[str, list[float]]) -> Values:
    """Rows of the trained GPTs.

    Tried on eight seeds: chunks of one token with a constant cache lost 0.08 to 0.26 nats a token to one
    pass, and were 0.36 to 0.53 better than without a cache. At four tokens a chunk the constant cache was
    better than none in three of eight, so no row says anything of it.
    """
    mean = {way: sum(x) / SEEDS for way, x in losses.items()}
    by_chance: Values = {"unit": "", "match": "statistical"}
    for key, low, high in (
        ("whole_is_lower", "whole", "constant_1"),
        ("better_than_nothing", "constant_1", "nothing_1"),
    ):
        lab.row(key, 1, int(mean[low] < mean[high]), "measured", **by_chance, seeds=SEEDS)
    apart_by_seed = max(max(x) - min(x) for x in losses.values())
    return mean | {"seeds": SEEDS, "best": best_loss(), "spread": apart_by_seed}


def figures(lab: Lab, measured: Values, losses: dict[str, list[float]], n: int) -> None:
    """Draw what each matrix loses, what is lost by the size of a chunk, and what training made of it."""

    def matrices(lang: str) -> Any:
        series = {}
        for layer in (0, 1):
            percent = [100 * measured["lost"][layer, m] for m in MATRICES]
            series[lab.word("layer", lang, number=1 + layer)] = [x if x > 1e-9 else 0 for x in percent]
        return bars([NAMES[m] for m in MATRICES], series, lab.word("lost", lang))

    def sizes(lang: str) -> Any:
        at = measured["sizes"]
        silent = [100 * (n - c) / (n + 1) for c in at]
        series = {lab.word("pairs", lang): (at, silent), lab.word("length", lang): (at, measured["by_chunk"])}
        return lines(series, lab.word("tokens_a_chunk", lang), lab.word("percent", lang), log_x=True)

    def ways(lang: str) -> Any:
        series = {lab.word("seed", lang, number=i): [x[i] for x in losses.values()] for i in range(SEEDS)}
        return bars([lab.word(way, lang) for way in losses], series, lab.word("loss", lang))

    lab.figure("matrices", matrices)
    lab.figure("sizes", sizes)
    lab.figure("ways", ways)

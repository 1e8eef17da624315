"""A14: where a mixture's weights come from: a temperature, excess losses (DoReMi), or a law fitted to
small runs; each is tried on real sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from glasscluster.model.adamw import Optimizer
from glasscluster.model.rate import RateSchedule
from glasscluster.model.text.sampler import Sampler
from glasscluster.model.text.texts import documents
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.visualize.figures.picture import trace
from glasscluster.visualize.figures.plots import bars, lines

NAMES = ("python", "english", "chinese", "noise")
REAL = 3  # of them: the last is drawn, and nothing can be learned of it but that
VOCAB, SEQ, HIDDEN, HEADS, ROWS = 256, 16, 24, 4, 24  # bytes; a model, and the rows of its step
OTHER_SEEDS = 3  # trainings of a mix that differ in the seed alone
FITTED = (  # mixes of the three real sources that the law is fitted to
    (0.8, 0.1, 0.1),
    (0.1, 0.8, 0.1),
    (0.1, 0.1, 0.8),
    (0.45, 0.45, 0.1),
    (0.45, 0.1, 0.45),
    (0.1, 0.45, 0.45),
    (1 / 3, 1 / 3, 1 / 3),
)
HELD_OUT = ((0.6, 0.3, 0.1), (0.2, 0.2, 0.6))  # and those that it is tried on
BLOCK = 10_000  # numbers of the sampler, over which its shares are exact
ETA, SMOOTHING = 1.0, 1e-3  # DoReMi's step size, and the part of the first weights that always stays


# ---- sources -----------------------------------------------------------------------------------------------
class Sources:
    """The bytes of all sources: nine tenths to train on, the rest to judge by."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        texts = [np.frombuffer(b"\n".join(documents(name)), np.uint8) for name in NAMES[:REAL]]
        texts.append(draw.integers(0, VOCAB, 100_000).astype(np.uint8))
        self.training = [text[: len(text) * 9 // 10] for text in texts]
        held_out = [text[len(text) * 9 // 10 :] for text in texts]
        self.judged = torch.stack([rows_of(text, 128, draw) for text in held_out])  # [sources, rows, SEQ + 1]
        self.sizes = [len(text) // SEQ for text in self.training]  # rows

    def mixed(self, shares: Sequence[float], draw: Any) -> Tensor:
        """Rows [ROWS, SEQ + 1] of a step: how many of each source is drawn by its share."""
        many = draw.multinomial(ROWS, shares)
        return torch.cat([rows_of(text, n, draw) for text, n in zip(self.training, many, strict=False) if n])


def rows_of(text: Any, many: int, draw: Any) -> Tensor:
    """Pieces [many, SEQ + 1] of a text, from anywhere."""
    starts = draw.integers(0, len(text) - SEQ - 1, size=many)
    return torch.from_numpy(text[starts[:, None] + np.arange(SEQ + 1)].astype(np.int64))


# ---- many small GPTs at once -------------------------------------------------------------------------------
Weights = dict[str, Tensor]  # by name, [models, ...]


def born(seeds: Sequence[int]) -> Weights:
    """One-layer GPTs, one for each seed, side by side."""
    shapes = {"token": (VOCAB, HIDDEN), "place": (SEQ, HIDDEN), "qkv": (HIDDEN, 3 * HIDDEN)}
    shapes |= {"out": (HIDDEN, HIDDEN), "up": (HIDDEN, 4 * HIDDEN), "down": (4 * HIDDEN, HIDDEN)}
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    return {
        name: torch.stack([torch.randn(shape, generator=draw) for draw in draws])
        * (0.02 if name in ("token", "place") else shape[0] ** -0.5)
        for name, shape in shapes.items()
    }


def norm(x: Tensor) -> Tensor:
    """RMSNorm without a weight."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


def losses(w: Weights, rows_MBS: Tensor) -> Tensor:
    """Loss [models, rows, SEQ] of every byte; model m reads the rows m."""
    x, y = rows_MBS[..., :-1], rows_MBS[..., 1:]
    models, rows, seq = x.shape
    picked = x.reshape(models, rows * seq, 1).expand(-1, -1, HIDDEN)
    h = torch.gather(w["token"], 1, picked) + w["place"].repeat(1, rows, 1)
    heads = (norm(h) @ w["qkv"]).view(models * rows, seq, 3, HEADS, HIDDEN // HEADS)
    q, k, v = heads.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    h = h + mixed.transpose(1, 2).reshape(models, rows * seq, HIDDEN) @ w["out"]
    h = h + F.gelu(norm(h) @ w["up"]) @ w["down"]
    logits = norm(h) @ w["token"].transpose(1, 2)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(x.shape)


class Training:
    """AdamW on the weights of models side by side, with warm-up and a rate that falls to the end."""

    def __init__(self, weights: Weights, steps: int) -> None:
        self.weights = {name: w.requires_grad_() for name, w in weights.items()}
        falling = RateSchedule(warmup=10, decay="cosine", until=steps, floor=0.1)
        self.optimizer, self.step = Optimizer(lr=1e-2, schedule=falling), 0
        self.moments = {name: [torch.zeros_like(w) for _ in range(2)] for name, w in weights.items()}

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """The gradient of a sum over models: no model sees another one's."""
        return list(torch.autograd.grad(loss, list(self.weights.values())))

    def update(self, gradients: Sequence[Tensor]) -> None:
        """One step of every model."""
        self.step += 1
        with torch.no_grad():
            for (name, w), gradient in zip(self.weights.items(), gradients, strict=True):
                self.optimizer.update(w, gradient, self.moments[name], self.step)


def train(sources: Sources, mixes: Sequence[Sequence[float]], seeds: Sequence[int], steps: int) -> Weights:
    """Train a model on each mix, from the seed beside it; returns the weights, side by side."""
    training, draws = Training(born(seeds), steps), [np.random.default_rng([seed, 1]) for seed in seeds]
    for _ in range(steps):
        rows = torch.stack([sources.mixed(mix, draw) for mix, draw in zip(mixes, draws, strict=True)])
        training.update(training.gradient(losses(training.weights, rows).mean((1, 2)).sum()))
    return {name: w.detach() for name, w in training.weights.items()}


def judge(weights: Weights, sources: Sources) -> Any:
    """Held-out losses [models, real sources]."""
    models = len(weights["token"])
    with torch.no_grad():
        by_source = [
            losses(weights, rows.expand(models, -1, -1)).mean((1, 2)) for rows in sources.judged[:REAL]
        ]
    return torch.stack(by_source, 1).double().numpy()


# ---- three ways to weights ---------------------------------------------------------------------------------
def tempered(sizes: Sequence[float], temperature: float) -> list[float]:
    """p_i ∝ n_i^(1/T): the sizes themselves at T = 1, equal shares where T is very large."""
    powers = [size ** (1 / temperature) for size in sizes]
    return [power / sum(powers) for power in powers]


def reweighted(weights: Tensor, first: Tensor, excess: Tensor) -> Tensor:
    """DoReMi's update (Algorithm 1): weights grow by the exponential of the excess loss.

    All are [runs, sources]; a source whose first weight is 0 stays out.
    """
    grown = weights * torch.exp(ETA * excess)
    return (1 - SMOOTHING) * grown / grown.sum(1, keepdim=True) + SMOOTHING * first


def doremi(gpu: Any, sources: Sources, reference: Weights, first: Tensor, steps: int, seed: int) -> Any:
    """Train proxies, each rank on rows of one source; after every step the weights of the sources change.

    Run 0 weighs by the excess over the reference, run 1 by the loss itself, run 2 by the excess among the
    real sources alone. Returns weights and excess losses of every step, each [steps, runs, sources].
    """
    runs, draw, weights = len(first), np.random.default_rng([seed, gpu.rank]), first
    training, log = Training(born([seed] * runs), steps), list[tuple[Tensor, Tensor]]()
    for _ in range(steps):
        gpu.start_step()
        with gpu.unrecorded():
            rows = rows_of(sources.training[gpu.rank], ROWS // gpu.size, draw).expand(runs, -1, -1)
            own = losses(training.weights, rows)
            with torch.no_grad():
                known = losses(reference, rows[:1])
                floor = torch.cat([known, torch.zeros_like(known), known])
                excess = torch.zeros(runs, gpu.size, dtype=torch.float64)
                excess[:, gpu.rank] = (own - floor).clamp(min=0).double().mean((1, 2))
        gpu.comm.all_reduce(excess, purpose="scalars", label="excess loss of each source")
        with gpu.unrecorded():
            weights = reweighted(weights, first, excess)
            log.append((weights, excess))
            loss = (weights[:, gpu.rank] * own.mean((1, 2))).sum()
            gradients = training.gradient(loss)
            flat = torch.cat([gradient.flatten() for gradient in gradients])
        gpu.comm.all_reduce(flat, label="gradients, each weighted by its source")
        with gpu.unrecorded():
            whole = flat.split([gradient.numel() for gradient in gradients])
            training.update([part.view_as(g) for part, g in zip(whole, gradients, strict=True)])
    return tuple(torch.stack(part) for part in zip(*log, strict=True))


class Law:
    """loss of a source = c + k·exp(−t·r) of its share r: c and k by least squares, t the best of many."""

    def __init__(self, shares: Any, measured: Any) -> None:
        fits = []
        for t in np.linspace(0.5, 20, 79):
            columns = np.stack([np.ones_like(shares), np.exp(-t * shares)], 1)
            (c, k), *_ = np.linalg.lstsq(columns, measured, rcond=None)
            fits.append((float(((columns @ (c, k) - measured) ** 2).sum()), float(c), float(k), float(t)))
        _, self.c, self.k, self.t = min(fits)

    def loss(self, share: Any) -> Any:
        """The loss that the law predicts at a share."""
        return self.c + self.k * np.exp(-self.t * share)


def best_mix(laws: Sequence[Law]) -> tuple[float, ...]:
    """The mix, in steps of a fiftieth, with the lowest predicted mean loss; every share is at least the
    smallest that the laws were fitted to, as nothing is known of them beyond.
    """
    least = round(50 * min(map(min, FITTED)))
    grid = [
        (i / 50, j / 50, (50 - i - j) / 50)
        for i in range(least, 51 - 2 * least)
        for j in range(least, 51 - least - i)
    ]
    return min(grid, key=lambda mix: sum(law.loss(r) for law, r in zip(laws, mix, strict=True)))


@lesson
def choosing_the_weights(lab: Lab, temperature: float = 5.0, steps: int = 64) -> None:
    """A temperature flattens the sizes of three real sources; DoReMi's proxies weigh them and a source of
    noise, by excess loss and by loss; a law fitted to seven small runs is tried on mixes that it has not
    seen.
    """
    sources = Sources()
    real = sources.sizes[:REAL]
    ratio = check_temperature(lab, real, temperature)
    with one_thread():
        trained = fitted_and_held_out(lab, sources, steps)
        reference = train(sources, [[1 / len(NAMES)] * len(NAMES)], [seed_of(lab, 100)], steps)
    first = torch.tensor([[1 / 4] * 4, [1 / 4] * 4, [1 / REAL] * REAL + [0.0]], dtype=torch.float64)
    program = (doremi, sources, reference, first, steps, seed_of(lab, 101))
    run = lab.run("doremi", lab.text("doremi"), *program, gpus=len(NAMES))
    if not lab.leader:
        return
    weights, excess = run.results[0]
    mean = check_doremi(lab, first, weights, excess)
    laws, errors = check_law(lab, trained)
    mixes = {
        "natural": tempered(real, 1),
        "tempered": tempered(real, temperature),
        "equal": [1 / REAL] * REAL,
        "doremi": mean[2, :REAL].tolist(),
        "law": list(best_mix(laws)),
    }
    with one_thread():
        tried = try_mixes(lab, sources, mixes, steps)
    lab.ask("ratio", ratio, temperature=temperature, large=real[0], small=real[-1], row=SEQ)
    figures(lab, sources, temperature, weights, (laws, trained), tried)
    compared = compare(lab, tried)
    noise: dict[str, Any] = {"noise_by_loss": float(mean[1, -1]), "noise_by_excess": float(mean[0, -1])}
    noise |= {"noise_peak": float(weights[:, 0, -1].max()), "equal_share": 1 / len(NAMES)}
    tempering: dict[str, Any] = {"temperature": temperature, "large": real[0], "small": real[-1]}
    tempering |= {"plain_share": mixes["natural"][-1], "share": mixes["tempered"][-1], "ratio": ratio}
    lab.tell("temperature", view="tab=ledger", **tempering)
    lab.tell("noise", view="tab=story", **noise)
    lab.tell("law", view="tab=ledger", **errors, fitted=len(FITTED), seeds=OTHER_SEEDS)
    lab.tell("which_mix", view="tab=story", **compared, seeds=OTHER_SEEDS)
    lab.conclude(ratio=ratio, temperature=temperature, **noise)
    lab.explain()
    lab.card(**tempering, **noise, **errors, **compared, fitted=len(FITTED), seeds=OTHER_SEEDS)
    lab.own_number(ratio=ratio, law_over_spread=errors["law_over_spread"])


def seed_of(lab: Lab, number: int) -> int:
    """The seed of a training of this lab."""
    return 1000 * lab.seed + number


# ---- check -------------------------------------------------------------------------------------------------
def check_temperature(lab: Lab, sizes: Sequence[int], temperature: float) -> float:
    """Check what a sampler reads with tempered weights against the formula; returns how many times as often
    a row of the smallest source is read as one of the largest.
    """
    shares = tempered(sizes, temperature)
    order, counts = Sampler(tuple(sizes), tuple(shares), lab.seed, BLOCK), [0] * len(sizes)
    for number in range(BLOCK):
        counts[order.sample(number).source] += 1
    power = 1 / temperature
    # the sampler rounds a block's quota to a whole number
    options: dict[str, Any] = {"unit": "", "tolerance": 1 / BLOCK, "temperature": temperature}
    for name, size, count in zip(NAMES, sizes, counts, strict=False):
        expected, source = size**power / sum(n**power for n in sizes), "p_i ∝ n_i^(1/T)"
        lab.row("share", expected, count / BLOCK, source, name=lab.text(name), **options)
    often = [count / size for count, size in zip(counts, sizes, strict=True)]
    closed = (max(sizes) / min(sizes)) ** (1 - 1 / temperature)
    off = closed * 2 / min(counts)  # both counts are off by less than one
    source, counted = "(n_b/n_s)^(1 − 1/T)", often[-1] / often[0]
    lab.row("rows_ratio", closed, counted, source, unit="×", tolerance=off, temperature=temperature)
    return closed


def fitted_and_held_out(lab: Lab, sources: Sources, steps: int) -> Any:
    """Train the mixes that the law is fitted to, and those held out with several seeds; returns the
    losses [mixes, real sources], the held-out ones [mixes, seeds, real sources].
    """
    mixes = [*FITTED, *(mix for mix in HELD_OUT for _ in range(OTHER_SEEDS))]
    seeds = [seed_of(lab, number) for number in range(len(mixes))]
    measured = judge(train(sources, mixes, seeds, steps), sources)
    return measured[: len(FITTED)], measured[len(FITTED) :].reshape(len(HELD_OUT), OTHER_SEEDS, REAL)


def check_doremi(lab: Lab, first: Tensor, weights: Tensor, excess: Tensor) -> Any:
    """Check the weights against Algorithm 1 done again from the excess losses, and what noise gets; returns
    the mean weights [runs, sources], which DoReMi trains with.
    """
    again, off = first.numpy(), 0.0
    for used, gained in zip(weights.numpy(), excess.numpy(), strict=True):
        again = again * np.exp(ETA * gained)
        again = (1 - SMOOTHING) * again / again.sum(1)[:, None] + SMOOTHING * first.numpy()
        off = max(off, float(np.abs(again - used).max()))
    lab.row("doremi_update", 0, off, "DoReMi 2305.10429, Algorithm 1", unit="absolute", tolerance=1e-12)
    mean = weights.mean(0)
    by_excess, by_loss = float(mean[0, -1]), float(mean[1, -1])
    yes: dict[str, Any] = {"unit": "yes", "match": "statistical"}
    lab.row("noise_by_loss", 1, int(by_loss > 0.5), "most of the weight", **yes)
    lab.row("noise_by_excess", 1, int(by_excess < by_loss / 2), "2305.10429, section 2", **yes)
    return mean


def root_mean_square(values: Any) -> float:
    """√ of the mean of squares."""
    return float(np.sqrt(np.mean(np.square(values))))


def check_law(lab: Lab, trained: Any) -> tuple[list[Law], dict[str, float]]:
    """Fit the law to the seven mixes, and check what it says of the held-out ones; returns the laws and the
    errors.
    """
    measured, held_out = trained
    shares, tried = np.array(FITTED), np.array(HELD_OUT)
    laws = [Law(shares[:, i], measured[:, i]) for i in range(REAL)]
    straight = [np.polyfit(shares[:, i], measured[:, i], 1) for i in range(REAL)]
    truth, spread = held_out.mean(1), root_mean_square(held_out.std(1, ddof=1))
    predicted = np.stack([laws[i].loss(tried[:, i]) for i in range(REAL)], 1)
    lines_at = np.stack([np.polyval(straight[i], tried[:, i]) for i in range(REAL)], 1)
    errors = {
        "law_error": root_mean_square(predicted - truth),
        "line_error": root_mean_square(lines_at - truth),
        "mean_error": root_mean_square(measured.mean(0) - truth),
        "spread": spread,
    }
    errors["law_over_spread"] = errors["law_error"] / spread
    # A fit to seven runs and a mean of three are each off by about a spread: √(3/7 + 1/3) = 0.87 of one, were
    # the law exact. Four leaves room for a spread that is itself known from three runs.
    chance: dict[str, Any] = {"match": "statistical", "tolerance": 4.0}
    source = "2403.16952: c + k·exp(−t·r); four spreads"
    lab.row("law_on_held_out", 0, errors["law_over_spread"], source, unit="spreads", **chance)
    better = int(errors["law_error"] < errors["mean_error"])
    lab.row("law_and_guess", 1, better, "the same held-out mixes", unit="yes", match="statistical")
    return laws, errors


def try_mixes(lab: Lab, sources: Sources, mixes: dict[str, list[float]], steps: int) -> dict[str, Any]:
    """Train every mix with the same few seeds; returns the losses [seeds, real sources] by mix."""
    each = [mix for mix in mixes.values() for _ in range(OTHER_SEEDS)]
    seeds = [seed_of(lab, 200 + number) for number in range(OTHER_SEEDS)] * len(mixes)
    measured = judge(train(sources, each, seeds, steps), sources)
    return dict(zip(mixes, measured.reshape(len(mixes), OTHER_SEEDS, REAL), strict=True))


def compare(lab: Lab, tried: dict[str, Any]) -> dict[str, float]:
    """Check that weights in proportion to size are the worst; returns the mean losses and their spread."""
    means = {name: float(losses.mean()) for name, losses in tried.items()}
    others = [mean for name, mean in means.items() if name != "natural"]
    worst = int(means["natural"] > max(others))
    lab.row("size_is_worst", 1, worst, "the same seeds", unit="yes", match="statistical")
    spread = root_mean_square([losses.mean(1).std(ddof=1) for losses in tried.values()])
    between = max(others) - min(others)
    # four means of three runs that differ by chance alone: their range is 2.06/√3 = 1.2 spreads on average
    chance: dict[str, Any] = {"match": "statistical", "tolerance": 4.0}
    lab.row("others_alike", 0, between / spread, "the same seeds; four spreads", unit="spreads", **chance)
    return {f"loss_{name}": mean for name, mean in means.items()} | {"spread_mix": spread, "between": between}


# ---- draw --------------------------------------------------------------------------------------------------
def figures(
    lab: Lab, sources: Sources, temperature: float, weights: Tensor, law: Any, tried: dict[str, Any]
) -> None:
    """Draw shares by temperature, DoReMi's weights by step, the law with held-out runs, and all mixes."""

    def names(lang: str, many: int = REAL) -> list[str]:
        return [lab.word(name, lang) for name in NAMES[:many]]

    def shares(lang: str) -> Any:
        temperatures = (1, 2, temperature, 100)
        series = {f"T = {t:g}": [100 * p for p in tempered(sources.sizes[:REAL], t)] for t in temperatures}
        return bars(names(lang), series, lab.word("share", lang))

    def noise(lang: str) -> Any:
        at = range(1, len(weights) + 1)
        series = {lab.word(key, lang): (at, weights[:, run, -1].tolist()) for run, key in enumerate(RUNS)}
        return lines(series, lab.word("step", lang), lab.word("weight_of_noise", lang))

    def fitted(lang: str) -> Any:
        return law_figure(lab, law, lang)

    def mixes(lang: str) -> Any:
        series = {lab.word(f"mix_{name}", lang): list(losses.mean(0)) for name, losses in tried.items()}
        return bars(names(lang), series, lab.word("held_out_loss", lang))

    lab.figure("shares", shares)
    lab.figure("weight_by_step", noise)
    lab.figure("fitted", fitted)
    lab.figure("mixes", mixes)


RUNS = ("by_excess", "by_loss")  # the two runs of DoReMi that have noise among their sources


def law_figure(lab: Lab, law: Any, lang: str) -> Any:
    """Draw each source's law over its share, the runs that it was fitted to, and those held out."""
    laws, (measured, held_out) = law
    at = [i / 40 for i in range(2, 35)]
    curves = {
        lab.word(name, lang): (at, one.loss(np.array(at))) for name, one in zip(NAMES, laws, strict=False)
    }
    figure = lines(curves, lab.word("own_share", lang), lab.word("held_out_loss", lang))
    figure.update_traces(mode="lines")
    several = np.repeat(np.array(HELD_OUT), OTHER_SEEDS, axis=0)
    for number, curve in enumerate(list(figure.data)):
        dots = {
            "dots_fitted": (np.array(FITTED)[:, number], measured[:, number], "circle-open"),
            "dots_held_out": (several[:, number], held_out[:, :, number].ravel(), "x"),
        }
        for key, (x, y, symbol) in dots.items():
            colour = curve["line"]["color"]
            look = {"color": colour, "symbol": symbol, "size": 11, "line": {"width": 3, "color": colour}}
            name = f"{curve['name']}: {lab.word(key, lang)}"
            figure.add_trace(
                trace("scatter", name=name, x=x.tolist(), y=y.tolist(), mode="markers", marker=look)
            )
    return figure.update_yaxes(rangemode="normal")

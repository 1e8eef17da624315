"""G3: a draft model guesses, the target accepts or rejects: how many tokens a pass, at what cost, and from
whose distribution.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import log, sqrt
from statistics import fmean, stdev
from typing import Any

import torch

from glasscluster.model.adamw import Optimizer
from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding.generate import Sampling, generate
from glasscluster.model.decoding.speculative import predict_speedup, predict_tokens, speculate
from glasscluster.model.gpt import GPTStage
from glasscluster.model.text.data import batch, corpus
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.judge.single_device import train_one_device
from glasscluster.strategies.plan import make_model
from glasscluster.strategies.serving.generation import phases
from glasscluster.strategies.serving.speculation import (
    SpeculationJob,
    chi_square,
    fill,
    joint,
    judge_alone,
    pass_seconds,
    speculate_rank,
)
from glasscluster.visualize.figures.cells import Table, cells_figure
from glasscluster.visualize.figures.plots import lines

P, Q = (0.1, 0.2, 0.3, 0.4), (0.3, 0.2, 0.2, 0.3)  # Σ min(p, q) = 0.8, whatever came before
SHOWN = {10: "⏎", 32: "␣", 9: "⇥"}
SIZES = (0, 1, 2, 4, 8, 16)  # guesses a pass, γ
ALPHA = sum(map(min, P, Q))
COLOURS = {"yes": "#0072B2", "no": "#D55E00", "own": "#00795a", "off": "#e4e7eb"}


def always(model: Any, p: tuple[float, ...]) -> dict[str, Any]:
    """Weights with which a model's next token has these probabilities after any other token.

    The last norm gives e_0, and the table gives log p.
    """
    table = torch.zeros(len(p), model.hidden)
    table[:, 0] = torch.tensor([log(share) for share in p])
    bias = torch.eye(model.hidden)[0]
    return {"head.norm_weight": torch.zeros(model.hidden), "head.norm_bias": bias, "head.table": table}


def trained(model: Any, steps: int, seed: int) -> dict[str, Any]:
    """The weights after a short training on the first 3 kB of the built-in text."""
    batches = [batch(corpus()[:3000], step, 8, 32, model.vocab, seed) for step in range(steps)]
    optimizer = Optimizer(lr=5e-3, weight_decay=0.0)
    return train_one_device(model, batches, optimizer, 1.0, seed, torch.float32).weights[-1]


@lesson(hardware="dgx-h100")
def speculative_decoding(lab: Lab, gamma: int = 4) -> None:
    """Two small GPTs, trained for a moment, speculate on text; two with a constant α show Eq 32; a tiny pair
    is held against its exact distribution.
    """
    text = speculate_on_text(lab, gamma)
    samples, statistic, degrees, tail = check_distribution(lab)
    passes = {n: constant_pair(lab, n) for n in SIZES}
    for n in SIZES[1:]:
        check_tokens(lab, n, passes[n])
    counted = {n: fmean(each.tokens) for n, each in passes.items()}
    speed = {n: counted[n] / sum(passes[n].seconds) for n in SIZES}  # tokens a second
    predicted = {n: predict_tokens(ALPHA, n) / sum(passes[n].seconds) for n in SIZES}
    few = (1, 4, 16)
    expected, fastest = max(few, key=predicted.__getitem__), max(few, key=speed.__getitem__)
    lab.row("fastest", expected, fastest, "Eq 32 ÷ the run's seconds a pass", unit="γ")
    alpha = passes[SIZES[-1]].alpha
    lab.row("constant_pair", ALPHA, alpha, "Σ min(p, q)", unit="fraction", tolerance=1e-6)
    times_flops, times_seconds = check_llama(lab)

    four = predict_tokens(ALPHA, 4)
    lab.ask("tokens_a_pass", four, alpha=ALPHA, guesses=4)
    lab.figure("accepted_and_rejected", lambda lang: accepted_and_rejected(lab, text.judged[0], gamma, lang))
    figures(lab, counted, speed, predicted)
    lab.tell("tokens", counted_4=counted[4], predicted_4=four)
    drafting, _ = passes[4].seconds
    cost = drafting / 4 / passes[0].seconds[1]  # cost of a draft's pass, in passes of the target
    best = max(SIZES, key=speed.__getitem__)
    speedups: dict[str, Any] = {"best_speedup": speed[best] / speed[0], "long_speedup": speed[16] / speed[0]}
    lab.tell("cost", cost=cost, best=best, **speedups, long_predicted=predict_speedup(ALPHA, 16, cost))
    betas = text.judged[0].overlap
    on_text: dict[str, Any] = {
        "text_alpha": text.alpha,
        "text_tokens": text.tokens_per_pass,
        "mean": predict_tokens(text.alpha, gamma),
    }
    lab.tell("on_text", view="tab=timeline&run=text", **on_text, lowest=min(betas), highest=max(betas))
    lab.tell("samples", samples=samples, statistic=statistic, degrees=degrees, tail=tail)
    lab.tell("why_it_pays", times_flops=times_flops, times_seconds=times_seconds)
    lab.conclude(predicted_4=four, best=best, long_speedup=speedups["long_speedup"])
    lab.explain()
    lab.card(alpha=ALPHA, guesses=4, predicted_4=four, long=16, long_speedup=speedups["long_speedup"])
    lab.own_number(counted_4=counted[4], best=best)


def speculate_on_text(lab: Lab, gamma: int) -> Any:
    """Train two small GPTs briefly; check them greedily against the target alone, then sample on a rank."""
    shape: dict[str, Any] = {
        "vocab": 128,
        "seq": 96,
        "position": "rope",
        "norm": "rmsnorm",
        "bias": False,
        "heads": 4,
    }
    large = ModelConfig(layers=2, hidden=64, init_std=0.05, **shape)
    small = ModelConfig(layers=1, hidden=32, init_std=0.05, **shape)
    prompts = (tuple(b"Each line is "),)
    with one_thread():
        states = trained(large, 100, lab.seed), trained(small, 60, lab.seed)
        target, draft = (GPTStage(model, dtype=torch.float64) for model in (large, small))
        fill(target, states[0])
        fill(draft, states[1])
        greedy = speculate(target, draft, prompts, 40, gamma).generated[0]
        alone = generate(target, prompts, 40).tokens[0]
    other = sum(a != b for a, b in zip(greedy, alone, strict=True))
    lab.row("greedy", 0, other, "the target alone, no draft, no cache", unit="tokens")
    weights: dict[str, Any] = {"target_state": states[0], "draft_state": states[1]}
    job = SpeculationJob(large, small, prompts, 60, gamma, warm(lab), **weights)
    return lab.run("text", lab.text("run"), speculate_rank, job, gpus=1, precision="fp32").results[0]


def warm(lab: Lab) -> Sampling:
    """Sampling at temperature 1: from the model's own distribution."""
    return Sampling(temperature=1.0, seed=lab.seed)


def check_distribution(lab: Lab) -> tuple[int, float, int, float]:
    """Check samples of a tiny pair against the target's exact distribution; returns their number, χ², its
    degrees of freedom and its tail probability.
    """
    tiny: dict[str, Any] = {"hidden": 8, "heads": 2, "vocab": 5, "seq": 16, "init_std": 0.7, "tied": False}
    target, draft = (
        GPTStage(ModelConfig(layers=n, **tiny), seed=lab.seed + n, dtype=torch.float64) for n in (1, 2)
    )
    samples, prompt = 900, (2, 0, 3)
    with one_thread():
        spoken = speculate(target, draft, [prompt] * samples, 3, 2, warm(lab)).generated
        exact = {c: samples * share for c, share in joint(target, prompt, 3, warm(lab)).items()}
        statistic, degrees, tail = chi_square(Counter(tuple(tokens) for tokens in spoken), exact)
    four_deviations: dict[str, Any] = {"match": "statistical", "tolerance": 4 * sqrt(2 * degrees)}
    source = "mean and 4 σ of χ²"
    lab.row("distribution", degrees, statistic, source, unit="χ²", **four_deviations, samples=samples)
    return samples, statistic, degrees, tail


@dataclass(frozen=True)
class Passes:
    """Results of the constant pair with γ guesses: the tokens of every pass, seconds of draft and target a
    pass, and the share of guesses that are accepted.
    """

    tokens: list[int]
    seconds: tuple[float, float]
    alpha: float | None  # None where nothing was guessed


def constant_pair(lab: Lab, n: int) -> Passes:
    """Run two models whose next token has the same probabilities everywhere, so that Eq 32's assumption
    holds.
    """
    shape: dict[str, Any] = {"hidden": 16, "heads": 1, "vocab": len(P), "seq": 64, "tied": False}
    deep, flat = ModelConfig(layers=4, **shape), ModelConfig(layers=1, **shape)
    weights: dict[str, Any] = {"target_state": always(deep, P), "draft_state": always(flat, Q)}
    job = SpeculationJob(deep, flat, ((1,),) * 14, 30 if n else 8, n, warm(lab), **weights)
    run = lab.cluster(1).run(speculate_rank, job, info={"precision": "fp32"})
    tokens = [1 + accepted for accepted in run.results[0].accepted]
    alpha = run.results[0].alpha if n else None
    return Passes(tokens, pass_seconds(run.timeline), alpha)


def check_tokens(lab: Lab, n: int, passes: Passes) -> None:
    """Check the mean tokens of a pass against Eq 32, to four standard errors of that mean."""
    error = stdev(passes.tokens) / sqrt(len(passes.tokens))
    chance: dict[str, Any] = {"unit": "tokens", "match": "statistical", "tolerance": 4 * error}
    mean, source = fmean(passes.tokens), "Eq 32, 4 standard errors"
    lab.row("tokens_a_pass", predict_tokens(ALPHA, n), mean, source, **chance, n=n)


def check_llama(lab: Lab) -> tuple[float, float]:
    """Check Llama 3 8B on an H100, verifying five tokens against one: the ratio of FLOPs, and the roofline of
    Eq 31.

    Returns the ratio of FLOPs, and the ratio of roofline times.
    """
    model, h100 = make_model("llama3-8b"), hardware("dgx-h100")

    def verify(tokens: int) -> Any:
        cluster = Cluster(h100, 1, "dry", memory_bytes=None)
        run = cluster.run(judge_alone, model, 128, tokens, info={"precision": "bf16"})
        return phases(run.timeline, h100, "bf16")[0]

    single, five = verify(1), verify(5)
    ridge = h100.gpu.peak("bf16") / h100.gpu.memory_bandwidth
    lab.row("bound_by_memory", 1, int(five.intensity < ridge), "Eq 31", unit="yes")
    times, source = five.flops / single.flops, "2P a token, and attention to one more each"
    lab.row("flops_of_five", 5, times, source, unit="×", tolerance=0.01)
    return times, five.roof_s / single.roof_s


def accepted_and_rejected(lab: Lab, judged: Any, gamma: int, lang: str) -> Any:
    """Draw a row for each pass: the guesses, and the target's own token."""
    rows = list(zip(judged.guessed, judged.accepted, judged.own, strict=True))[:12]
    text, fill = [], []
    for guessed, accepted, own in rows:
        marks = ["✓" if i < accepted else "✗" if i == accepted else "" for i in range(len(guessed))]
        guesses = [f"{letter(token)} {mark}" for token, mark in zip(guessed, marks, strict=True)]
        text.append([*guesses, f"+ {letter(own)}"])
        colours = ["yes" if i < accepted else "no" if i == accepted else "off" for i in range(gamma)]
        fill.append([COLOURS[colour] for colour in (*colours, "own")])
    names = [f"{lab.word('pass', lang)} {i}" for i in range(len(rows))]
    places = [*(str(i + 1) for i in range(gamma)), "+"]
    return cells_figure([Table("", names, places, text, fill, lab.word("legend", lang))])


def letter(token: int) -> str:
    """A byte as it is printed."""
    return SHOWN.get(token, chr(token) if token > 32 else "·")


def figures(lab: Lab, counted: Any, speed: Any, predicted: Any) -> None:
    """Draw tokens a pass and speed against the number of guesses."""

    def tokens(lang: str) -> Any:
        series = {
            lab.word("f32", lang): (SIZES, [predict_tokens(ALPHA, n) for n in SIZES]),
            lab.word("counted", lang): (SIZES, list(counted.values())),
        }
        return lines(series, lab.word("guesses", lang), lab.word("tokens_a_pass", lang))

    def times_as_fast(lang: str) -> Any:
        series = {
            lab.word("f32_speed", lang): (SIZES, [predicted[n] / predicted[0] for n in SIZES]),
            lab.word("counted_speed", lang): (SIZES, [speed[n] / speed[0] for n in SIZES]),
            lab.word("no_draft", lang): ((SIZES[0], SIZES[-1]), (1, 1)),
        }
        return lines(series, lab.word("guesses", lang), lab.word("times_as_fast", lang))

    lab.figure("tokens_by_guesses", tokens)
    lab.figure("speed_by_guesses", times_as_fast, hardware=lab.hardware)

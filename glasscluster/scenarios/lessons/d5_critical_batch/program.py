"""D5: what doubling the batch gains, and how the gradients of the ranks predict it."""

from __future__ import annotations

from math import log, sqrt
from typing import Any

import torch

from glasscluster.model.text.data import batch, corpus
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.ranks.one_thread import one_thread
from glasscluster.strategies.exchange.replica import Replica
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge import noise_scale as ns
from glasscluster.strategies.judge.check import difference
from glasscluster.strategies.judge.single_device import train_one_device
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.plots import lines

BATCHES = (2, 4, 8, 16, 32, 64)
EVERY = 4  # steps between two evaluations of the held-out loss


def descend(gpu: Any, job: Any, lr: float, target: float) -> dict[str, Any]:
    """Run data-parallel SGD until the held-out loss is reached; return the steps, the two squared norms of
    each, and the weights.
    """

    comm, replica, model = gpu.make_mesh({"dp": gpu.size})["dp"], Replica(gpu, job), job.model
    held = batch(corpus(job.data), 10**6, 64, model.seq, model.vocab, 10**6)
    norms: list[tuple[float, float]] = []
    for step in range(job.steps):
        with gpu.unrecorded(), torch.no_grad():
            if step % EVERY == 0 and float(replica.stage(*held)) / held[1].numel() < target:
                break
        gpu.start_step()
        replica.gradient(step, comm.rank, comm.size, whole=False)
        own, all_of_it = ns.average(comm, replica.grad)
        with gpu.region("optimizer"), torch.no_grad():
            replica.flat.sub_(replica.grad, alpha=lr)
        with gpu.unrecorded():
            norms.append((float(own), float(all_of_it)))
    return {"steps": len(norms), "norms": norms, "weights": replica.flat.detach()}


def quadratic(
    gpu: Any, dims: int, own: int, steps: int, deviation: float, seed: int
) -> list[tuple[float, float]]:
    """Average the ranks' random gradients of a quadratic at one point; returns the two squared norms of each
    step.

    Each gradient is G = (1, ..., 1) plus independent noise, so trΣ and |G|² are known.
    """

    draw, norms = torch.Generator().manual_seed(1000 * seed + gpu.rank), []
    for _ in range(steps):
        gradient = 1 + deviation * torch.randn(own, dims, generator=draw, dtype=torch.float64).mean(0)
        small, large = ns.average(gpu.comm, gradient)
        norms.append((float(small), float(large)))
    return norms


# the quadratic's true values are |G|² = dims and Σ = deviation² · 1
QUADRATIC: dict[str, Any] = {"dims": 200, "own": 8, "steps": 400, "deviation": 9.5}
RANKS = 4  # of the quadratic
# From one batch to the next, "the steps halve" and "the steps stay" differ by a factor 2. A curve whose ratio
# of two neighbours is off by less than √2 cannot take one for the other. The errors at both ends are
# independent, so they add as squares: each may be ln √2 / √2.
NEAR = log(2) / (2 * sqrt(2))


@lesson
def critical_batch(lab: Lab, gpus: int = 2, target: float = 2.75, most_steps: int = 600) -> None:
    """A small GPT trains by data-parallel SGD to one loss at six batch sizes; its ranks' own gradients tell
    the noise scale.
    """
    exact = job_of(gpus, 16, 3, lab.seed, "fp64")
    title = lab.text("one_step")
    run = lab.run("step", title, descend, exact, exact.plan.lr, 0.0, gpus=gpus, **job_info(exact))
    steps, scales = sweep(lab, gpus, target, most_steps)
    norms = lab.cluster(RANKS).run(quadratic, *QUADRATIC.values(), lab.seed, record=False).results[0]
    known = scale_of(norms, QUADRATIC["own"], RANKS)
    if not lab.leader:
        return
    worst, source = difference_from_one_device(exact, run.results), "one device, same batches"
    lab.row("weights_and_one_device", 0.0, worst, source, unit="relative", tolerance=1e-10)
    check_quadratic(lab, known)
    fewest, examples = ns.fit(list(BATCHES), list(steps))
    fitted = [ns.predict(b, fewest, examples) for b in BATCHES]
    off = max(abs(curve / s - 1) for curve, s in zip(fitted, steps, strict=True))
    source = "Eq 35: fitted to six runs, ± ln 2 / (2√2)"
    chance: dict[str, Any] = {"match": "statistical", "tolerance": NEAR}
    lab.row("distance_from_hyperbola", 0.0, off, source, unit="relative", **chance)

    critical = examples / fewest
    gains: dict[str, Any] = {"gain_small": steps[0] / steps[1], "gain_large": steps[-2] / steps[-1]}
    check_gains(lab, steps, fitted)
    known_steps = {"smallest_steps": steps[0], "medium_steps": steps[2], "last_steps": steps[-2]}
    sizes = {"medium": BATCHES[2], "last_but_one": BATCHES[-2], "largest": BATCHES[-1]}
    lab.ask("last_doubling", gains["gain_large"], **known_steps, **sizes)
    lab.figure("steps_and_examples", lambda lang: steps_and_examples(lab, steps, fewest, examples, lang))
    lab.figure("steps_against_batch_size", lambda lang: against_batch(lab, steps, fitted, lang))
    small: dict[str, Any] = {
        "smallest": BATCHES[0],
        "steps_smallest": steps[0],
        "second": BATCHES[1],
        "steps_second": steps[1],
    }
    lab.tell("small_batches", view="tab=story", target=target, **small, gain_small=gains["gain_small"])
    large: dict[str, Any] = {
        "last_but_one": BATCHES[-2],
        "largest": BATCHES[-1],
        "steps_last_but_one": steps[-2],
        "steps_largest": steps[-1],
        "examples_largest": BATCHES[-1] * steps[-1],
        "examples_last_but_one": BATCHES[-2] * steps[-2],
    }
    lab.tell("large_batches", view="tab=story", **large, gain_large=gains["gain_large"])
    lab.tell("fit", view="tab=ledger", fewest=fewest, examples=examples, critical=critical)
    lab.tell("noise_scale", view="tab=network&run=step", lowest=min(scales), highest=max(scales))
    lab.tell("quadratic", view="tab=ledger", variance=QUADRATIC["deviation"] ** 2, scale=known.simple)
    lab.conclude(smallest=BATCHES[0], last_but_one=BATCHES[-2], **gains)
    lab.explain()
    lab.own_number(critical=critical, highest=max(scales), **gains)


def job_of(gpus: int, sequences: int, steps: int, seed: int, precision: str = "fp32") -> Job:
    """A job of SGD with batches of `sequences` sequences."""
    model = make_model("tiny", layers=1, hidden=32, heads=2, seq=16, vocab=64)
    sizes: dict[str, Any] = {"dp": gpus, "global_batch": sequences, "micro_batch": sequences // gpus}
    plan = make_plan(**sizes, clip=0.0, optimizer="sgd", lr=0.2, precision=precision)
    return Job(plan, model, steps, seed=seed)


def scale_of(norms: list[tuple[float, float]], own: int, ranks: int) -> ns.NoiseScale:
    """Estimate the noise scale from the two squared norms of each step."""
    made = ns.NoiseScale(own, own * ranks)
    for pair in norms:
        made.add(*pair)
    return made


def sweep(lab: Lab, gpus: int, target: float, most_steps: int) -> tuple[list[float], list[float]]:
    """Train at every batch size; return the steps to the target, and the noise scale that each run's
    gradients give.
    """
    cluster = lab.cluster(gpus)
    probe = cluster.run(descend, job_of(gpus, 16, 60, lab.seed), 0.2, 0.0, record=False).results[0]
    guess = scale_of(probe["norms"], 16 // gpus, gpus).simple
    steps, scales = [], []
    for b in BATCHES:
        lab.say(f"batch of {b} sequences")
        job, rate = job_of(gpus, b, most_steps, lab.seed), ns.rate(0.4, guess, b)
        result = cluster.run(descend, job, rate, target, record=False).results[0]
        steps.append(result["steps"])
        scales.append(scale_of(result["norms"], b // gpus, gpus).simple)
    return steps, scales


def difference_from_one_device(job: Job, results: list[dict[str, Any]]) -> float:
    """The largest relative difference of any rank's weights from those of one device on the same batches."""
    batches = [job.batch(step) for step in range(job.steps)]
    with one_thread():
        alone = train_one_device(job.model, batches, job.optimizer, 0.0, job.seed)
    expected = torch.cat([tensor.reshape(-1) for tensor in alone.weights[-1].values()])
    return max(difference(result["weights"], expected, 1.0) for result in results)


def check_gains(lab: Lab, steps: list[float], fitted: list[float]) -> None:
    """Check what the first and the last doubling gained against the fitted curve: each of two runs may lie
    NEAR of it.
    """
    for i in (0, len(steps) - 2):
        curve = fitted[i] / fitted[i + 1]
        chance: dict[str, Any] = {"match": "statistical", "tolerance": 2 * NEAR * curve}
        source = "Eq 35: S_min + E_min/B at both"
        sizes: dict[str, Any] = {"b": BATCHES[i], "twice": BATCHES[i + 1]}
        lab.row("gain", curve, steps[i] / steps[i + 1], source, unit="×", **chance, **sizes)


def check_quadratic(lab: Lab, noise_scale: ns.NoiseScale) -> None:
    """Check the estimator on a quadratic of known noise scale, to four of its own standard deviations.

    |G_b|², averaged over the ranks, is |G_B|² + s, where s, the spread of the ranks' gradients, does not
    depend on |G_B|². With v = σ²/B, s is v times a χ² of (N−1)·d degrees of freedom and |G_B|² a sum of d
    squares (1 + noise)²: variances 2v²(N−1)d and (2v² + 4v)d. trΣ = s/(1/b − 1/B) and |G|² = |G_B|² −
    s/(N−1), both averaged over the steps.
    """
    d, steps, variance = QUADRATIC["dims"], QUADRATIC["steps"], QUADRATIC["deviation"] ** 2
    v, others = variance / (QUADRATIC["own"] * RANKS), RANKS - 1
    spread = (2 * v**2 * others * d / steps) ** 0.5
    together = ((2 * v**2 + 4 * v) * d / steps) ** 0.5
    of_noise = spread / (v * others * d)  # relative, as are the next two
    of_signal = (together**2 + (spread / others) ** 2) ** 0.5 / d
    of_ratio = ((together / d) ** 2 + (of_noise + spread / others / d) ** 2) ** 0.5
    rows = (
        ("trΣ", d * variance, noise_scale.noise, of_noise),
        ("|G|²", d, noise_scale.signal, of_signal),
        ("B_simple", variance, noise_scale.simple, of_ratio),
    )
    source = "Eq 35: two-batch estimator, four standard deviations"
    for name, true, estimate, deviation in rows:
        chance: dict[str, Any] = {"unit": "", "match": "statistical", "tolerance": 4 * deviation * true}
        lab.row("known_quadratic", true, estimate, source, **chance, name=name)


def steps_and_examples(lab: Lab, steps: list[float], fewest: float, examples: float, lang: str) -> Any:
    """Draw the six runs and the hyperbola through them."""
    along = [fewest * (1 + 0.04 * 1.35**i) for i in range(18)]
    curve = [s for s in along if min(steps) * 0.85 < s < max(steps) * 1.1]
    series: dict[str, Any] = {
        lab.word("runs", lang): (steps, [b * s for b, s in zip(BATCHES, steps, strict=True)]),
        lab.word("hyperbola", lang): (curve, [examples / (1 - fewest / s) for s in curve]),
    }
    ticks = [200, 500, 1000, 2000, 5000, 10000, 20000]
    figure = lines(series, lab.word("steps", lang), lab.word("sequences", lang), log_y=True)
    return figure.update_yaxes(tickvals=ticks, ticktext=[f"{t:,}" for t in ticks])


def against_batch(lab: Lab, steps: list[float], fitted: list[float], lang: str) -> Any:
    """Draw steps by batch size: as run, as fitted, and as they would be if doubling always halved them."""
    series: dict[str, Any] = {
        lab.word("runs", lang): (BATCHES, steps),
        lab.word("hyperbola", lang): (BATCHES, fitted),
        lab.word("always_halved", lang): (BATCHES, [steps[0] * BATCHES[0] / b for b in BATCHES]),
    }
    return lines(series, lab.word("batch_sequences", lang), lab.word("steps", lang), log_x=True)

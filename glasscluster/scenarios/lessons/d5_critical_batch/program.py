"""D5: what doubling the batch buys, and how to tell beforehand from the gradients of the ranks."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.model.text.data import batch, corpus
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.strategies.exchange.replica import Replica, one_thread
from glasscluster.strategies.judge import noise_scale
from glasscluster.strategies.judge import noise_scale as ns
from glasscluster.strategies.judge.check import difference
from glasscluster.strategies.judge.single_device import train_one_device
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import Job, job_info
from glasscluster.visualize.figures.plots import lines

BATCHES = (2, 4, 8, 16, 32, 64)
EVERY = 4  # steps between two looks at the held-out loss


def descend(gpu: Any, job: Any, lr: float, target: float) -> dict[str, Any]:
    """Data-parallel SGD until the held-out loss is reached: steps, the two squared norms of each, the weights."""

    comm, replica, model = gpu.make_mesh({"dp": gpu.size})["dp"], Replica(gpu, job), job.model
    held = batch(corpus(job.data), 10**6, 64, model.seq, model.vocab, 10**6)
    norms: list[tuple[float, float]] = []
    for step in range(job.steps):
        with gpu.unrecorded(), torch.no_grad():
            if step % EVERY == 0 and float(replica.stage(*held)) / held[1].numel() < target:
                break
        gpu.start_step()
        replica.gradient(step, comm.rank, comm.size, whole=False)
        own, all_of_it = noise_scale.average(comm, replica.grad)
        with gpu.region("optimizer"), torch.no_grad():
            replica.flat.sub_(replica.grad, alpha=lr)
        with gpu.unrecorded():
            norms.append((float(own), float(all_of_it)))
    return {"steps": len(norms), "norms": norms, "weights": replica.flat.detach()}


def quadratic(
    gpu: Any, dims: int, own: int, steps: int, deviation: float, seed: int
) -> list[tuple[float, float]]:
    """Gradients of a quadratic at one point: G = (1, ..., 1) and independent noise, so trΣ and |G|² are known."""

    draw, norms = torch.Generator().manual_seed(1000 * seed + gpu.rank), []
    for _ in range(steps):
        gradient = 1 + deviation * torch.randn(own, dims, generator=draw, dtype=torch.float64).mean(0)
        small, large = noise_scale.average(gpu.comm, gradient)
        norms.append((float(small), float(large)))
    return norms


@lesson
def critical_batch(lab: Lab, gpus: int = 2, target: float = 2.75, most_steps: int = 600) -> None:
    """A small GPT trains by data-parallel SGD to one loss at six batch sizes; its ranks' own gradients tell the noise scale."""

    model = make_model("tiny", layers=1, hidden=32, heads=2, seq=16, vocab=64)

    def job_of(sequences: int, steps: int, precision: str = "fp32") -> Job:
        plan = make_plan(
            dp=gpus,
            global_batch=sequences,
            micro_batch=sequences // gpus,
            clip=0.0,
            optimizer="sgd",
            lr=0.2,
            precision=precision,
        )
        return Job(plan, model, steps, seed=lab.seed)

    def scale_of(norms: list[tuple[float, float]], own: int, ranks: int) -> ns.NoiseScale:
        made = ns.NoiseScale(own, own * ranks)
        for pair in norms:
            made.add(*pair)
        return made

    exact = job_of(16, 3, "fp64")
    run = lab.run(
        "step",
        lab.text("step_norm_rank_own"),
        descend,
        exact,
        exact.plan.lr,
        0.0,
        gpus=gpus,
        **job_info(exact),
    )
    probe = lab.cluster(gpus).run(descend, job_of(16, 60), 0.2, 0.0, record=False).results[0]
    guess = scale_of(probe["norms"], 16 // gpus, gpus).simple
    found, scales = [], []
    for b in BATCHES:
        lab.say(f"batch of {b} sequences")
        went = (
            lab.cluster(gpus)
            .run(descend, job_of(b, most_steps), ns.rate(0.4, guess, b), target, record=False)
            .results[0]
        )
        found.append(went["steps"])
        scales.append(scale_of(went["norms"], b // gpus, gpus).simple)
    dims, deviation, each, ranks = 200, 9.5, 8, 4
    known = scale_of(
        lab.cluster(ranks).run(quadratic, dims, each, 400, deviation, lab.seed, record=False).results[0],
        each,
        ranks,
    )
    if not lab.leader:
        return
    with one_thread():
        alone = train_one_device(
            model, [exact.batch(s) for s in range(exact.steps)], exact.optimizer, 0.0, exact.seed
        )
    whole = torch.cat([t.reshape(-1) for t in alone.weights[-1].values()])
    lab.row(
        "largest_weight_difference_device",
        0.0,
        max(difference(r["weights"], whole, 1.0) for r in run.results),
        "one device, same batches",
        unit="relative",
        tolerance=1e-10,
    )
    for name, true, got in (
        ("trΣ", dims * deviation**2, known.noise),
        ("|G|²", dims, known.signal),
        ("B_simple", deviation**2, known.simple),
    ):
        lab.row(
            "quadratic_per_rank_gradients_alone",
            true,
            got,
            "F35: two-batch estimator, ± 15 %",
            unit="",
            match="statistical",
            tolerance=0.15 * true,
            name=name,
        )
    fewest, examples = ns.fit(list(BATCHES), found)
    off = max(abs(ns.predict(b, fewest, examples) / s - 1) for b, s in zip(BATCHES, found, strict=True))
    lab.row(
        "largest_distance_run_hyperbola",
        0.0,
        off,
        "F35: fitted to six runs, ± 25 %",
        unit="relative",
        match="statistical",
        tolerance=0.25,
    )
    critical = examples / fewest
    lab.ask("number", found[-2] / found[-1], "×")
    curve = [
        s
        for s in (fewest * (1 + 0.04 * 1.35**i) for i in range(18))
        if min(found) * 0.85 < s < max(found) * 1.1
    ]

    def hyperbola(lang: str) -> Any:
        drawn = {
            lab.word("runs", lang): (found, [b * s for b, s in zip(BATCHES, found, strict=True)]),
            lab.word("hyperbola_fitted_them", lang): (curve, [examples / (1 - fewest / s) for s in curve]),
        }
        ticks = [200, 500, 1000, 2000, 5000, 10000, 20000]
        return lines(drawn, lab.word("steps", lang), lab.word("sequences", lang), log_y=True).update_yaxes(
            tickvals=ticks, ticktext=[f"{t:,}" for t in ticks]
        )

    def against_batch(lang: str) -> Any:
        drawn = {
            lab.word("runs", lang): (BATCHES, found),
            lab.word("hyperbola_fitted_them", lang): (
                BATCHES,
                [ns.predict(b, fewest, examples) for b in BATCHES],
            ),
            lab.word("if_doubling_always_halved", lang): (
                BATCHES,
                [found[0] * BATCHES[0] / b for b in BATCHES],
            ),
        }
        return lines(drawn, lab.word("batch_sequences", lang), lab.word("steps", lang), log_x=True)

    lab.figure("steps_examples_same_loss", hyperbola)
    lab.figure("steps_against_batch_size", against_batch)
    lab.tell(
        "held_out_loss_batch",
        view="tab=story",
        target=target,
        smallest=BATCHES[0],
        steps_smallest=found[0],
        second=BATCHES[1],
        steps_second=found[1],
        gain_small=found[0] / found[1],
    )
    lab.tell(
        "steps_times_fewer_sequences",
        view="tab=story",
        last_but_one=BATCHES[-2],
        largest=BATCHES[-1],
        steps_last_but_one=found[-2],
        steps_largest=found[-1],
        gain_large=found[-2] / found[-1],
        examples_largest=BATCHES[-1] * found[-1],
        examples_last_but_one=BATCHES[-2] * found[-2],
    )
    lab.tell("fit_gives_min_steps", view="tab=ledger", fewest=fewest, examples=examples, critical=critical)
    lab.tell(
        "noise_scale_measured_these", view="tab=network&run=step", lowest=min(scales), highest=max(scales)
    )
    lab.tell("quadratic_whose_noise_scale", view="tab=ledger", variance=deviation**2, scale=known.simple)
    lab.conclude(
        gain_small=found[0] / found[1],
        smallest=BATCHES[0],
        gain_large=found[-2] / found[-1],
        last_but_one=BATCHES[-2],
    )
    lab.explain()
    lab.own_number(critical=critical, highest=max(scales))

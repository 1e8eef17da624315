"""D5: what doubling the batch buys, and how to tell beforehand from the gradients of the ranks."""

from __future__ import annotations

from typing import Any

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import Card, Formula, lesson

BATCHES = (2, 4, 8, 16, 32, 64)
EVERY = 4  # steps between two looks at the held-out loss


def descend(gpu: Any, job: Any, lr: float, target: float) -> dict[str, Any]:
    """Data-parallel SGD until the held-out loss is reached: steps, the two squared norms of each, the weights."""
    import torch

    from glasscluster.model.text.data import batch, corpus
    from glasscluster.strategies.exchange.replica import Replica
    from glasscluster.strategies.judge import noise_scale

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


def quadratic(gpu: Any, dims: int, own: int, steps: int, deviation: float, seed: int) -> list[tuple[float, float]]:
    """Gradients of a quadratic at one point: G = (1, ..., 1) and independent noise, so trΣ and |G|² are known."""
    import torch

    from glasscluster.strategies.judge import noise_scale

    draw, norms = torch.Generator().manual_seed(1000 * seed + gpu.rank), []
    for _ in range(steps):
        gradient = 1 + deviation * torch.randn(own, dims, generator=draw, dtype=torch.float64).mean(0)
        small, large = noise_scale.average(gpu.comm, gradient)
        norms.append((float(small), float(large)))
    return norms


# fmt: off
@lesson(
    "D5",
    title=("Critical batch size", "临界批大小"),
    topic=("data parallel", "数据并行"),
    question=("Does doubling the GPUs halve the steps?", "GPU 加倍，步数就减半吗？"),
    formula=Formula("F35", "(S/S_min − 1)(E/E_min − 1) = 1, B_crit = E_min/S_min; B_simple = trΣ/|G|² by the two-batch estimator", "T", "McCandlish et al. 1812.06162, section 2 and appendix A.1"),
    kills=("“Linear scaling always holds.” Below the noise scale twice the batch nearly halves the steps; above it the steps stay and the examples double.",
           "“线性扩展总是成立。”批小于噪声尺度时，批加倍，步数几乎减半；超过之后步数不再减少，样本却加倍。"),
    card=Card(
        ("How do you choose the batch size?", "如何选择批大小？"),
        ("Near the critical batch: there both steps and examples are twice their minimum. The gradient noise scale trΣ/|G|² tells its order beforehand, and data parallelism measures it for one scalar more.",
         "在临界批附近：此处步数与样本数都是各自最小值的两倍。梯度噪声尺度 trΣ/|G|² 可以预先给出它的量级，数据并行只要多传一个标量就能测出来。"),
        ("The gradient of B examples is the true one plus noise of variance trΣ/B. While noise dominates, averaging more examples makes each step better in proportion; once |G|² dominates, more examples "
         "average away what is no longer there. Hence S = S_min + E_min/B. A rank's own gradient and the all-reduced one are two batch sizes, two equations, and give both trΣ and |G|². "
         "The noise scale grows as the loss falls, so large batches pay late in training; the learning rate that suits B is ε_max/(1 + B_simple/B): linear in B only far below the noise scale.",
         "B 个样本的梯度等于真梯度加方差 trΣ/B 的噪声。噪声为主时，多平均一些样本，每步就成比例地变好；|G|² 为主时，再多的样本也没有噪声可平均。所以 S = S_min + E_min/B。"
         "一个 rank 自己的梯度与 all-reduce 之后的梯度正是两种批大小、两个方程，由此得出 trΣ 和 |G|²。损失下降时噪声尺度变大，所以大批在训练后期才划算；适合 B 的学习率是 "
         "ε_max/(1 + B_simple/B)：只有远小于噪声尺度时才与 B 成正比。"),
        (("Why does the critical batch grow during training?", "为什么临界批在训练中变大？"), ("When is a batch above the critical one still right?", "什么时候用超过临界值的批仍是对的？")),
    ),
)
def critical_batch(lab: Lab, gpus: int = 2, target: float = 2.75, most_steps: int = 600) -> None:
    """A small GPT trains by data-parallel SGD to one loss at six batch sizes; its ranks' own gradients tell the noise scale."""
    import torch

    from glasscluster.strategies.exchange.replica import one_thread
    from glasscluster.strategies.job import Job, job_info
    from glasscluster.strategies.judge import noise_scale as ns
    from glasscluster.strategies.judge.check import difference
    from glasscluster.strategies.judge.single_device import train_one_device
    from glasscluster.strategies.plan import make_model, make_plan
    from glasscluster.visualize.figures.plots import lines

    model = make_model("tiny", layers=1, hidden=32, heads=2, seq=16, vocab=64)

    def job_of(sequences: int, steps: int, precision: str = "fp32") -> Job:
        plan = make_plan(dp=gpus, global_batch=sequences, micro_batch=sequences // gpus, clip=0.0, optimizer="sgd", lr=0.2, precision=precision)
        return Job(plan, model, steps, seed=lab.seed)

    def scale_of(norms: list[tuple[float, float]], own: int, ranks: int) -> ns.NoiseScale:
        made = ns.NoiseScale(own, own * ranks)
        for pair in norms:
            made.add(*pair)
        return made

    exact = job_of(16, 3, "fp64")
    run = lab.run("step", ("One step, and the norm of a rank's own gradient", "一步，以及单个 rank 梯度的范数"), descend, exact, exact.plan.lr, 0.0, gpus=gpus, **job_info(exact))
    probe = lab.cluster(gpus).run(descend, job_of(16, 60), 0.2, 0.0, record=False).results[0]
    guess = scale_of(probe["norms"], 16 // gpus, gpus).simple
    found, scales = [], []
    for b in BATCHES:
        lab.say(f"batch of {b} sequences")
        went = lab.cluster(gpus).run(descend, job_of(b, most_steps), ns.rate(0.4, guess, b), target, record=False).results[0]
        found.append(went["steps"])
        scales.append(scale_of(went["norms"], b // gpus, gpus).simple)
    dims, deviation, each, ranks = 200, 9.5, 8, 4
    known = scale_of(lab.cluster(ranks).run(quadratic, dims, each, 400, deviation, lab.seed, record=False).results[0], each, ranks)
    if not lab.leader:
        return
    with one_thread():
        alone = train_one_device(model, [exact.batch(s) for s in range(exact.steps)], exact.optimizer, 0.0, exact.seed)
    whole = torch.cat([t.reshape(-1) for t in alone.weights[-1].values()])
    lab.check("largest weight difference from one device", 0.0, max(difference(r["weights"], whole, 1.0) for r in run.results), "one device, same batches", unit="relative", tolerance=1e-10)
    for name, true, got in (("trΣ", dims * deviation**2, known.noise), ("|G|²", dims, known.signal), ("B_simple", deviation**2, known.simple)):
        lab.check(f"{name} of a quadratic, from per-rank gradients alone", true, got, "F35: two-batch estimator, ± 15 %", unit="", match="statistical", tolerance=0.15 * true)
    fewest, examples = ns.fit(list(BATCHES), found)
    off = max(abs(ns.predict(b, fewest, examples) / s - 1) for b, s in zip(BATCHES, found, strict=True))
    lab.check("largest distance of a run from the hyperbola", 0.0, off, "F35: fitted to six runs, ± 25 %", unit="relative", match="statistical", tolerance=0.25)
    critical = examples / fewest
    lab.ask("From 32 to 64 sequences a step: how many times fewer steps to the same loss? (2: half the steps)", "每步从 32 个序列加到 64 个：到同一损失的步数少到几分之一？（填 2 表示减半）", found[-2] / found[-1], "×")
    axes = {"en": ("runs", "hyperbola fitted to them", "if doubling always halved", "steps S", "sequences E = B·S", "batch B (sequences)"),
            "zh": ("各次运行", "拟合的双曲线", "若加倍总能减半", "步数 S", "序列数 E = B·S", "批大小 B（序列）")}
    curve = [s for s in (fewest * (1 + 0.04 * 1.35**i) for i in range(18)) if min(found) * 0.85 < s < max(found) * 1.1]

    def hyperbola(lang: str) -> Any:
        drawn = {axes[lang][0]: (found, [b * s for b, s in zip(BATCHES, found, strict=True)]), axes[lang][1]: (curve, [examples / (1 - fewest / s) for s in curve])}
        ticks = [200, 500, 1000, 2000, 5000, 10000, 20000]
        return lines(drawn, axes[lang][3], axes[lang][4], log_y=True).update_yaxes(tickvals=ticks, ticktext=[f"{t:,}" for t in ticks])

    def against_batch(lang: str) -> Any:
        drawn = {axes[lang][0]: (BATCHES, found), axes[lang][1]: (BATCHES, [ns.predict(b, fewest, examples) for b in BATCHES]),
                 axes[lang][2]: (BATCHES, [found[0] * BATCHES[0] / b for b in BATCHES])}
        return lines(drawn, axes[lang][5], axes[lang][3], log_x=True)

    lab.figure(("Steps and examples to the same loss", "到同一损失所需的步数与样本"), hyperbola)
    lab.figure(("Steps against batch size", "步数与批大小"), against_batch)
    lab.tell(f"To a held-out loss of {target:.2f} a batch of {BATCHES[0]} takes {found[0]} steps, of {BATCHES[1]} {found[1]}: {found[0] / found[1]:.2f} times fewer.",
             f"到留出集损失 {target:.2f}，批 {BATCHES[0]} 需要 {found[0]} 步，批 {BATCHES[1]} 需要 {found[1]} 步：少到 1/{found[0] / found[1]:.2f}。", "tab=story")
    lab.tell(f"From {BATCHES[-2]} to {BATCHES[-1]} it is {found[-2]} and {found[-1]} steps: {found[-2] / found[-1]:.2f} times fewer, for {BATCHES[-1] * found[-1]:,} sequences instead of {BATCHES[-2] * found[-2]:,}.",
             f"批从 {BATCHES[-2]} 到 {BATCHES[-1]}，步数是 {found[-2]} 与 {found[-1]}：只少到 1/{found[-2] / found[-1]:.2f}，却用了 {BATCHES[-1] * found[-1]:,} 个序列，而不是 {BATCHES[-2] * found[-2]:,} 个。", "tab=story")
    lab.tell(f"The fit gives S_min {fewest:.0f} steps and E_min {examples:.0f} sequences: the critical batch is {critical:.1f} sequences.",
             f"拟合得 S_min {fewest:.0f} 步、E_min {examples:.0f} 个序列：临界批为 {critical:.1f} 个序列。", "tab=ledger")
    lab.tell(f"The noise scale, measured in these runs from gradients that were there anyway, lies between {min(scales):.1f} and {max(scales):.1f}; beside the gradients it sends one scalar.",
             f"噪声尺度就在这些运行中由现成的梯度测出，在 {min(scales):.1f} 与 {max(scales):.1f} 之间；除梯度外只多发一个标量。", "tab=network&run=step")
    lab.tell(f"On a quadratic whose noise scale is {deviation**2:.2f} the estimator finds {known.simple:.2f}.", f"对噪声尺度为 {deviation**2:.2f} 的二次函数，估计得 {known.simple:.2f}。", "tab=ledger")
    lab.conclude(f"Doubling the batch divides the steps by {found[0] / found[1]:.2f} at {BATCHES[0]} sequences and by {found[-2] / found[-1]:.2f} at {BATCHES[-2]}.",
                 f"批加倍时，步数在 {BATCHES[0]} 个序列处除以 {found[0] / found[1]:.2f}，在 {BATCHES[-2]} 个处只除以 {found[-2] / found[-1]:.2f}。")
    lab.explain("A step's gradient has noise trΣ/B. While that is the larger part, more examples make the step better; when it has become small there is nothing left to average away.",
                "一步的梯度带有噪声 trΣ/B。噪声占大头时，更多样本让这一步更好；噪声变小之后，就没有什么可以平均掉了。",
                ("S = S_min + E_min/B: two limits, and B_crit between them.", "S = S_min + E_min/B：两个极限，B_crit 在其间。"),
                ("A rank's own gradient and the reduced one are two batch sizes: together they give trΣ and |G|².", "单个 rank 的梯度与归约后的梯度是两种批大小：合起来给出 trΣ 与 |G|²。"))
    lab.own_number(f"Critical batch {critical:.1f} sequences; noise scale up to {max(scales):.1f}.", f"临界批 {critical:.1f} 个序列；噪声尺度至多 {max(scales):.1f}。")

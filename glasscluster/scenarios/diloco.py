"""Loss against bytes: plain data parallelism, local SGD and DiLoCo on one small GPT. `glass run diloco`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasscluster.base.text import Said
from glasscluster.scenarios.async_servers import held_out
from glasscluster.scenarios.lab import Lab, scenario
from glasscluster.strategies.exchange import local_sgd as ls
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge.check import difference
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.visualize.figures.plots import lines


@scenario("diloco")
def diloco(lab: Lab, replicas: int = 4, every: int = 8, steps: int = 64) -> None:
    """Four replicas train on the same examples in three ways: averaging gradients at every step, averaging
    weights every H steps (local SGD), and DiLoCo, whose outer Nesterov step takes the average of what moved
    for a gradient. Each equals its own single-process reference.
    """
    model = make_model("tiny", layers=1, hidden=32, heads=2, seq=16, vocab=64)
    common: dict[str, Any] = {
        "dp": replicas,
        "global_batch": 4 * replicas,
        "micro_batch": 4,
        "precision": "fp64",
        "clip": 0.0,
    }
    adam, sgd = make_plan(**common, lr=3e-3), make_plan(**common, optimizer="sgd", lr=0.15)
    ways = {
        "dp": (("Plain data parallel, SGD", "普通数据并行，SGD"), sgd, ls.Outer(1)),
        "local": ((f"Local SGD, H = {every}", f"local SGD，H = {every}"), sgd, ls.Outer(every)),
        "diloco": ((f"DiLoCo, H = {every}", f"DiLoCo，H = {every}"), adam, replace(ls.DILOCO, every=every)),
    }
    curves: dict[str, Any] = {}
    for key, (title, plan, outer) in ways.items():
        job = Job(plan, model, steps, seed=lab.seed, capture=True)
        run = lab.run(key, title, ls.train_locally, job, outer, gpus=replicas, **job_info(job))
        if not lab.leader:
            continue
        rounds, _ = ls.one_after_the_other(job, outer, replicas)
        worst = max(
            difference(a, b, 1.0) for r in run.results for a, b in zip(r.weights, rounds, strict=True)
        )
        name = Said(
            f"{key}: largest weight difference from replicas one after the other",
            f"{key}：与逐个副本依次训练的最大权重差异",
        )
        exact = {"unit": "relative", "tolerance": 1e-10}
        lab.check(f"{key}_weight_difference", 0.0, worst, "own reference", name=name, **exact)
        theory = ls.predict(model.parameters(), replicas, steps, outer.every, 8)
        sent = sum(run.graph.bytes_sent())
        name = Said(f"{key}: sent by all ranks", f"{key}：所有 rank 的发送量")
        source = f"2(N−1)Ψ every {outer.every} steps"
        lab.check(f"{key}_sent", theory["parameters_bytes_total"], sent, source, name=name)
        each = [sent * (i + 1) / len(rounds) / 1e6 for i in range(len(rounds))]
        curves[key] = {
            "mb": each,
            "loss": held_out(model, run.results[0].weights),
            "step": [min((i + 1) * outer.every, steps) for i in range(len(rounds))],
            "ms": run.timeline.makespan * 1e3,
        }
    if not lab.leader:
        return
    _draw(lab, {key: title for key, (title, _, _) in ways.items()}, curves)
    _tell(lab, every, steps, curves)


def _draw(lab: Lab, titles: dict[str, tuple[str, str]], curves: dict[str, Any]) -> None:
    """Draw the held-out loss of the three runs against bytes and against steps."""
    axes = {
        "en": ("MB sent by all ranks", "steps", "loss, held out"),
        "zh": ("所有 rank 发送的 MB", "步数", "留出集损失"),
    }

    def drawn(x: str, lang: str, **log: bool) -> Any:
        # a mark every fourth step is enough
        thin = {k: slice(0, None, 4 if len(f["loss"]) > 40 else 1) for k, f in curves.items()}
        series = {titles[k][lang == "zh"]: (f[x][thin[k]], f["loss"][thin[k]]) for k, f in curves.items()}
        return lines(series, axes[lang][x == "step"], axes[lang][2], **log).update_yaxes(rangemode="normal")

    def against_bytes(lang: str) -> Any:
        return drawn("mb", lang, log_x=True).update_xaxes(
            tickvals=[0.5, 1, 2, 5, 10, 20, 50], ticktext=["0.5", "1", "2", "5", "10", "20", "50"]
        )

    def against_steps(lang: str) -> Any:
        return drawn("step", lang)

    lab.figure(("Loss against bytes sent", "损失与发送的字节"), against_bytes)
    lab.figure(("Loss against steps", "损失与步数"), against_steps)


def _tell(lab: Lab, every: int, steps: int, curves: dict[str, Any]) -> None:
    """Tell the story: each sentence links to the view that shows it."""
    dp, local, outer_way = curves["dp"], curves["local"], curves["diloco"]
    lab.tell(
        (
            f"Averaging gradients at every step sends {dp['mb'][-1]:.2f} MB in {steps} steps; meeting "
            f"every {every} steps sends {local['mb'][-1]:.2f} MB.",
            f"每步平均梯度，{steps} 步共发送 {dp['mb'][-1]:.2f} MB；每 {every} 步碰头一次只发送 {local['mb'][-1]:.2f} MB。",
        ),
        view="tab=network&run=dp",
    )
    lab.tell(
        (
            f"The held-out loss ends at {dp['loss'][-1]:.3f} with data parallelism and at "
            f"{local['loss'][-1]:.3f} with local SGD, on the same examples and rate.",
            f"样本与学习率相同，留出集损失最后为：数据并行 {dp['loss'][-1]:.3f}，local SGD {local['loss'][-1]:.3f}。",
        )
    )
    lab.tell(
        (
            f"DiLoCo (inner AdamW, outer Nesterov) ends at {outer_way['loss'][-1]:.3f} with the bytes "
            f"of local SGD.",
            f"DiLoCo（内层 AdamW，外层 Nesterov）最后为 {outer_way['loss'][-1]:.3f}，字节与 local SGD 相同。",
        ),
        view="tab=timeline&run=diloco",
    )
    lab.tell(
        (
            f"On {lab.hardware} the {steps} steps take {dp['ms']:.2f} ms with data parallelism, "
            f"{local['ms']:.2f} ms with local SGD.",
            f"在 {lab.hardware} 上 {steps} 步需要：数据并行 {dp['ms']:.2f} ms，local SGD {local['ms']:.2f} ms。",
        ),
        view="tab=timeline&run=local",
    )
    lab.conclude(
        (
            f"1/{every} of the bytes, and a held-out loss of {local['loss'][-1]:.3f} (local SGD) "
            f"or {outer_way['loss'][-1]:.3f} (DiLoCo) instead of {dp['loss'][-1]:.3f}.",
            f"字节只有 1/{every}，留出集损失为 {local['loss'][-1]:.3f}（local SGD）或 "
            f"{outer_way['loss'][-1]:.3f}（DiLoCo），数据并行为 {dp['loss'][-1]:.3f}。",
        )
    )

"""B7: where the 6 of 6ΨD comes from; MFU and HFU."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.model.gpt import GPTStage
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import PHASES
from glasscluster.strategies.memory.recompute import predict_flops
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.plots import bars, lines

KINDS = ("none", "selective", "full")  # of recomputation
RAN = ("forward", "backward", "recompute")


@lesson
def flops_and_mfu(lab: Lab, layers: int = 4, hidden: int = 64, seq: int = 64, batch: int = 4) -> None:
    """A GPT with textbook attention trains with three kinds of recomputation; every FLOP of every operation
    is counted by phase.
    """
    model = make_model("tiny", layers=layers, hidden=hidden, seq=seq, attention="unfused")
    b, s, v, n, h = batch, seq, model.vocab, layers, hidden
    plan: dict[str, Any] = {"model": model, "steps": 1, "global_batch": b, "micro_batch": b}
    runs = {
        kind: lab.train(kind, lab.text("run", k=kind), checked=kind == "full", recompute=kind, **plan)
        for kind in KINDS
    }
    counted = {kind: flops_by_phase(trained.run.graph) for kind, trained in runs.items()}
    plain = counted["none"]
    forward = (
        24 * b * s * n * h * h + 4 * b * s * s * n * h + 2 * b * s * h * v
    )  # a third of Eq 30, multiplied out
    flops: dict[str, Any] = {"unit": "FLOPs"}
    lab.row("forward", forward, plain["forward"], "Eq 30 over 3", **flops)
    lab.row(
        "backward", 2 * forward, plain["backward"], "Eq 30: two products for each of the forward's", **flops
    )
    lab.row("parameters_layer", 12 * h * h + 13 * h, parameters_of_a_layer(model), "Eq 1", unit="")
    psi, source = (
        12 * n * h * h + 13 * n * h + (v + s) * h + 2 * h,
        "Eq 1: layers, embedding, positions, last norm",
    )
    lab.row("parameters_model", psi, model.parameters(), source, unit="")

    needed = {
        kind: 3 * forward + (predict_flops(kind, model, n, 1, b) if kind != "none" else 0) for kind in KINDS
    }
    ran = {kind: sum(phases[phase] for phase in RAN) for kind, phases in counted.items()}
    for kind in KINDS:
        lab.row("flops_ran", needed[kind], ran[kind], "Eq 30 and Eq 29", **flops, kind=kind)
    mfu = {kind: t.timeline.mfu(3.0 * forward) for kind, t in runs.items()}
    hfu = {kind: t.timeline.mfu(float(t.run.graph.flops.sum())) for kind, t in runs.items()}
    check_utilisation(lab, runs, needed, mfu, hfu)
    check_longer(lab, model, b)
    causal = causal_row(lab, runs["none"].as_json(), forward, 4 * b * s * s * n * h, s)

    each = 3 * forward / (b * s) / model.parameters()
    sizes: dict[str, Any] = {"layers": n, "hidden": h, "vocab": v, "seq": s}
    lab.ask("flops_each", each, psi=model.parameters(), **sizes)
    figures(lab, counted, mfu, hfu)
    lab.tell("phases", view="tab=ledger", forward=plain["forward"] / 1e6, backward=plain["backward"] / 1e6)
    lab.tell("six", view="tab=ledger", each=each)
    used: dict[str, Any] = {"mfu_full": 100 * mfu["full"], "mfu_none": 100 * mfu["none"]}
    full: dict[str, Any] = {"times_more": ran["full"] / ran["none"], "hfu_full": 100 * hfu["full"], **used}
    lab.tell("recomputation", view="tab=timeline&run=full", **full)
    lab.tell("attention", view="tab=story")
    lab.tell("definitions", view="tab=timeline", causal=causal)
    lab.conclude(each=each, **used)
    lab.explain()
    lab.card(**full, hfu_over_mfu=hfu["full"] / mfu["full"])
    lab.own_number(each=each)


def check_utilisation(
    lab: Lab, runs: dict[str, Any], needed: dict[str, int], mfu: dict[str, float], hfu: dict[str, float]
) -> None:
    """Check MFU and HFU on the timelines: against each other, against the log, and against time."""
    forward = needed["none"] // 3
    virtual: dict[str, Any] = {"match": "virtual", "tolerance": 1e-9}
    for kind in KINDS:
        more, ran = needed[kind] / needed["none"], hfu[kind] / mfu[kind]
        source = "what ran over what the model needs"
        lab.row("hfu_over_mfu", more, None, source, simulated=ran, unit="×", **virtual, kind=kind)
    line, logged = runs["none"].timeline, runs["none"].as_json()["mfu"]
    by_hand = 3 * forward / (line.makespan * line.hardware.gpu.peak("fp32"))
    lab.row("mfu_of_the_log", by_hand, None, "FLOPs over time and peak", simulated=logged, unit="", **virtual)
    slower, kept = line.makespan / runs["full"].timeline.makespan, mfu["full"] / mfu["none"]
    lab.row("mfu_over_time", slower, None, "time over time", simulated=kept, unit="×", **virtual)


def check_longer(lab: Lab, model: Any, b: int) -> None:
    """Check the forward's FLOPs of sequences that are twice as long: attention's grow with the square."""
    s, v, n, h = model.seq, model.vocab, model.layers, model.hidden
    twice = lab.dry(model=model.model_copy(update={"seq": 2 * s}), global_batch=b, micro_batch=b)
    longer = 48 * b * s * n * h * h + 16 * b * s * s * n * h + 4 * b * s * h * v
    counted, source = flops_by_phase(twice.graph)["forward"], "Eq 30 over 3: attention × 4, the rest × 2"
    lab.row("longer", longer, counted, source, unit="FLOPs", length=2 * s)


def causal_row(lab: Lab, log: dict[str, Any], forward: int, attention: int, s: int) -> float:
    """Causal MFU over MFU, by hand and in the log: without the pairs of a query and a key in its future."""
    causal = (forward - attention + attention * (s + 1) // (2 * s)) / forward
    virtual: dict[str, Any] = {"match": "virtual", "tolerance": 1e-9, "unit": "×"}
    source, in_log = "Eq 30, s(s + 1)/2 pairs in the place of s²", log["mfu_causal"] / log["mfu"]
    lab.row("causal_over_mfu", causal, None, source, simulated=in_log, **virtual)
    return causal


def flops_by_phase(graph: Any) -> dict[str, int]:
    """The FLOPs that ran in each phase."""
    return {phase: int(graph.flops[graph.phase == PHASES.index(phase)].sum()) for phase in RAN}


def parameters_of_a_layer(model: Any) -> int:
    """Elements of one layer's parameters, from the module itself."""
    stage = GPTStage(model, [0], first=False, last=False, device=torch.device("meta"))
    return sum(parameter.numel() for parameter in stage.parameters())


def figures(
    lab: Lab, counted: dict[str, dict[str, int]], mfu: dict[str, float], hfu: dict[str, float]
) -> None:
    """Draw FLOPs by phase, both utilisations, and attention's share against the length."""

    def by_phase(lang: str) -> Any:
        series = {lab.word(phase, lang): [counted[kind][phase] / 1e6 for kind in KINDS] for phase in RAN}
        return bars(list(KINDS), series, lab.word("millions_of_flops", lang), stack=True)

    def utilisation(lang: str) -> Any:
        percent = {name: [100 * of[kind] for kind in KINDS] for name, of in (("mfu", mfu), ("hfu", hfu))}
        series = {lab.word(name, lang): values for name, values in percent.items()}
        return bars(list(KINDS), series, lab.word("peak", lang))

    def attention(lang: str) -> Any:
        lengths = [256, 1024, 4096, 16384, 65536]
        series = {}
        for h in (768, 4096, 12288):
            over_the_rest = [n / (6 * h) for n in lengths]
            series[f"h = {h}"] = (lengths, [100 * x / (1 + x) for x in over_the_rest])
        return lines(series, lab.word("length", lang), lab.word("attention_share", lang), log_x=True)

    lab.figure("by_phase", by_phase)
    lab.figure("mfu_and_hfu", utilisation)
    lab.figure("when_attention_matters", attention)

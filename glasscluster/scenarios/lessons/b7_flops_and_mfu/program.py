"""B7: where the 6 of 6ΨD comes from; MFU and HFU."""

from __future__ import annotations

import torch

from glasscluster.model.gpt import GPTStage
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import PHASES
from glasscluster.strategies.memory.recompute import predict_flops
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.plots import bars, lines


@lesson
def flops_and_mfu(lab: Lab, layers: int = 4, hidden: int = 64, seq: int = 64, batch: int = 4) -> None:
    """A GPT with textbook attention trains with three kinds of recomputation; every FLOP of every operation is counted by phase."""

    model = make_model("tiny", layers=layers, hidden=hidden, seq=seq, attention="unfused")
    b, s, v, ll, h = batch, seq, model.vocab, layers, hidden
    runs = {
        k: lab.train(
            k,
            lab.text("recompute", k=k),
            model=model,
            steps=1,
            checked=k == "full",
            recompute=k,
            global_batch=b,
            micro_batch=b,
        )
        for k in ("none", "selective", "full")
    }

    def counted(kind: str, phase: str) -> int:
        graph = runs[kind].run.graph
        return int(graph.flops[graph.phase == PHASES.index(phase)].sum())

    forward = (
        24 * b * s * ll * h * h + 4 * b * s * s * ll * h + 2 * b * s * h * v
    )  # a third of F30, multiplied out
    lab.row("flops_forward_step", forward, counted("none", "forward"), "F30 over 3", unit="FLOPs")
    lab.row(
        "flops_backward_step",
        2 * forward,
        counted("none", "backward"),
        "F30: two products for each of the forward's",
        unit="FLOPs",
    )
    lab.row(
        "parameters_layer", 12 * h * h + 13 * h, sum(size for name, size, _ in _sizes(model)), "F1", unit=""
    )
    lab.row(
        "parameters_model",
        12 * ll * h * h + 13 * ll * h + (v + s) * h + 2 * h,
        model.parameters(),
        "F1: layers, embedding, positions, last norm",
        unit="",
    )
    again = {k: predict_flops(k, model, ll, 1, b) if k != "none" else 0 for k in runs}
    ran = {k: sum(counted(k, phase) for phase in ("forward", "backward", "recompute")) for k in runs}
    for kind in runs:
        lab.row("flops_ran", 3 * forward + again[kind], ran[kind], "F30 and F29", unit="FLOPs", kind=kind)
    mfu = {k: t.timeline.mfu(3.0 * forward) for k, t in runs.items()}
    hfu = {k: t.timeline.mfu(float(t.run.graph.flops.sum())) for k, t in runs.items()}
    for kind in runs:
        lab.row(
            "hfu_over_mfu",
            (3 * forward + again[kind]) / (3 * forward),
            None,
            "what ran over what the model needs",
            simulated=hfu[kind] / mfu[kind],
            unit="×",
            match="virtual",
            tolerance=1e-9,
            kind=kind,
        )
    seconds, peak = runs["none"].timeline.makespan, runs["none"].timeline.hardware.gpu.peak("fp32")
    lab.row(
        "mfu_log",
        3 * forward / (seconds * peak),
        None,
        "FLOPs over time and peak",
        simulated=runs["none"].as_json()["mfu"],
        unit="",
        match="virtual",
        tolerance=1e-9,
    )
    psi = model.parameters()
    each = 3 * forward / (b * s) / psi
    lab.ask("number", each, "FLOPs", psi=psi)
    lengths = [256, 1024, 4096, 16384, 65536]
    shares = {
        name: [100 * n / (6 * hh) / (1 + n / (6 * hh)) for n in lengths]
        for name, hh in (("h = 768", 768), ("h = 4096", 4096), ("h = 12288", 12288))
    }
    kinds = list(runs)
    lab.figure(
        "ran_phase_backward_twice",
        lambda lang: bars(
            kinds,
            {
                words[lang][i]: [counted(k, p) / 1e6 for k in kinds]
                for i, p in enumerate(("forward", "backward", "recompute"))
            },
            lab.word("flops_step_counted_millions", lang),
            stack=True,
        ),
    )
    lab.figure(
        "mfu_hfu_recomputation_keeps",
        lambda lang: bars(
            kinds,
            {
                lab.word("mfu", lang): [100 * mfu[k] for k in kinds],
                lab.word("hfu", lang): [100 * hfu[k] for k in kinds],
            },
            lab.word("peak", lang),
        ),
    )
    lab.figure(
        "when_attention_matters_against",
        lambda lang: lines(
            {n: (lengths, y) for n, y in shares.items()},
            lab.word("length", lang),
            lab.word("attention_share_layer_flops", lang),
            log_x=True,
        ),
    )
    lab.tell(
        "forward_mflop_backward_exactly",
        view="tab=ledger",
        forward=counted("none", "forward") / 1000000.0,
        backward=counted("none", "backward") / 1000000.0,
    )
    lab.tell("flops_parameter_token_matrices", view="tab=ledger", each=each)
    lab.tell(
        "full_recomputation_runs_times",
        view="tab=timeline&run=full",
        times_more=ran["full"] / ran["none"],
        hfu_full=100 * hfu["full"],
        mfu_full=100 * mfu["full"],
        mfu_none=100 * mfu["none"],
    )
    lab.tell("attention_part_grows_half", view="tab=story")
    lab.conclude(each=each, mfu_none=100 * mfu["none"], mfu_full=100 * mfu["full"])
    lab.explain()
    lab.own_number(each=each)


def _sizes(model: object) -> list[tuple[str, int, int]]:
    """Names and elements of one layer's parameters, from the module itself."""

    stage = GPTStage(model, [0], first=False, last=False, device=torch.device("meta"))  # type: ignore[arg-type]
    return [(name, p.numel(), p.numel()) for name, p in stage.named_parameters()]

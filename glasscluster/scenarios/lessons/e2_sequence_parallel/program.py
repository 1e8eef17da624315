"""E2: what tensor parallelism sends, how sequence parallelism changes it, and where both may be placed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasscluster.scenarios.jobs.kept import kept_bytes
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import PURPOSES, SEND
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.job import Job, job_info
from glasscluster.strategies.judge.activations import account, kept_by_a_layer, predict_layer
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import train_rank
from glasscluster.visualize.figures.breakdown import look
from glasscluster.visualize.figures.kept import by_layout
from glasscluster.visualize.figures.matrices import matrices_figure
from glasscluster.visualize.figures.plots import stack
from glasscluster.visualize.figures.strip import layer_strip

VARIANTS: dict[str, dict[str, Any]] = {
    "tp": {},
    "tp+sp": {"sequence_parallel": True},
    "overlapped": {"sequence_parallel": True, "tp_overlap": True},
}
WORDS = {"tp": "tp", "tp+sp": "tp_sp", "overlapped": "overlapped"}
LAYOUTS: dict[str, dict[str, Any]] = {  # of GPT-3's layer
    "tp": {"cut": False},
    "sp": {"cut": True},
    "cp": {"cut": True, "cp": 2},
    "selective": {"cut": True, "recompute": "selective"},
}
LONG = 8192  # tokens of the step that is timed
WIDE, PLACES = 8, ("one", "two")  # GPT-3's tensor-parallel ranks; in how many nodes


@lesson
def sequence_parallel(lab: Lab, t: int = 4, hidden: int = 64) -> None:
    """The same GPT trains with tensor parallelism, with sequence parallelism and overlapped; then GPT-3's
    layer is counted and placed.
    """
    model = make_model("tiny", hidden=hidden, seq=64, dropout=0.1)
    plan: dict[str, Any] = {"tp": t, "micro_batch": 2, "global_batch": 2}
    runs = {
        key: lab.train(
            key, lab.text(f"title_{WORDS[key]}"), model=model, steps=1, note=lab.text("note"), **plan, **more
        ).run
        for key, more in VARIANTS.items()
    }
    sent, again = check_units(lab, model, runs, plan)
    lab.ask("units", sent["tp+sp"], "units", t=t, reduces=4, inputs=2)
    check_small_layer(lab, model, t)
    layouts = check_gpt3s_layer(lab)
    total = {key: sum(parts.values()) for key, (parts, _) in layouts.items()}
    steps, took = time_of_a_step()
    slower = sum(took["tp", "two"]) / sum(took["tp", "one"])
    check_waits(lab, took)

    lab.figure("one_layer", lambda lang: one_layer(lab, steps, lang))

    def kept_by_layout(lang: str) -> Any:
        return by_layout({lab.word(f"layout_{key}", lang): layout for key, layout in layouts.items()}, lang)

    lab.figure("kept", kept_by_layout)
    lab.figure("time_in_parts", lambda lang: time_in_parts(lab, took, lang))
    lab.figure("matrices", matrices)
    units: dict[str, Any] = {"tp": sent["tp"], "tp_sp": sent["tp+sp"]}
    lab.tell("units", view="tab=network&run=tp%2Bsp", **units, tp_sp_less=sent["tp+sp"] - again, again=again)
    megabytes: dict[str, Any] = {f"{key}_mb": total[key] / 1e6 for key in ("tp", "sp", "cp")}
    lab.tell("memory", **megabytes)
    waits: dict[str, Any] = {
        "wait_tp": took["tp", "one"][1],
        "step_tp": sum(took["tp", "one"]),
        "wait_sp": took["tp+sp", "one"][1],
        "wait_overlapped": took["overlapped", "one"][1],
    }
    lab.tell("waits", **waits)
    hidden_share: dict[str, Any] = {
        f"hidden_{place}": 1 - took["overlapped", place][1] / took["tp+sp", place][1] for place in PLACES
    }
    lab.tell("two_nodes", slower=slower, **hidden_share)
    lab.conclude(**units, share_kept=total["sp"] / total["tp"], slower=slower)
    lab.explain()
    lab.own_number(**units, times_less=total["tp"] / total["sp"], slower=slower)
    lab.card(**megabytes, again=again, wide=WIDE, t=t)


# ---- what is sent: real ranks
def check_units(
    lab: Lab, model: Any, runs: dict[str, Any], plan: dict[str, Any]
) -> tuple[dict[str, float], float]:
    """Check the units of (t−1)/t·bsh elements that every layer sends.

    Returns them by variant, and the units that are gathered a second time.
    """
    unit = (
        (plan["tp"] - 1) * 2 * model.seq * model.hidden * 4 * model.layers
    )  # bytes, over all ranks and layers
    sent = {key: sent_inside(run.graph) / unit for key, run in runs.items()}
    for key, predicted in (("tp", 8), ("tp+sp", 10), ("overlapped", 10)):
        lab.row("units", predicted, sent[key], "Eq 18", unit="units", key=key)
    again = sent_inside(runs["tp+sp"].graph, "f again") / unit
    lab.row("gathered_again", 2, again, "Eq 18", unit="units")
    lab.row("without_those", sent["tp"], sent["tp+sp"] - again, "Eq 18, Eq 10", unit="units")
    separate = lab.dry(model=model.model_copy(update={"qkv": "separate"}), **plan, sequence_parallel=True)
    lab.row("apart", 9, sent_inside(separate.graph) / unit, "Eq 18", unit="units")
    return sent, again


def sent_inside(graph: Any, *labels: str) -> float:
    """The bytes of activations that tensor ranks send inside the layers, of all labels or of some."""
    inside = (graph.kind == SEND) & (graph.axis == "tp") & (graph.layer >= 0)
    inside &= graph.purpose == PURPOSES.index("activations")
    if labels:
        inside &= [graph.names[x] in labels for x in graph.label]
    return float(graph.bytes[inside].sum())


# ---- what is kept: the small layer on real ranks, GPT-3's on its shapes
def check_small_layer(lab: Lab, model: Any, t: int) -> None:
    """Check every tensor that each rank keeps, whole or sharded along the sequence, against the paper's
    list.
    """
    unfused, wrong = model.model_copy(update={"attention": "unfused"}), 0
    for cut in (False, True):
        theory = predict_layer(unfused, 1, t, 2, "none", cut)
        saved = (
            Cluster("classroom", t, "threads").run(kept_by_a_layer, unfused, 1, "bf16", "none", cut).results
        )
        wrong += sum(not line.ok for rank in saved for line in account(theory, rank))
    lab.row("tensors_not_as_listed", 0, wrong, "Korthikanti section 4", unit="tensors")


def check_gpt3s_layer(lab: Lab) -> dict[str, tuple[dict[str, int], int]]:
    """Check what a rank keeps in each layout: counted by part, against the formula; returns both by
    layout.
    """
    giant = make_model("gpt3-175b", attention="unfused", dropout=0.1)
    layouts = {}
    for key, options in LAYOUTS.items():
        parts, theory = layouts[key] = kept_bytes(giant, 1, "bf16", WIDE, context="ulysses", **options)
        lab.row("kept", theory, sum(parts.values()), "Eq 17", way=lab.text(f"way_{key}"))
    return layouts


# ---- how long it takes: the same step in one node and in two
def time_of_a_step() -> tuple[dict[str, Any], dict[tuple[str, str], tuple[float, float]]]:
    """Time a step: returns timelines by variant in one node, and (milliseconds computing, waiting) by variant
    and place.
    """
    long, node = make_model("gpt3-175b", layers=2, seq=LONG), hardware("dgx-h100")
    steps, took = {}, {}
    for key, more in VARIANTS.items():
        plan = make_plan(tp=WIDE, micro_batch=1, global_batch=1, precision="bf16", **more)
        job = Job(plan, long, steps=1)
        recorded = Cluster(node, WIDE, "dry", memory_bytes=None).run(train_rank, job, info=job_info(job))
        steps[key] = recorded.timeline
        two = recorded.replay(replace(node, node_size=WIDE // 2))
        for place, timeline in zip(PLACES, (recorded.timeline, two), strict=True):
            work = float(timeline.useful().max())
            took[key, place] = work * 1e3, (timeline.window[1] - timeline.window[0] - work) * 1e3
    return steps, took


def check_waits(lab: Lab, took: dict[tuple[str, str], tuple[float, float]]) -> None:
    """Check how long TP waits: the all-reduces of two layers, of the embedding and of the head's input, and
    three of the loss, none of which runs under a product. In two nodes the slow link sets the pace of a ring.
    """
    node, model = hardware("dgx-h100"), make_model("gpt3-175b")
    waits = {}
    for place, link in zip(PLACES, (node.intra, node.inter), strict=True):
        sums = [2 * LONG * model.hidden] * (4 * 2 + 2) + [4 * LONG] * 3  # bytes
        waits[place] = sum(ring_seconds(node, link, nbytes) for nbytes in sums) * 1e3
    work, waited = took["tp", "one"]
    virtual: dict[str, Any] = {"simulated": waited, "unit": "ms", "match": "virtual", "tolerance": 1e-9}
    lab.row("waits", waits["one"], None, "Eq 8, Eq 18", **virtual)
    times = sum(took["tp", "two"]) / (work + waited)
    source = "Eq 8: every message as on the slow link"
    roughly: dict[str, Any] = {"unit": "×", "match": "statistical", "tolerance": 0.1}
    lab.row("slower", (work + waits["two"]) / (work + waits["one"]), times, source, **roughly)


def ring_seconds(node: Any, link: Any, nbytes: int) -> float:
    """The seconds of a ring's all-reduce over the wide ranks, with its additions (Eq 8)."""
    each = nbytes / WIDE
    return (WIDE - 1) * (2 * (link.alpha + each / link.bandwidth) + each / node.gpu.reduce_rate)


# ---- see
def one_layer(lab: Lab, steps: dict[str, Any], lang: str) -> Any:
    """Draw which collective stands where in a layer, by variant."""
    h, s = make_model("gpt3-175b").hidden, LONG
    products = {6 * s * h * h // WIDE: "QKV", 2 * s * h * h // WIDE: "out", 8 * s * h * h // WIDE: "MLP"}
    return layer_strip([(lab.word(WORDS[key], lang), line) for key, line in steps.items()], 1, products, lang)


def time_in_parts(lab: Lab, took: dict[tuple[str, str], tuple[float, float]], lang: str) -> Any:
    """Draw computing and waiting time, by place and variant."""
    names = [
        f"{lab.word(WORDS[key], lang)}<br>{lab.word(f'place_{place}', lang)}"
        for place in PLACES
        for key in VARIANTS
    ]
    shown = {}
    for i, part in enumerate(("compute", "exposed")):
        values = [took[key, place][i] for place in PLACES for key in VARIANTS]
        shown[lab.word(part, lang)] = (look("exposed_tp" if part == "exposed" else part), values)
    return stack(names, shown, "", lab.word("milliseconds", lang), totals=True)


def matrices(lang: str) -> Any:
    """Draw a layer's matrices on four ranks, for two kinds of model."""
    models = {
        "MHA, GELU": make_model("tiny", heads=8),
        "GQA (kv = 2), SwiGLU": make_model("tiny", heads=8, kv_heads=2, activation="swiglu", ffn=168),
    }
    return matrices_figure(models, 4, lang, sequence_parallel=True)

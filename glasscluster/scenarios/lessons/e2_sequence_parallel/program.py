"""E2: what tensor parallelism sends, what sequence parallelism makes of it, and where both may stand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glasscluster.scenarios.jobs.kept import kept
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import PURPOSES, SEND
from glasscluster.sim.run import Cluster
from glasscluster.sim.time.hardware import hardware
from glasscluster.strategies.judge.activations import account, kept_by_a_layer, predict_layer
from glasscluster.strategies.plan import make_model, make_plan
from glasscluster.strategies.trainer import Job, job_info, train_rank
from glasscluster.visualize.figures.kept import by_layout
from glasscluster.visualize.figures.matrices import matrices_figure
from glasscluster.visualize.figures.palette import TIME
from glasscluster.visualize.figures.plots import stack
from glasscluster.visualize.figures.strip import layer_strip

VARIANTS: dict[str, dict[str, Any]] = {
    "tp": {},
    "tp+sp": {"sequence_parallel": True},
    "overlapped": {"sequence_parallel": True, "tp_overlap": True},
}


@lesson
def sequence_parallel(lab: Lab, t: int = 4, hidden: int = 64) -> None:
    """The same GPT trains with tensor parallelism, with sequence parallelism and overlapped; then GPT-3's layer is counted and placed."""

    # ---- what is sent: real ranks
    model = make_model("tiny", hidden=hidden, seq=64, dropout=0.1)
    plan: dict[str, Any] = {"tp": t, "micro_batch": 2, "global_batch": 2}
    titles = {
        "tp": lab.text("tensor_parallel"),
        "tp+sp": lab.text("sequence_parallel"),
        "overlapped": lab.text("overlapped"),
    }
    note = lab.text("layers_small_wait_number")
    runs = {
        k: lab.train(k, titles[k], model=model, steps=1, note=note, **plan, **more)
        for k, more in VARIANTS.items()
    }
    one = (t - 1) * 2 * model.seq * hidden * 4  # a unit: (t−1)/t·bsh elements of 4 bytes, over t ranks

    def units(graph: Any, *labels: str) -> float:
        inside = (
            (graph.kind == SEND)
            & (graph.axis == "tp")
            & (graph.layer >= 0)
            & (graph.purpose == PURPOSES.index("activations"))
        )
        if labels:
            inside &= [graph.names[x] in labels for x in graph.label]
        return float(graph.bytes[inside].sum()) / one / model.layers

    sent = {k: units(r.run.graph) for k, r in runs.items()}
    separate = lab.dry(model=model.model_copy(update={"qkv": "separate"}), **plan, sequence_parallel=True)
    for key, predicted in (("tp", 8), ("tp+sp", 10), ("overlapped", 10)):
        lab.row("units_bsh_sent_layer", predicted, sent[key], "F18", unit="units", key=key)
    again = units(runs["tp+sp"].run.graph, "f again")
    lab.row("tp_sp_units_gather_input_again", 2, again, "F18", unit="units")
    lab.row("tp_sp_units_without_those_all", sent["tp"], sent["tp+sp"] - again, "F18, F10", unit="units")
    lab.row("tp_sp_apart_keep_attention_input", 9, units(separate.graph), "F18", unit="units")
    lab.ask("number", sent["tp+sp"], "units", t=t)

    # ---- what is kept: the small layer on real ranks, GPT-3's on its shapes
    unfused = model.model_copy(update={"attention": "unfused"})
    saved = {
        cut: Cluster("classroom", t, "threads").run(kept_by_a_layer, unfused, 1, "bf16", "none", cut).results
        for cut in (False, True)
    }
    small = [
        x
        for cut, ranks in saved.items()
        for rank in ranks
        for x in account(predict_layer(unfused, 1, t, 2, "none", cut), rank)
    ]
    lab.row(
        "tensors_small_layer_list_does_not",
        0,
        sum(not x.ok for x in small),
        "Korthikanti section 4",
        unit="tensors",
    )
    giant, wide = make_model("gpt3-175b", attention="unfused", dropout=0.1), 8
    h = giant.hidden
    asked: dict[str, tuple[str, str, dict[str, Any]]] = {
        "tp": ("TP, t = 8", "TP，t = 8", {"cut": False}),
        "sp": ("+ sequence<br>parallel", "+ 序列并行", {"cut": True}),
        "cp": (
            "+ SP, cp = 2<br>(Ulysses, 16 GPUs)",
            "+ SP，cp = 2<br>（Ulysses，16 卡）",
            {"cut": True, "cp": 2},
        ),
        "selective": (
            "+ SP, selective<br>recomputation",
            "+ SP，选择性<br>重计算",
            {"cut": True, "recompute": "selective"},
        ),
    }
    layouts, names = (
        {},
        {"tp": "TP", "sp": "TP and SP", "cp": "TP, SP and cp = 2", "selective": "TP and SP, selective"},
    )
    for key, (_, _, options) in asked.items():
        parts, theory = layouts[key] = kept(giant, 1, "bf16", wide, context="ulysses", **options)
        lab.row("gpt_layer_kept", theory, sum(parts.values()), "F17", way=names[key])
    total = {k: sum(parts.values()) for k, (parts, _) in layouts.items()}

    # ---- how long it takes: the same step in one node and in two
    long, node = make_model("gpt3-175b", layers=2, seq=8192), hardware("dgx-h100")
    products = {
        6 * 8192 * h * h // wide: "QKV",
        2 * 8192 * h * h // wide: "out",
        8 * 8192 * h * h // wide: "MLP",
    }
    steps, took = {}, {}
    for key, more in VARIANTS.items():
        job = Job(make_plan(tp=wide, micro_batch=1, global_batch=1, precision="bf16", **more), long, steps=1)
        recorded = Cluster(node, wide, "dry", memory_bytes=None).run(train_rank, job, info=job_info(job))
        steps[key] = recorded.timeline
        for place, timeline in (
            ("one", recorded.timeline),
            ("two", recorded.replay(replace(node, node_size=wide // 2))),
        ):
            work = float(timeline.useful().max())
            took[key, place] = work * 1e3, (timeline.window[1] - timeline.window[0] - work) * 1e3
    slower = sum(took["tp", "two"]) / sum(took["tp", "one"])
    hidden_share = {
        place: 1 - took["overlapped", place][1] / took["tp+sp", place][1] for place in ("one", "two")
    }

    # ---- see
    models = {
        "MHA, GELU": make_model("tiny", heads=8),
        "GQA (kv = 2), SwiGLU": make_model("tiny", heads=8, kv_heads=2, activation="swiglu", ffn=168),
    }
    lab.figure(
        "layer_gpt_width_tokens",
        lambda lang: layer_strip(
            list(
                zip(
                    (
                        lab.word("tp", lang),
                        lab.word("tp_sp", lang),
                        lab.word("tp_sp_br_overlapped", lang),
                    ),
                    steps.values(),
                    strict=True,
                )
            ),
            1,
            products,
            lang,
        ),
    )
    lab.figure(
        "layer_gpt_keeps_backward",
        lambda lang: by_layout({str(asked[k][lang == "zh"]): v for k, v in layouts.items()}, lang),
    )
    lab.figure(
        "forward_backward_same_two",
        lambda lang: stack(
            [
                f"{n}<br>{p}"
                for p in (
                    lab.word("node", lang),
                    lab.word("two", lang),
                )
                for n in (
                    lab.word("tp", lang),
                    lab.word("tp_sp", lang),
                    lab.word("tp_sp_br_overlapped", lang),
                )
            ],
            {
                rows[lang][i]: (TIME[k], [took[v, p][i] for p in ("one", "two") for v in VARIANTS])
                for i, k in enumerate(("compute", "exposed"))
            },
            "",
            lab.word("ms_dgx_h100", lang),
            totals=True,
        ),
    )
    lab.figure(
        "layer_matrices_ranks_where", lambda lang: matrices_figure(models, 4, lang, sequence_parallel=True)
    )
    lab.tell(
        "tp_sends_units_layer",
        view="tab=network&run=tp%2Bsp",
        tp=sent["tp"],
        tp_sp=sent["tp+sp"],
        tp_sp_less=sent["tp+sp"] - again,
        again=again,
    )
    lab.tell(
        "buys_memory_layer_gpt",
        tp_mb=total["tp"] / 1000000.0,
        sp_mb=total["sp"] / 1000000.0,
        cp_mb=total["cp"] / 1000000.0,
    )
    lab.tell(
        "node_tp_waits_ms",
        wait_tp=took["tp", "one"][1],
        step_tp=sum(took["tp", "one"]),
        wait_sp=took["tp+sp", "one"][1],
        wait_overlapped=took["overlapped", "one"][1],
    )
    lab.tell(
        "two_nodes_same_tp", slower=slower, hidden_one=hidden_share["one"], hidden_two=hidden_share["two"]
    )
    lab.conclude(tp_sp=sent["tp+sp"], tp=sent["tp"], share_kept=total["sp"] / total["tp"], slower=slower)
    lab.explain()
    lab.own_number(tp=sent["tp"], tp_sp=sent["tp+sp"], times_less=total["tp"] / total["sp"], slower=slower)

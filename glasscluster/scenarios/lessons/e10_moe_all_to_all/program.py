"""E10: experts on 8 ranks: which rows leave, what a hot expert does to load, traffic and time, and what puts it right."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.model.gpt import Block
from glasscluster.model.layers import moe
from glasscluster.model.parallel import Unsharded
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import COLLECTIVE, PURPOSES
from glasscluster.strategies.experts import expert_parallel
from glasscluster.strategies.experts.expert_parallel import ExpertParallel
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.experts import Load, expert_load_figure
from glasscluster.visualize.figures.network import matrices_figure, matrix


def sequence(rank: int, number: int, tokens: int, hidden: int) -> Any:
    """Independent tokens [1, s, h]: nothing about one says where another goes."""

    return torch.randn(
        1, tokens, hidden, generator=torch.Generator().manual_seed(1000 * rank + number), dtype=torch.float64
    )


def block_of(config: Any, ranks: Any = None) -> Any:
    """A block whose experts are all here, or spread over a communicator's ranks; its weights depend on nothing but their names."""

    parallel: Any = Unsharded()
    if ranks is not None:
        parallel.experts = ExpertParallel(ranks)
    return Block(0, config, parallel, 3, torch.empty(0, dtype=torch.float64))


def program(gpu: Any, config: Any, sequences: int) -> dict[str, Any]:
    """One layer's router and experts, forward and backward, a sequence at a time."""

    mesh = gpu.make_mesh({"dp": gpu.size})
    with gpu.unrecorded():
        block = block_of(config, mesh.inside(mesh["dp"], gpu.size, "ep", axis="ep"))
        batch = [sequence(gpu.rank, i, config.seq, config.hidden).requires_grad_() for i in range(sequences)]
    outputs = []
    for i, x in enumerate(batch):
        with gpu.region("forward", layer=0, micro_batch=i):
            outputs.append(moe.experts(block, x))
        with gpu.region("backward", layer=0, micro_batch=i):
            outputs[i].backward(x.detach())
    return {"outputs": [y.detach() for y in outputs], "routing": block.routing}


@lesson
def moe_all_to_all(lab: Lab, sequences: int = 4, steps: int = 10) -> None:
    """A top-2 router and 8 experts on 8 ranks: evenly asked, with a hot expert, with places limited; then a GPT learns to balance."""

    n, k, width, alpha = 8, 2, 8, 0.01
    plain = make_model("tiny", layers=1, experts=n, top_k=k, init_std=0.1, aux_loss=alpha)
    s, h = plain.seq, plain.hidden
    kinds = {
        "even": (plain, lab.text("asked_evenly")),
        "hot": (plain.model_copy(update={"hot_expert": 2.0}), lab.text("hot_expert")),
        "places": (
            plain.model_copy(update={"hot_expert": 2.0, "capacity_factor": 1.25}),
            lab.text("hot_places_limited"),
        ),
    }
    runs, loads, times, dropped, far = {}, {}, {}, {}, [0.0]
    for key, (config, title) in kinds.items():
        run = runs[key] = lab.run(key, title, program, config, sequences, gpus=n)
        routing, alone = [r["routing"] for r in run.results], block_of(config)
        wanted, kept = (
            [[sum(c) for c in zip(*(m[what] for m in mine), strict=True)] for mine in routing]
            for what in ("wanted", "kept")
        )
        loads[key] = [sum(c) for c in zip(*wanted, strict=True)], [sum(c) for c in zip(*kept, strict=True)]
        times[key] = run.timeline.makespan * 1e3
        far += [
            float((moe.experts(alone, sequence(r, i, s, h)).detach() - y).abs().max())
            for r, x in enumerate(run.results)
            for i, y in enumerate(x["outputs"])
        ]
        found, said = matrix(run.graph, "ep", "dispatch").tolist(), expert_parallel.traffic(kept, h, width)
        lab.row(
            "pairs_ranks_whose_dispatch_differs_routing",
            0,
            sum(a != b for x, y in zip(found, said, strict=True) for a, b in zip(x, y, strict=True)),
            "F27, as routed",
            unit="pairs",
            key=key,
        )
        moved = (
            (run.graph.kind == COLLECTIVE)
            & (run.graph.axis == "ep")
            & (run.graph.rank == 0)
            & (run.graph.purpose == PURPOSES.index("activations"))
        )
        lab.row(
            "all_alls_rows_layer_micro_batch",
            4,
            int(moved.sum()) / sequences,
            "F27: dispatch and combine, both ways",
            unit="all-to-alls",
            key=key,
        )
        dropped[key] = sum(loads[key][0]) - sum(loads[key][1])
        lost = sum(moe.predict_dropped(config, m["wanted"], s) for mine in routing for m in mine)
        lab.row(
            "assignments_dropped_sequence_sequence",
            lost,
            dropped[key],
            "F27: what is wanted beyond C",
            unit="rows",
            key=key,
        )
    lab.row(
        "largest_difference_outputs_device",
        0,
        max(far),
        "all experts in one place, float64",
        unit="absolute",
        tolerance=1e-12,
    )
    most, places = (
        max(max(m["kept"]) for r in runs["places"].results for m in r["routing"]),
        moe.capacity(kinds["places"][0], s),
    )
    lab.row("places_most_rows_sequence_expert_took", places, most, "C = ⌈1.25·k·s/E⌉", unit="rows")
    rows, left = (
        n * sequences * s * k,
        sum(runs["even"].graph.bytes_sent(axis="ep", label="dispatch")) // (h * width),
    )
    error = (
        rows * 7 / 8 / 8
    ) ** 0.5  # of a sum of independent choices; a token's own two are never the same, which makes it less
    lab.row(
        "rows_left_their_rank_dispatch_all",
        expert_parallel.leaving(rows // k, k, n),
        left,
        "F27; 3 standard errors √(A·7/8·1/8)",
        unit="rows",
        match="statistical",
        tolerance=3 * error,
    )
    uniform = block_of(plain)
    uniform.router_weight.data.zero_()
    moe.experts(uniform, sequence(0, 0, s, h))
    lab.row(
        "auxiliary_loss_token_uniform_router",
        alpha,
        float(uniform.routing[0]["aux"]) / s,
        "F27: α when uniform",
        unit="loss",
        tolerance=1e-15,
    )

    trained, after = {}, {}
    for key, weight, title in (
        ("left", 0.0, lab.text("hot_gpt_no_auxiliary")),
        ("balanced", 0.3, lab.text("hot_gpt_auxiliary_loss")),
    ):
        model = kinds["hot"][0].model_copy(update={"aux_loss": weight})
        trained[key] = lab.train(
            key,
            title,
            model=model,
            steps=steps,
            checked=weight > 0,
            compared=False,
            dp=n,
            ep=n,
            micro_batch=1,
            global_batch=n,
            lr=5e-3,
        )
        after[key] = [
            sum(c)
            for c in zip(
                *(c for r in trained[key].run.results for c in r.routing_counts("kept")), strict=True
            )
        ]
    over = {
        key: max(x) / (sum(x) / n)
        for key, x in {**{key: x for key, (x, _) in loads.items()}, **after}.items()
    }
    dense, graph = plain.model_copy(update={"experts": 0, "ffn": k * plain.width}), trained["left"].run.graph
    same, tokens = lab.dry(model=dense, dp=n, micro_batch=1, global_batch=n).graph, n * s
    flops = [int(g.flops[g.phase == 1].sum()) for g in (same, graph)]
    lab.row(
        "forward_flops_those_dense_model_width",
        flops[0] + 2 * h * n * tokens,
        flops[1],
        "2 h E a token for a router",
        unit="FLOPs",
    )
    held = sum(
        size for r in trained["left"].run.results for name, size, _ in r.units if name.startswith("expert")
    )
    lab.row(
        "mlp_parameters_over_dense_model",
        n / k,
        held / (2 * h * k * plain.width),
        "every expert is held by a rank",
        unit="×",
    )
    mixtral = make_model(
        "tiny",
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        ffn=14336,
        activation="swiglu",
        experts=8,
        vocab=32000,
        seq=1,
        tied=False,
    )
    billions = [mixtral.parameters() / 1e9, (mixtral.parameters() - 32 * 6 * 3 * 4096 * 14336) / 1e9]
    for name, paper, count in zip(("all", "active"), (47, 13), billions, strict=True):
        lab.row(
            "mixtral_x7b_parameters_count",
            paper,
            count,
            "Mixtral 2401.04088, abstract (rounded there)",
            unit="billion",
            tolerance=0.5,
            name=name,
        )
    share = left / rows
    lab.ask("number", 100 * share, "%")

    lab.figure(
        "dispatch_rank_rank_evenly",
        lambda lang: matrices_figure(
            {
                kinds[key][1][lang == "zh"]: matrix(runs[key].graph, "ep", "dispatch")
                for key in ("even", "hot")
            },
            lang,
        ),
    )
    lab.figure(
        "rows_expert_all_ranks",
        lambda lang: expert_load_figure(
            [
                Load(kinds[key][1][lang == "zh"], *two, places * sequences * n if key == "places" else None)
                for key, two in loads.items()
            ],
            lang,
        ),
    )
    two = {"left": lab.text("without_auxiliary_loss"), "balanced": lab.text("auxiliary_loss")}
    lab.figure(
        lab.text("hot_gpt_after_steps", steps=steps),
        lambda lang: expert_load_figure(
            [Load(two[key][lang == "zh"], x, x) for key, x in after.items()], lang
        ),
    )
    lab.tell(
        "rows_left_their_rank",
        view="tab=network&run=even",
        left=left,
        rows=rows,
        share=share,
        error=3 * error / rows,
    )
    lab.tell(
        "expert_hot_load_times",
        view="tab=timeline&run=hot",
        over_hot=over["hot"],
        over_even=over["even"],
        hot_slower=times["hot"] / times["even"],
    )
    lab.tell(
        "places_sequence_rows_dropped",
        view="tab=timeline&run=places",
        places=places,
        places_dropped=dropped["places"],
        rows=rows,
        places_slower=times["places"] / times["even"],
    )
    lab.tell(
        "trained_steps_hot_gpt",
        view="tab=network&run=balanced",
        steps=steps,
        over_left=over["left"],
        over_balanced=over["balanced"],
    )
    lab.tell(
        "token_pays_flops_experts",
        view="tab=memory&run=left",
        k=k,
        n=n,
        active=billions[1],
        all=billions[0],
        active_zh=10 * billions[1],
        all_zh=10 * billions[0],
    )
    lab.conclude(share=share, hot_slower=times["hot"] / times["even"])
    lab.explain()
    lab.own_number(share=share, over_hot=over["hot"], hot_slower=times["hot"] / times["even"])

"""E10: experts on 8 ranks: which rows leave their rank, what a hot expert does to load, traffic and time, and
how to correct it.
"""

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
    """Independent random tokens [1, s, h]: the routing of one says nothing about another's."""

    draw = torch.Generator().manual_seed(1000 * rank + number)
    return torch.randn(1, tokens, hidden, generator=draw, dtype=torch.float64)


def block_of(config: Any, ranks: Any = None) -> Any:
    """A block whose experts are all on this rank, or spread over a communicator's ranks; the weights are the
    same.
    """
    parallel: Any = Unsharded()
    if ranks is not None:
        parallel.experts = ExpertParallel(ranks)
    return Block(0, config, parallel, 3, torch.empty(0, dtype=torch.float64))


def program(gpu: Any, config: Any, sequences: int) -> dict[str, Any]:
    """Run one layer's router and experts, forward and backward, one sequence at a time."""

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


RANKS, TOP, WIDTH = 8, 2, 8  # ranks, and experts; experts of a token; bytes of an element


@lesson
def moe_all_to_all(lab: Lab, sequences: int = 4, steps: int = 10) -> None:
    """A top-2 router and 8 experts on 8 ranks: evenly asked, with a hot expert, with places limited; then a
    GPT learns to balance.
    """
    alpha = 0.01
    plain = make_model("tiny", layers=1, experts=RANKS, top_k=TOP, init_std=0.1, aux_loss=alpha)
    configs = {
        "even": plain,
        "hot": plain.model_copy(update={"hot_expert": 2.0}),
        "places": plain.model_copy(update={"hot_expert": 2.0, "capacity_factor": 1.25}),
    }
    runs = {
        key: lab.run(key, lab.text(key), program, config, sequences, gpus=RANKS)
        for key, config in configs.items()
    }
    loads = {key: check_routing(lab, key, configs[key], run) for key, run in runs.items()}  # wanted, kept
    difference = max(difference_from_one_device(configs[key], run) for key, run in runs.items())
    source = "all experts in one place, float64"
    lab.row("apart", 0, difference, source, unit="absolute", tolerance=1e-12)
    places = moe.capacity(configs["places"], plain.seq)
    taken = max(max(routed["kept"]) for rank in runs["places"].results for routed in rank["routing"])
    lab.row("most_rows_of_an_expert", places, taken, "C = ⌈1.25·k·s/E⌉", unit="rows")
    rows = RANKS * sequences * plain.seq * TOP
    left, error = check_leaving(lab, "rows_that_left", runs["even"].graph, rows, plain.hidden)
    left_hot, _ = check_leaving(lab, "rows_that_left_hot", runs["hot"].graph, rows, plain.hidden)
    check_auxiliary_loss(lab, plain, alpha)
    trained = train_hot(lab, configs["hot"], steps)
    after = {key: rows_kept(run) for key, run in trained.items()}
    check_dense(lab, plain, trained["left"])
    billions = check_mixtral(lab)

    share = left / rows
    lab.ask("share", 100 * share, "%", TOP=TOP, RANKS=RANKS)

    limits = {"places": places * sequences * RANKS}
    figures(lab, runs, loads, limits, after, steps)
    over: dict[str, Any] = {f"over_{key}": over_the_mean(wanted) for key, (wanted, _) in loads.items()}
    over |= {f"over_{key}": over_the_mean(kept) for key, kept in after.items()}
    slower: dict[str, Any] = {
        f"{key}_slower": runs[key].timeline.makespan / runs["even"].timeline.makespan for key in runs
    }
    expected: dict[str, Any] = {"error": error / rows, "expected": 1 - 1 / RANKS}
    lab.tell("leaving", view="tab=network&run=even", left=left, rows=rows, share=share, **expected)
    lab.tell("hot", view="tab=timeline&run=hot", **over, **slower)
    dropped = sum(loads["places"][0]) - sum(loads["places"][1])
    lab.tell(
        "places", view="tab=timeline&run=places", places=places, places_dropped=dropped, rows=rows, **slower
    )
    lab.tell("balance", view="tab=network&run=balanced", steps=steps, **over)
    in_chinese: dict[str, Any] = {
        f"{name}_zh": 10 * count for name, count in billions.items()
    }  # counted in hundreds of millions
    lab.tell("cost", view="tab=memory&run=left", k=TOP, n=RANKS, **billions, **in_chinese)
    lab.conclude(share=share, hot_slower=slower["hot_slower"])
    lab.explain()
    lab.card(left=left, left_hot=left_hot, places=places)
    lab.own_number(share=share, over_hot=over["over_hot"], hot_slower=slower["hot_slower"])


def figures(lab: Lab, runs: Any, loads: Any, limits: dict[str, int], after: Any, steps: int) -> None:
    """Draw who sends to whom, the rows that experts get (wanted and kept), and the same after training."""

    def dispatch(lang: str) -> Any:
        shown = {lab.word(key, lang): matrix(runs[key].graph, "ep", "dispatch") for key in ("even", "hot")}
        return matrices_figure(shown, lang)

    def rows_by_expert(lang: str) -> Any:
        shown = [
            Load(lab.word(key, lang), wanted, kept, limits.get(key)) for key, (wanted, kept) in loads.items()
        ]
        return expert_load_figure(shown, lang)

    def after_training(lang: str) -> Any:
        shown = [Load(lab.word(f"short_{key}", lang), kept, kept) for key, kept in after.items()]
        return expert_load_figure(shown, lang)

    lab.figure("dispatch", dispatch)
    lab.figure("rows_by_expert", rows_by_expert)
    lab.figure("after_training", after_training, steps=steps)


def sums(columns: Any) -> list[int]:
    """Add several lists, element by element."""
    return [sum(column) for column in zip(*columns, strict=True)]


def over_the_mean(load: list[int]) -> float:
    """The most loaded expert's rows over the mean."""
    return max(load) / (sum(load) / len(load))


def check_routing(lab: Lab, key: str, config: Any, run: Any) -> tuple[list[int], list[int]]:
    """Check dispatch, all-to-alls and dropped rows of one run; returns the rows wanted and kept, by
    expert.
    """
    routing, graph = [rank["routing"] for rank in run.results], run.graph
    wanted = [sums(routed["wanted"] for routed in mine) for mine in routing]
    kept = [sums(routed["kept"] for routed in mine) for mine in routing]
    sent = matrix(graph, "ep", "dispatch").tolist()
    theory = expert_parallel.traffic(kept, config.hidden, WIDTH)
    pairs = [pair for rows in zip(sent, theory, strict=True) for pair in zip(*rows, strict=True)]
    different = sum(counted != routed for counted, routed in pairs)
    lab.row("dispatch_not_as_routed", 0, different, "Eq 27, as routed", unit="pairs", key=key)
    moved = (graph.kind == COLLECTIVE) & (graph.axis == "ep") & (graph.rank == 0)
    moved &= graph.purpose == PURPOSES.index("activations")
    each, source = int(moved.sum()) / len(routing[0]), "Eq 27: dispatch and combine, both ways"
    lab.row("all_to_alls", 4, each, source, unit="all-to-alls", key=key)
    lost = sum(
        moe.predict_dropped(config, routed["wanted"], config.seq) for mine in routing for routed in mine
    )
    dropped = sum(map(sum, wanted)) - sum(map(sum, kept))
    lab.row("dropped", lost, dropped, "Eq 27: what is wanted beyond C", unit="rows", key=key)
    return sums(wanted), sums(kept)


def difference_from_one_device(config: Any, run: Any) -> float:
    """The largest difference of a sequence's output from a block that has all experts."""
    alone, worst = block_of(config), 0.0
    for rank, result in enumerate(run.results):
        for i, output in enumerate(result["outputs"]):
            expected = moe.experts(alone, sequence(rank, i, config.seq, config.hidden)).detach()
            worst = max(worst, float((expected - output).abs().max()))
    return worst


def check_leaving(lab: Lab, key: str, graph: Any, rows: int, hidden: int) -> tuple[int, float]:
    """Check the rows that left their rank; returns them, and three standard errors of their expected
    number.
    """
    left = sum(graph.bytes_sent(axis="ep", label="dispatch")) // (hidden * WIDTH)
    # of a sum of independent choices. The true error is less: a token's two experts differ, and a skewed
    # router leaves less to chance
    error = 3 * (rows * 7 / 8 / 8) ** 0.5
    expected, source = (
        expert_parallel.leaving(rows // TOP, TOP, RANKS),
        "Eq 27; 3 standard errors √(A·7/8·1/8)",
    )
    lab.row(key, expected, left, source, unit="rows", match="statistical", tolerance=error)
    return left, error


def check_auxiliary_loss(lab: Lab, config: Any, alpha: float) -> None:
    """Check that a uniform router pays an auxiliary loss of α a token."""
    uniform = block_of(config)
    uniform.router_weight.data.zero_()
    moe.experts(uniform, sequence(0, 0, config.seq, config.hidden))
    loss = float(uniform.routing[0]["aux"]) / config.seq
    lab.row("auxiliary_loss", alpha, loss, "Eq 27: α when uniform", unit="loss", tolerance=1e-15)


def train_hot(lab: Lab, config: Any, steps: int) -> dict[str, Any]:
    """Train the GPT with a hot expert, without and with the auxiliary loss."""
    plan: dict[str, Any] = {"dp": RANKS, "ep": RANKS, "micro_batch": 1, "global_batch": RANKS, "lr": 5e-3}
    trained = {}
    for key, weight in (("left", 0.0), ("balanced", 0.3)):
        model, title = config.model_copy(update={"aux_loss": weight}), lab.text(f"title_{key}")
        checked = weight > 0
        trained[key] = lab.train(
            key, title, model=model, steps=steps, checked=checked, compared=False, **plan
        )
    return trained


def rows_kept(trained: Any) -> list[int]:
    """The rows that each expert took, over all ranks and layers."""
    return sums(counts for rank in trained.run.results for counts in rank.routing_counts("kept"))


def check_dense(lab: Lab, plain: Any, trained: Any) -> None:
    """Check FLOPs and parameters against a dense model as wide as the experts of one token."""
    dense = plain.model_copy(update={"experts": 0, "ffn": TOP * plain.width})
    same = lab.dry(model=dense, dp=RANKS, micro_batch=1, global_batch=RANKS).graph
    forward = [int(graph.flops[graph.phase == 1].sum()) for graph in (same, trained.run.graph)]
    routers = 2 * plain.hidden * RANKS * RANKS * plain.seq
    lab.row("forward_flops", forward[0] + routers, forward[1], "2 h E a token for a router", unit="FLOPs")
    units = [unit for rank in trained.run.results for unit in rank.units]
    held = sum(size for name, size, _ in units if name.startswith("expert"))
    ratio = held / (2 * plain.hidden * TOP * plain.width)
    lab.row("parameters_over_dense", RANKS / TOP, ratio, "every expert is held by a rank", unit="×")


def check_mixtral(lab: Lab) -> dict[str, float]:
    """Check the billions of parameters of Mixtral 8x7B: all of them, and those that one token uses; returns
    both.
    """
    model = make_model("mixtral-8x7b")
    parameters, expert = model.parameters(), (model.gates + 1) * model.hidden * model.expert_width
    idle = model.layers * (model.experts - model.top_k) * expert  # of experts that a token does not visit
    billions: dict[str, Any] = {"all": parameters / 1e9, "active": (parameters - idle) / 1e9}
    source = "Mixtral 2401.04088, abstract (rounded there)"
    for name, paper in (("all", 47), ("active", 13)):
        lab.row("mixtral", paper, billions[name], source, unit="billion", tolerance=0.5, name=lab.text(name))
    return billions

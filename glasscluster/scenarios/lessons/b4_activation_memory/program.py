"""B4: what a layer keeps for backward, tensor by tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from glasscluster.model.gpt import GPTStage
from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.sim.recording.events import CATEGORIES
from glasscluster.sim.run import Cluster
from glasscluster.strategies.judge.activations import Line, account, kept_by_a_layer, predict, predict_layer
from glasscluster.strategies.plan import make_model
from glasscluster.visualize.figures.kept import waterfall
from glasscluster.visualize.figures.plots import bars

GIB = 1024**3
RANKS = 8  # of GPT-3's tensor parallelism


@lesson
def activation_memory(lab: Lab, hidden: int = 64, heads: int = 4, seq: int = 64) -> None:
    """A real block runs forward while torch says which tensors it saves: a small one on real numbers,
    GPT-3's on shapes alone.
    """
    small = make_model("tiny", hidden=hidden, heads=heads, seq=seq, attention="unfused", dropout=0.1)
    plan: dict[str, Any] = {"precision": "bf16", "micro_batch": 4, "global_batch": 4}
    trained = lab.train("tiny", lab.text("small_gpt"), model=small, steps=1, **plan)
    mine = kept(small, 1, "none", "threads")
    lab.row("kept_by_your_layer", predict(seq, 1, hidden, heads), total(mine), "Eq 17")
    not_as_listed = sum(not line.ok for line in mine)
    lab.row("tensors_not_as_listed", 0, not_as_listed, "Korthikanti section 4", unit="tensors")

    giant = make_model("gpt3-175b", attention="unfused", dropout=0.1)
    runs, theory = ways_to_keep_less(giant)
    for way, lines in runs.items():
        lab.row("gpt_layer", theory[way], total(lines), "Eq 17", way=lab.text(way))
    gib = {way: total(lines) / GIB for way, lines in runs.items()}
    shape = {"h": giant.hidden, "a": giant.heads, "length": giant.seq}
    lab.ask("gib_of_a_layer", gib["none"], "GiB", **shape)
    square = sum(line.counted for line in runs["none"] if grows_with_square(line))
    lab.row("square", 5 * giant.heads * giant.seq**2, square, "Eq 17: 5as²b")
    less, weights = check_ratios(lab, giant, runs, theory)

    def by_tensor(lang: str) -> Any:
        counted = [line for line in runs["none"] if not line.separate]
        parts = [(lab.word(x.name, lang), x.term, x.counted / GIB, grows_with_square(x)) for x in counted]
        growth = (lab.word("grows_with_s", lang), lab.word("grows_with_s_squared", lang))
        return waterfall(parts, lab.word("gib_kept", lang), lab.word("sum", lang), growth)

    def by_one_gpu(lang: str) -> Any:
        series = {
            lab.word("predicted", lang): [nbytes / GIB for nbytes in theory.values()],
            lab.word("counted", lang): list(gib.values()),
        }
        return bars([lab.word(way, lang) for way in runs], series, lab.word("gib_a_layer", lang))

    lab.figure("tensor_by_tensor", by_tensor)
    lab.figure("by_one_gpu", by_one_gpu)

    lab.tell("one_layer", whole=gib["none"], square=square / GIB)
    lab.tell("eight_ranks", cut=gib["tp8"], cut_along_sequence=gib["sp"], selective=gib["selective"])
    of_small = trained.run.results[0].state_bytes["parameters"]
    activations = most_activations(trained.run)
    lab.tell("small_gpt", view="tab=memory", activations=activations / 1e6, seq=seq, weights=of_small / 1e6)
    lab.conclude(whole=gib["none"], layers=giant.layers, all=giant.layers * gib["none"])
    of_square: dict[str, Any] = {"share": square / total(runs["none"]), "length": giant.seq}
    lab.explain(**of_square)
    # Adam's state, weights and gradients: 16 bytes a parameter in place of 2
    outgrow = {"states": 8 * weights / GIB, "outgrow": 8 * weights // total(runs["none"]) + 1}
    lab.card(cut=gib["tp8"], cut_along_sequence=gib["sp"], flash=gib["flash"], ranks=RANKS, cut_less=less)
    lab.card(weights=weights / GIB, **outgrow, **of_square)
    lab.own_number(whole=gib["none"], small=total(mine), hidden=hidden, seq=seq)


def kept(
    model: Any,
    t: int,
    recompute: str,
    backend: str = "dry",
    sequence_parallel: bool = False,
    sequences: int = 1,
) -> list[Line]:
    """The tensors that one layer keeps for some sequences on the first of t tensor ranks, each beside its
    term of the formula.
    """
    cluster = Cluster("classroom", t, backend, memory_bytes=None)
    saved = cluster.run(kept_by_a_layer, model, sequences, "bf16", recompute, sequence_parallel).results[0]
    return account(predict_layer(model, sequences, t, 2, recompute, sequence_parallel), saved)


def weights_of_a_layer(model: Any) -> int:
    """Bytes of one layer's parameters in bf16, from the module itself."""
    stage = GPTStage(model, [0], first=False, last=False, device=torch.device("meta"))
    return 2 * sum(parameter.numel() for parameter in stage.parameters())


def check_ratios(
    lab: Lab, model: Any, runs: dict[str, list[Line]], theory: dict[str, int]
) -> tuple[float, int]:
    """Check that eight ranks keep more than an eighth, that activations grow with the sequences and faster
    with their length, and the weights, which do not grow. Returns how many times less a rank keeps, and
    the bytes of the weights.
    """
    less, weights = total(runs["none"]) / total(runs["tp8"]), weights_of_a_layer(model)
    lab.row("eight_ranks", theory["none"] / theory["tp8"], less, "Eq 17", unit="×", ranks=RANKS)
    h, a, s = model.hidden, model.heads, model.seq
    lab.row("layer_weights", 2 * (12 * h * h + 13 * h), weights, "Eq 1, 2 bytes each")
    two = total(kept(model, 1, "none", sequences=2))
    lab.row("two_sequences", 2 * predict(s, 1, h, a), two, "Eq 17: proportional to b")
    longer = total(kept(model.model_copy(update={"seq": 2 * s}), 1, "none"))
    source = "Eq 17: the s² term by 4, the rest by 2"
    lab.row("longer", 4 * 5 * a * s * s + 2 * 34 * s * h, longer, source, length=2 * s)
    return less, weights


def ways_to_keep_less(model: Any) -> tuple[dict[str, list[Line]], dict[str, int]]:
    """What each way of keeping less keeps: counted tensor by tensor, and in bytes by the formula."""
    flash = model.model_copy(update={"attention": "flash"})
    counted = {
        "none": kept(model, 1, "none"),
        "flash": kept(flash, 1, "none"),
        "tp8": kept(model, RANKS, "none"),
        "sp": kept(model, RANKS, "none", sequence_parallel=True),
        "selective": kept(model, RANKS, "selective", sequence_parallel=True),
        "full": kept(model, RANKS, "full", sequence_parallel=True),
    }
    shape = (model.seq, 1, model.hidden, model.heads)
    theory = {
        "none": predict(*shape),
        "flash": predict(*shape, flash=True),
        "tp8": predict(*shape, RANKS),
        "sp": predict(*shape, RANKS, sequence_parallel=True),
        "selective": predict(*shape, RANKS, sequence_parallel=True, recompute="selective"),
        "full": predict(*shape, RANKS, sequence_parallel=True, recompute="full"),
    }
    return counted, theory


def total(lines: list[Line]) -> int:
    """The counted bytes of the tensors that the formula covers."""
    return sum(line.counted for line in lines if not line.separate)


def grows_with_square(line: Line) -> bool:
    """Whether a tensor is as large as the square of the sequence's length."""
    return "s²" in line.term


def most_activations(run: Any) -> int:
    """The most bytes of activations that rank 0 held at once, from its memory log."""
    log = np.asarray(run.graph.memory[0]["log"])
    changes = log[log[:, 1] == CATEGORIES.index("activations"), 2]
    return int(np.cumsum(changes).max())

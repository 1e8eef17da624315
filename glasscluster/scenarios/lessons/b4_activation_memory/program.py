"""B4: what a layer keeps for backward, tensor by tensor."""

from __future__ import annotations

from typing import Any

import numpy as np

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
    lab.ask("gib_of_a_layer", gib["none"], "GiB")

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

    square = sum(line.counted for line in runs["none"] if grows_with_square(line)) / GIB
    lab.tell("one_layer", whole=gib["none"], square=square)
    lab.tell("eight_ranks", cut=gib["tp8"], cut_along_sequence=gib["sp"], selective=gib["selective"])
    weights = trained.run.results[0].state_bytes["parameters"]
    activations = most_activations(trained.run)
    lab.tell("small_gpt", view="tab=memory", activations=activations / 1e6, seq=seq, weights=weights / 1e6)
    lab.conclude(whole=gib["none"])
    lab.explain()
    lab.own_number(whole=gib["none"], small=total(mine), hidden=hidden, seq=seq)


def kept(
    model: Any, t: int, recompute: str, backend: str = "dry", sequence_parallel: bool = False
) -> list[Line]:
    """The tensors that one layer keeps for one sequence on the first of t tensor ranks, each beside its term
    of the formula.
    """
    cluster = Cluster("classroom", t, backend, memory_bytes=None)
    saved = cluster.run(kept_by_a_layer, model, 1, "bf16", recompute, sequence_parallel).results[0]
    return account(predict_layer(model, 1, t, 2, recompute, sequence_parallel), saved)


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

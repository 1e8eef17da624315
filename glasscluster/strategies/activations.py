"""What a transformer layer keeps for backward: the paper's list, tensor by tensor, and its sums.

Follows Korthikanti et al., "Reducing activation recomputation in large transformer models" (2205.05198), section 4 and F17.
Symbols: s tokens, b sequences, h hidden, a heads, t tensor-parallel ranks, w bytes of an element (the paper: 2), masks 1 byte.

    x ─ norm ─ QKV ─ Q K^T ─ softmax ─ dropout ─ · V ─ out ─ dropout ─ + ─ norm ─ up ─ GELU ─ down ─ dropout ─ +

    with dropout      sbh (16w + 2) + a s² b (2w + 1)          w = 2:  sbh (34 + 5 a s/h)                    eq. 1
    without           16w sbh + w a s² b
    tensor parallel   w = 2:  sbh (10 + 24/t + 5 a s/(h t))                                                eq. 2
    + sequence        w = 2:  sbh/t (34 + 5 a s/h)                                                         eq. 4
    selective         the same without the a s² b term                                                     eq. 6
    full              w sbh: the input

    flash attention   no a s² b term; log-sum-exp instead, 4 a s b bytes
    apart from all    each norm's mean and 1/std, 8 s b bytes in fp32

The counted side is sim/saved.py, which knows none of this. A tensor that was saved and is not in the list gets a line of its own.
But: the paper's layer has ffn = 4h and GELU; embedding, head and the pipeline's buffers are not a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from glasscluster.model.config import ModelConfig
from glasscluster.model.dropout import Draw
from glasscluster.model.gpt import Block
from glasscluster.sim.gpu import GPU
from glasscluster.sim.saved import Saved, saved_for_backward
from glasscluster.strategies.recompute import KINDS
from glasscluster.strategies.sequence_parallel import SequenceParallel
from glasscluster.strategies.tensor_parallel import TensorParallel
from glasscluster.strategies.trainer import DTYPES


def kept_by_a_layer(
    gpu: GPU, model: ModelConfig, sequences: int, precision: str = "bf16", recompute: str = "none", sequence_parallel: bool = False
) -> list[Saved]:
    """The counting program: a real block on this rank's heads, its forward, and what autograd saved. Nothing of the below is used."""
    comm = gpu.make_mesh({"tp": gpu.size})["tp"]
    with gpu.unrecorded():
        keep, dtype = KINDS[recompute](gpu, 1), DTYPES[precision]
        parallel = (SequenceParallel if sequence_parallel else TensorParallel)(comm)
        block = Block(0, model, parallel, 0, torch.empty(0, dtype=dtype, device=gpu.device))
        block.keep = keep
        tokens = model.seq // (gpu.size if sequence_parallel else 1)
        x = torch.zeros(sequences, tokens, model.hidden, dtype=dtype, device=gpu.device).requires_grad_()
        draw = Draw(0, 0, tuple(range(sequences)))
        return saved_for_backward(lambda x: keep.layers([block], x, draw), x, block.parameters())


# ---- theory --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """One kept tensor: what it is, its term of the formula, its bytes, and which operation of the layer makes it."""

    name: str
    term: str
    nbytes: int
    makers: tuple[str, ...]
    apart: bool = False  # not in the paper's sum


def predict_layer(
    model: ModelConfig, b: int, t: int = 1, w: int = 2, recompute: str = "none", sequence_parallel: bool = False
) -> list[Term]:
    """The list for one of t ranks, in the order in which the layer runs. `sequence_parallel` cuts the norms' regions too."""
    s, h, f, a = model.seq, model.hidden, model.width, model.heads
    wide, outside = max(w, 4), t if sequence_parallel else 1
    unfused, drop = model.attention == "unfused", model.dropout > 0
    over_t, over_sp = "/t" if t > 1 else "", "/t" if outside > 1 else ""
    if recompute == "full":
        return [Term("input of the layer", f"w·sbh{over_sp}", w * s * b * h // outside, ("input",))]

    def region(name: str, *makers: str, width: int = w) -> Term:
        return Term(name, f"{'w·' if width == w else ''}sbh{over_sp}", width * s * b * h // outside, makers)

    def cut(name: str, *makers: str, times: int = 1, elements: int = s * b * h, symbols: str = "sbh", width: int = w) -> Term:
        text = f"{times if times > 1 else ''}{'w·' if width == w else ''}{symbols}{over_t}"
        return Term(name, text, times * width * elements // t, makers)

    def norm(number: int, before: str) -> list[Term]:
        made = f"layer_norm_forward {number}"
        statistics = Term(
            f"mean and 1/std of norm {number}", f"{2 * wide}·sb{over_sp}", 2 * wide * s * b // outside, (f"{made}.1", f"{made}.2"), True
        )
        return [region(f"input of norm {number}", before), statistics, region(f"output of norm {number}", made)]

    def mask(place: str, number: int) -> list[Term]:
        return [region(f"mask of the {place}'s dropout", f"dropout_forward {number}.1", width=1)] if drop else []

    scores, symbols = a * s * s * b, "a·s²b"
    if recompute == "selective" or not unfused:
        core = [cut("Q, K and V (one tensor)", "addmm 1", times=3)]
    else:
        core = [cut("Q", "clone 1"), cut("K", "clone 2"), cut("V", "clone 3")]
    if unfused and recompute == "none":
        core.append(cut("softmax", "softmax_forward 1", elements=scores, symbols=symbols))
        if drop:
            core.append(cut("mask of the softmax's dropout", "dropout_forward 1.1", elements=scores, symbols=symbols, width=1))
            core.append(cut("softmax after dropout", "dropout_forward 1", elements=scores, symbols=symbols))
    if not unfused and recompute == "none":
        core.append(Term("log-sum-exp of flash attention", f"{wide}·a·sb{over_t}", wide * a * s * b // t, ("flash_forward 1.1",), True))
    heads = ("clone 4", "bmm 2") if unfused else ("flash_forward 1",)  # with one head on a rank nothing is copied
    drops = 1 if unfused and drop else 0
    return [
        *norm(1, "input"),
        *core,
        cut("attention of all heads, input of the output matrix", *heads),
        *mask("attention", drops + 1),
        *norm(2, "add 2"),
        cut("input of GELU", "addmm 2", elements=s * b * f, symbols="4·sbh" if f == 4 * h else "sbf"),
        cut("output of GELU", "gelu 1", elements=s * b * f, symbols="4·sbh" if f == 4 * h else "sbf"),
        *mask("MLP", drops + 2),
    ]


def predict(
    s: int, b: int, h: int, a: int, t: int = 1, w: int = 2, *, dropout: bool = True, flash: bool = False, recompute: str = "none",
    sequence_parallel: bool = False,
) -> int:  # fmt: skip
    """F17, the closed form: bytes a layer keeps on one of t ranks, without what is listed apart. ffn = 4h.

    Outside the matrices' regions stay both norms' inputs and outputs and two masks: 4w + 2; inside 12w, cut by t.
    """
    if recompute == "full":
        return w * s * b * h // (t if sequence_parallel else 1)
    masks = 2 if dropout else 0
    quadratic = 0 if flash or recompute == "selective" else a * s * s * b * (2 * w + 1 if dropout else w) // t
    return (4 * w + masks) * s * b * h // (t if sequence_parallel else 1) + 12 * w * s * b * h // t + quadratic


@dataclass(frozen=True)
class Line:
    """A kept tensor, predicted beside counted."""

    name: str
    term: str
    predicted: int
    counted: int
    apart: bool

    @property
    def ok(self) -> bool:
        """Equal, not close."""
        return self.predicted == self.counted


def account(terms: Sequence[Term], saved: Sequence[Saved]) -> list[Line]:
    """Every term with what was counted for it, then every saved tensor that no term names."""
    claimed = {maker for term in terms for maker in term.makers}
    lines = [Line(x.name, x.term, x.nbytes, sum(k.nbytes for k in saved if k.maker in x.makers), x.apart) for x in terms]
    return lines + [
        Line(f"not in the list: {k.maker} {k.dtype} {list(k.shape)}", "", 0, k.nbytes, True) for k in saved if k.maker not in claimed
    ]

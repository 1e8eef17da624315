"""What a transformer layer keeps for backward: the paper's list, tensor by tensor, and its sums.

Follows Korthikanti et al., "Reducing activation recomputation in large transformer models" (2205.05198), section 4 and Eq 17.
Symbols: s tokens, b sequences, h hidden, a heads, t tensor-parallel ranks, w bytes of an element (the paper: 2), masks 1 byte;
beyond the paper: k columns of K and of V (h without grouped queries), f inner width of the MLP, c context-parallel ranks.

    x ─ norm ─ QKV ─ Q K^T ─ softmax ─ dropout ─ · V ─ out ─ dropout ─ + ─ norm ─ up ─ GELU ─ down ─ dropout ─ +

    with dropout      sbh (16w + 2) + a s² b (2w + 1)          w = 2:  sbh (34 + 5 a s/h)                    eq. 1
    without           16w sbh + w a s² b
    tensor parallel   w = 2:  sbh (10 + 24/t + 5 a s/(h t))                                                eq. 2
    + sequence        w = 2:  sbh/t (34 + 5 a s/h)                                                         eq. 4
    selective         the same without the a s² b term                                                     eq. 6
    full              w sbh: the input

    flash attention   no a s² b term; log-sum-exp instead, 4 a s b bytes
    apart from all    each norm's mean and 1/std, 8 s b bytes in fp32

    any k and f       inside the matrices w sb (2h + 2k + n f)/t, where the paper has 12 w sbh/t: k = h, f = 4h, n = 2
                      n = 2 GELU: in and out; 4 SwiGLU: gate, value, silu(gate), product; 1 ReLU: its output
    context parallel  everything by c, also a s² b; Ulysses with flash attention keeps the output before and behind its way back

The counted side is sim/recording/saved_for_backward.py, which knows none of this. A tensor that was saved and is not in the list gets a line of its own.
    RMSNorm, ScaleNorm   1/std alone, half as much apart; no biases: no difference
    rope        Q and K turned, and a copy of V beside them: three tensors, the same bytes

But: embedding, head and the pipeline's buffers are not a layer. Not in the list: experts, separate Q, K and V matrices, fewer key
heads than t, overlapped tensor parallelism (the same bytes under other names), rings of groups that exchange heads, exchanges
of one token or one column (they copy less), norms of Q and K, and norms that do not stand before their branch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import Block
from glasscluster.model.layers.dropout import Draw
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.sim.recording.saved_for_backward import Saved, saved_for_backward
from glasscluster.strategies.context.ulysses import make_context
from glasscluster.strategies.layout.tokens import rectangle
from glasscluster.strategies.memory.recompute import KINDS
from glasscluster.strategies.numerics.formats import DTYPES
from glasscluster.strategies.tensor.sequence_parallel import SequenceParallel
from glasscluster.strategies.tensor.tensor_parallel import TensorParallel

PARTS = ("outside", "mlp", "attention", "scores")  # outside the matrices; inside those of the MLP, of attention; what grows with s²
OPERATOR = {"layernorm": "layer_norm", "rmsnorm": "rms_norm", "scalenorm": "scale_norm"}
KEPT_OF_MLP = {"gelu": 2, "gelu-tanh": 2, "relu": 1, "swiglu": 4}  # n, in inner widths f


def kept_by_a_layer(
    gpu: GPU,
    model: ModelConfig,
    sequences: int,
    precision: str = "bf16",
    recompute: str = "none",
    sequence_parallel: bool = False,
    cp: int = 1,
    context: str = "ring",
) -> list[Saved]:
    """The counting program: a real block on this rank's heads and tokens, its forward, and what autograd saved. Nothing below is used.

    Of the ranks `cp` share out each sequence, in the way of `context`; the others of a group are tensor-parallel.
    """
    mesh = gpu.make_mesh({"cp": cp, "tp": gpu.size // cp})
    with gpu.unrecorded():
        keep, dtype = KINDS[recompute](gpu, 1), DTYPES[precision]
        parallel = (SequenceParallel if sequence_parallel else TensorParallel)(mesh["tp"])
        if cp > 1:
            parallel.context = make_context(context, mesh["cp"])
        block = Block(0, model, parallel, 0, torch.empty(0, dtype=dtype, device=gpu.device))
        block.keep = keep
        x = torch.zeros(sequences, model.seq // parallel.pieces, model.hidden, dtype=dtype, device=gpu.device).requires_grad_()
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
    part: str = "outside"  # one of PARTS


def predict_layer(
    model: ModelConfig,
    b: int,
    t: int = 1,
    w: int = 2,
    recompute: str = "none",
    sequence_parallel: bool = False,
    cp: int = 1,
    context: str = "ring",
    cp_rank: int = 0,
) -> list[Term]:
    """The list for one of t·cp ranks, in the order in which the layer runs. `sequence_parallel` cuts the norms' regions too.

    `cp_rank` says only how many blocks of a ring it merges, by which the operations that make tensors are numbered.
    """
    s, h, k, f, a = model.seq, model.hidden, model.key_width, model.width, model.heads
    wide, outside = max(w, 4), (t if sequence_parallel else 1) * cp
    unfused, drop, exchange = model.attention == "unfused", model.dropout > 0, cp > 1 and context == "ulysses"
    over_t, over_sp = _over(t=t, c=cp), _over(t=t if sequence_parallel else 1, c=cp)
    if recompute == "full":
        return [Term("input of the layer", f"w·sbh{over_sp}", w * s * b * h // outside, ("input",))]

    def region(name: str, *makers: str, width: int = w) -> Term:
        return Term(name, f"{'w·' if width == w else ''}sbh{over_sp}", width * s * b * h // outside, makers)

    def cut(part: str, name: str, *makers: str, columns: int = h, symbols: str = "sbh", width: int = w) -> Term:
        times = symbols[0] if symbols[0].isdigit() else ""
        text = f"{times}{'w·' if width == w else ''}{symbols.removeprefix(times).removeprefix('·')}{over_t}"
        return Term(name, text, width * s * b * columns // (t * cp), makers, part=part)

    def norm(number: int, before: str) -> list[Term]:
        made, mean = f"{OPERATOR[model.norm]}_forward {number}", model.norm == "layernorm"
        each = 2 * wide if mean else wide
        name = f"{'mean and ' if mean else ''}1/std of norm {number}"
        statistics = Term(name, f"{each}·sb{over_sp}", each * s * b // outside, (f"{made}.1", f"{made}.2")[: 1 + mean], True)
        return [region(f"input of norm {number}", before), statistics, region(f"output of norm {number}", made)]

    def mask(place: str, number: int) -> list[Term]:
        return [region(f"mask of the {place}'s dropout", f"dropout_forward {number}.1", width=1)] if drop else []

    keys, turned = "sbh" if k == h else "sbk", model.position == "rope"
    first, second, residual = ("addmm 1", "addmm 2", "add 2") if model.bias else ("mm 1", "mm 3", "add 1")
    before = int(sequence_parallel and t > 1 and b > 1)  # gathering several sequences copies each rank's piece to its place
    own = ("rope 1", "rope 2", f"clone {before + 1}")  # of what is turned
    before += turned
    if exchange:
        copies = _exchanged(b, a // (t * cp), model.key_heads // (t * cp), before)
    elif turned and unfused:  # of one head, nothing needs to be copied to lie in order
        several = [n // t > 1 for n in (a, model.key_heads, model.key_heads)]
        numbers = [before + sum(several[: i + 1]) for i in range(3)]
        copies = tuple(f"clone {n}" if many else mine for n, many, mine in zip(numbers, several, own, strict=True))
        copies = (*copies, f"clone {before + sum(several) + 1}")
    else:
        copies = tuple(f"clone {before + i}" for i in (1, 2, 3, 4))
    as_they_are = recompute == "selective" or not (unfused or exchange)
    if as_they_are and not turned:
        together = "3·sbh" if k == h else "sb(h+2k)"
        core = [cut("attention", "Q, K and V (one tensor)", first, columns=h + 2 * k, symbols=together)]
    else:
        core = [
            cut("attention", name, copy, columns=n, symbols=sb)
            for name, copy, n, sb in zip("QKV", own if as_they_are else copies[:3], (h, k, k), ("sbh", keys, keys), strict=True)
        ]
    if unfused and recompute == "none":
        scores = partial(cut, "scores", columns=a * s, symbols="a·s²b")
        core.append(scores("softmax", "softmax_forward 1"))
        if drop:
            core.append(scores("mask of the softmax's dropout", "dropout_forward 1.1", width=1))
            core.append(scores("softmax after dropout", "dropout_forward 1"))
    if not unfused and recompute == "none":
        lse = wide * a * s * b // (t * cp)
        core.append(Term("log-sum-exp of flash attention", f"{wide}·a·sb{over_t}", lse, ("flash_forward 1.1",), True, "attention"))
        if exchange:
            core.append(cut("attention", "attention of this rank's heads, before its way back", "flash_forward 1"))
    heads: tuple[str, ...]
    if exchange:
        heads = (copies[3],)
    elif unfused:
        heads = (copies[3], "bmm 2")  # with one head on a rank nothing is copied
    elif cp > 1 and w < wide:  # rounded after the last merge; each block's output was widened for it
        blocks = sum(rectangle(context, cp_rank, source, s // cp) is not None for source in range(cp))
        heads = (f"_to_copy {blocks + 1}",)
    else:
        heads = ("flash_forward 1",)
    drops = 1 if unfused and drop else 0
    return [
        *norm(1, "input"),
        *core,
        cut("attention", "attention of all heads, input of the output matrix", *heads),
        *mask("attention", drops + 1),
        *norm(2, residual),
        *_mlp(model.activation, partial(cut, "mlp"), f, "4·sbh" if f == 4 * h else "sbf", second),
        *mask("MLP", drops + 2),
    ]


def _exchanged(b: int, heads: int, key_heads: int, before: int) -> tuple[str, ...]:
    """What makes Q, K, V and the output of all heads in an exchange: the copy behind it, or its buffer where no copy is needed."""
    made, clones = [], before
    for number, n in enumerate((heads, key_heads, key_heads), start=1):
        clones += 1 + (b * n > 1)  # before the exchange, and behind it unless heads and sequences are one
        made.append(f"clone {clones}" if b * n > 1 else f"empty_like {number}")
    return (*made, f"clone {clones + (b * heads > 1) + (b > 1 and heads > 1) + 1}")


def _over(**ranks: int) -> str:
    """What a term is divided by, in symbols."""
    symbols = [symbol for symbol, n in ranks.items() if n > 1]
    return "/" + (symbols[0] if len(symbols) == 1 else f"({'·'.join(symbols)})") if symbols else ""


def _mlp(activation: str, cut: Callable[..., Term], f: int, symbols: str, second: str) -> list[Term]:
    """What the activation keeps, and the input of the second matrix."""
    if activation == "swiglu":
        return [
            cut("gate and value (one tensor)", second, columns=2 * f, symbols="2·sbf"),
            cut("silu of the gate", "silu 1", columns=f, symbols="sbf"),
            cut("gated value, input of the second matrix", "mul 1", columns=f, symbols="sbf"),
        ]
    if activation == "relu":  # its derivative needs the output alone
        return [cut("output of ReLU", "relu 1", columns=f, symbols=symbols)]
    return [cut("input of GELU", second, columns=f, symbols=symbols), cut("output of GELU", "gelu 1", columns=f, symbols=symbols)]


def predict(
    s: int, b: int, h: int, a: int, t: int = 1, w: int = 2, *, dropout: bool = True, flash: bool = False, recompute: str = "none",
    sequence_parallel: bool = False, key_width: int | None = None, mlp: int | None = None, cp: int = 1, exchange: bool = False,
) -> int:  # fmt: skip
    """Eq 17, the closed form: bytes a layer keeps on one of t·cp ranks, without what is listed apart.

    Outside the matrices' regions stay both norms' inputs and outputs and two masks: 4w + 2; inside 12w, cut by t: Q, K, V and the
    heads' output 4, GELU 8. Other shapes: key_width k and mlp = n·f columns (KEPT_OF_MLP). exchange: Ulysses in place of a ring.
    """
    outside = cp * (t if sequence_parallel else 1)
    if recompute == "full":
        return w * s * b * h // outside
    k, inner = key_width or h, mlp or 8 * h
    masks = 2 if dropout else 0
    twice = h if exchange and flash and recompute == "none" else 0
    quadratic = 0 if flash or recompute == "selective" else a * s * s * b * (2 * w + 1 if dropout else w) // (t * cp)
    return (4 * w + masks) * s * b * h // outside + w * s * b * (2 * h + 2 * k + inner + twice) // (t * cp) + quadratic


@dataclass(frozen=True)
class Line:
    """A kept tensor, predicted beside counted."""

    name: str
    term: str
    predicted: int
    counted: int
    apart: bool
    part: str = "outside"

    @property
    def ok(self) -> bool:
        """Equal, not close."""
        return self.predicted == self.counted


def account(terms: Sequence[Term], saved: Sequence[Saved]) -> list[Line]:
    """Every term with what was counted for it, then every saved tensor that no term names."""
    claimed = {maker for term in terms for maker in term.makers}
    lines = [Line(x.name, x.term, x.nbytes, sum(k.nbytes for k in saved if k.maker in x.makers), x.apart, x.part) for x in terms]
    return lines + [
        Line(f"not in the list: {k.maker} {k.dtype} {list(k.shape)}", "", 0, k.nbytes, True) for k in saved if k.maker not in claimed
    ]

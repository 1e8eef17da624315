"""What a transformer layer keeps for backward: the paper's list, tensor by tensor, and its sums.

Follows Korthikanti et al., "Reducing activation recomputation in large transformer models" (2205.05198),
section 4 and Eq 17. Symbols: s tokens, b sequences, h hidden, a heads, t tensor-parallel ranks, w bytes of an
element (the paper: 2), masks 1 byte; beyond the paper: q columns of Q (h unless heads have a size of their
own), k columns of K and of V (q without grouped queries), f inner width of the MLP, c context-parallel ranks.

    x ─ norm ─ QKV ─ QK^T ─ softmax ─ dropout ─ ·V ─ out ─ dropout ─ + ─ norm ─ up ─ GELU ─ down ─ dropout ─ +

    with dropout      sbh (16w + 2) + a s² b (2w + 1)          w = 2:  sbh (34 + 5 a s/h)                eq. 1
    without           16w sbh + w a s² b
    tensor parallel   w = 2:  sbh (10 + 24/t + 5 a s/(h t))                                            eq. 2
    + sequence        w = 2:  sbh/t (34 + 5 a s/h)                                                     eq. 4
    selective         the same without the a s² b term                                                 eq. 6
    full              w sbh: the input

    flash attention   no a s² b term; log-sum-exp instead, 4 a s b bytes
    separate          each norm's mean and 1/std, 8 s b bytes in fp32

    any q, k and f    inside the matrices w sb (2q + 2k + n f)/t,
                      where the paper has 12 w sbh/t: q = k = h, f = 4h, n = 2
                      n = 2 GELU: in and out; 3 SwiGLU, GEGLU, clamped SwiGLU: gate, value, product (one
                      kernel makes the rest anew in backward); 1 ReLU: its output
    context parallel  everything by c, also a s² b; Ulysses with flash attention keeps the output before and
    behind its way back

The counted side is sim/recording/saved_for_backward.py, which knows none of this. A tensor that was saved and
is not in the list gets a line of its own.
    RMSNorm, ScaleNorm   1/std alone, half as many bytes; no biases: no difference
    soft cap    unfused: the scores before it, w a s² b
    sinks       unfused: their probabilities, 4 a s b bytes, listed separately
    rope        Q and K rotated, and a copy of V beside them: three tensors, the same bytes

But: embedding, head and the pipeline's buffers are not a layer. Not in the list: experts, separate Q, K and V
matrices, fewer key heads than t, overlapped tensor parallelism (the same bytes under other names), rings of
groups that exchange heads, rings with windows, exchanges of one token or one column (they copy less), norms
of Q and K, and norms that do not stand before their branch.
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

PARTS = (
    "outside",
    "mlp",
    "attention",
    "scores",
)  # outside the matrices; inside those of the MLP, of attention; what grows with s²
OPERATOR = {"layernorm": "layer_norm", "rmsnorm": "rms_norm", "scalenorm": "scale_norm"}
KEPT_OF_MLP = {
    "gelu": 2,
    "gelu-tanh": 2,
    "relu": 1,
    "swiglu": 3,
    "geglu": 3,
    "swiglu-clamped": 3,
}  # n, in inner widths f


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
    """The counting program: a real block on this rank's heads and tokens, its forward, and what autograd
    saved. Nothing below is used.

    Of the ranks `cp` share out each sequence, in the way of `context`; the others of a group are
    tensor-parallel.
    """
    mesh = gpu.make_mesh({"cp": cp, "tp": gpu.size // cp})
    with gpu.unrecorded():
        keep, dtype = KINDS[recompute](gpu, 1), DTYPES[precision]
        parallel = (SequenceParallel if sequence_parallel else TensorParallel)(mesh["tp"])
        if cp > 1:
            parallel.context = make_context(context, mesh["cp"])
        block = Block(0, model, parallel, 0, torch.empty(0, dtype=dtype, device=gpu.device))
        block.keep = keep
        x = torch.zeros(
            sequences, model.seq // parallel.pieces, model.hidden, dtype=dtype, device=gpu.device
        ).requires_grad_()
        draw = Draw(0, 0, tuple(range(sequences)))
        return saved_for_backward(lambda x: keep.layers([block], x, draw), x, block.parameters())


# ---- theory ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """One kept tensor: what it is, its term of the formula, its bytes, and which operation of the layer makes
    it.
    """

    name: str
    term: str
    nbytes: int
    makers: tuple[str, ...]
    separate: bool = False  # not in the paper's sum
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
    """The list for one of t·cp ranks, in the order in which the layer runs.

    `sequence_parallel` cuts the norms' regions too. `cp_rank` says only how many blocks of a ring it merges,
    by which the operations that make tensors are numbered.
    """
    layer = _Layer(model, b, t, w, recompute, sequence_parallel, cp, context, cp_rank)
    if recompute == "full":
        nbytes = w * model.seq * b * model.hidden // layer.outside
        return [Term("input of the layer", f"w·sbh{layer.over_sp}", nbytes, ("input",))]
    f, h = model.width, model.hidden
    first_drop = 1 if layer.unfused and layer.drops else 0
    residual = "add 2" if model.bias else "add 1"
    # the output's bias is added apart, so its matrix is an mm: those of one kind are counted up to the second
    same_before = (model.bias is model.biased_qkv) + (not model.bias)
    second = f"{'addmm' if model.bias else 'mm'} {same_before + 1}"
    return [
        *layer.norm(1, "input"),
        *layer.inside_attention(),
        layer.of_queries("attention of all heads, input of the output matrix", *layer.heads()),
        *layer.mask("attention", first_drop + 1),
        *layer.norm(2, residual),
        *_mlp(model.activation, partial(layer.cut, "mlp"), f, "4·sbh" if f == 4 * h else "sbf", second),
        *layer.mask("MLP", first_drop + 2),
    ]


@dataclass(frozen=True)
class _Layer:
    """The sizes of one layer on one rank, and the terms that they make. Symbols as in the header."""

    model: ModelConfig
    b: int
    t: int
    w: int
    recompute: str
    sequence_parallel: bool
    cp: int
    context: str
    cp_rank: int

    @property
    def over_t(self) -> str:
        """What a term inside the matrices is divided by, in writing."""
        return _over(t=self.t, c=self.cp)

    @property
    def over_sp(self) -> str:
        """What a term outside the matrices is divided by, in writing."""
        return _over(t=self.t if self.sequence_parallel else 1, c=self.cp)

    @property
    def outside(self) -> int:
        """Ranks that share out a tensor outside the matrices."""
        return (self.t if self.sequence_parallel else 1) * self.cp

    @property
    def wide(self) -> int:
        """Bytes of a number that is kept in fp32 or more: statistics, log-sum-exp."""
        return max(self.w, 4)

    @property
    def unfused(self) -> bool:
        """Whether attention keeps its scores."""
        return self.model.attention == "unfused"

    @property
    def drops(self) -> bool:
        """Whether there is dropout."""
        return self.model.dropout > 0

    @property
    def exchange(self) -> bool:
        """Whether heads are exchanged over cp (Ulysses)."""
        return self.cp > 1 and self.context == "ulysses"

    @property
    def rotates(self) -> bool:
        """Whether queries and keys are rotated behind their matrix."""
        return self.model.position == "rope"

    # ---- terms ---------------------------------------------------------------------------------------------
    def region(self, name: str, *makers: str, width: int = 0) -> Term:
        """A tensor [s, b, h] outside the matrices."""
        width = width or self.w
        text = f"{'w·' if width == self.w else ''}sbh{self.over_sp}"
        nbytes = width * self.model.seq * self.b * self.model.hidden // self.outside
        return Term(name, text, nbytes, makers)

    def cut(
        self, part: str, name: str, *makers: str, columns: int = 0, symbols: str = "sbh", width: int = 0
    ) -> Term:
        """A tensor [s, b, columns] inside the matrices of a part."""
        width, columns = width or self.w, columns or self.model.hidden
        times = symbols[0] if symbols[0].isdigit() else ""
        rest = symbols.removeprefix(times).removeprefix("·")
        text = f"{times}{'w·' if width == self.w else ''}{rest}{self.over_t}"
        nbytes = width * self.model.seq * self.b * columns // (self.t * self.cp)
        return Term(name, text, nbytes, makers, part=part)

    @property
    def queries(self) -> str:
        """Columns of the queries of all heads, in writing: h, or q where a head's size is its own."""
        return "h" if self.model.query_width == self.model.hidden else "q"

    def of_queries(self, name: str, *makers: str) -> Term:
        """A tensor of attention with a column for each element of all heads' queries."""
        symbols, columns = f"sb{self.queries}", self.model.query_width
        return self.cut("attention", name, *makers, columns=columns, symbols=symbols)

    def norm(self, number: int, before: str) -> list[Term]:
        """What a norm keeps: its input, its statistics, and its output for the matrix behind it."""
        made, mean = f"{OPERATOR[self.model.norm]}_forward {number}", self.model.norm == "layernorm"
        each = 2 * self.wide if mean else self.wide
        name = f"{'mean and ' if mean else ''}1/std of norm {number}"
        nbytes, makers = (
            each * self.model.seq * self.b // self.outside,
            (f"{made}.1", f"{made}.2")[: 1 + mean],
        )
        statistics = Term(name, f"{each}·sb{self.over_sp}", nbytes, makers, True)
        before_and_behind = (
            self.region(f"input of norm {number}", before),
            self.region(f"output of norm {number}", made),
        )
        return [before_and_behind[0], statistics, before_and_behind[1]]

    def mask(self, place: str, number: int) -> list[Term]:
        """A byte an element, where there is dropout."""
        if not self.drops:
            return []
        return [self.region(f"mask of the {place}'s dropout", f"dropout_forward {number}.1", width=1)]

    # ---- attention -----------------------------------------------------------------------------------------
    @property
    def clones_before(self) -> int:
        """Copies made before Q, K and V: gathering several sequences copies each rank's piece to
        its place.
        """
        return int(self.sequence_parallel and self.t > 1 and self.b > 1) + self.rotates

    @property
    def rotated(self) -> tuple[str, str, str]:
        """What makes rotated Q and K, and the V beside them."""
        return "rope 1", "rope 2", f"clone {self.clones_before}"

    def copies(self) -> tuple[str, ...]:
        """What makes Q, K, V and the output of all heads, as attention takes them."""
        model, t, before = self.model, self.t, self.clones_before
        if self.exchange:
            return _exchanged(self.b, model.heads // (t * self.cp), model.key_heads // (t * self.cp), before)
        if self.rotates and self.unfused:  # of one head, nothing needs to be copied to lie in order
            several = [n // t > 1 for n in (model.heads, model.key_heads, model.key_heads)]
            numbers = [before + sum(several[: i + 1]) for i in range(3)]
            makers = [
                f"clone {n}" if many else own
                for n, many, own in zip(numbers, several, self.rotated, strict=True)
            ]
            return (*makers, f"clone {before + sum(several) + 1}")
        return tuple(f"clone {before + i}" for i in (1, 2, 3, 4))

    def inside_attention(self) -> list[Term]:
        """Q, K and V, then what grows with s², or flash attention's log-sum-exp."""
        model, q, k = self.model, self.model.query_width, self.model.key_width
        as_they_are = self.recompute == "selective" or not (self.unfused or self.exchange)
        if as_they_are and not self.rotates:
            together = f"3·sb{self.queries}" if k == q else f"sb({self.queries}+2k)"
            first, columns = "addmm 1" if model.biased_qkv else "mm 1", q + 2 * k
            terms = [
                self.cut("attention", "Q, K and V (one tensor)", first, columns=columns, symbols=together)
            ]
        else:
            queries = f"sb{self.queries}"
            keys = queries if k == q else "sbk"
            makers = self.rotated if as_they_are else self.copies()[:3]
            terms = [
                self.cut("attention", name, made, columns=n, symbols=symbols)
                for name, made, n, symbols in zip(
                    "QKV", makers, (q, k, k), (queries, keys, keys), strict=True
                )
            ]
        if self.recompute != "none":
            return terms
        return terms + (self._scores() if self.unfused else self._log_sum_exp())

    def _scores(self) -> list[Term]:
        scores = partial(self.cut, "scores", columns=self.model.heads * self.model.seq, symbols="a·s²b")
        made = "softmax_sink_forward 1" if self.model.sinks else "softmax_forward 1"
        terms = [scores("softmax", made)]
        if self.model.attention_cap:
            terms.insert(0, scores("scores before the cap", "bmm 1"))
        if self.model.sinks:
            nbytes = self.wide * self.model.heads * self.model.seq * self.b // (self.t * self.cp)
            text = f"{self.wide}·a·sb{self.over_t}"
            terms.append(Term("probabilities of the sinks", text, nbytes, (f"{made}.1",), True, "attention"))
        if self.drops:
            terms.append(scores("mask of the softmax's dropout", "dropout_forward 1.1", width=1))
            terms.append(scores("softmax after dropout", "dropout_forward 1"))
        return terms

    def _log_sum_exp(self) -> list[Term]:
        nbytes = self.wide * self.model.heads * self.model.seq * self.b // (self.t * self.cp)
        name, text = "log-sum-exp of flash attention", f"{self.wide}·a·sb{self.over_t}"
        terms = [Term(name, text, nbytes, ("flash_forward 1.1",), True, "attention")]
        if self.exchange:
            name = "attention of this rank's heads, before its way back"
            terms.append(self.of_queries(name, "flash_forward 1"))
        return terms

    def heads(self) -> tuple[str, ...]:
        """What makes the output of all heads, which the output matrix keeps."""
        if self.exchange:
            return (self.copies()[3],)
        if self.unfused:
            return (self.copies()[3], "bmm 2")  # with one head on a rank nothing is copied
        if self.cp > 1 and self.w < self.wide:  # rounded after the last merge; each block was widened for it
            length = self.model.seq // self.cp
            pieces = (rectangle(self.context, self.cp_rank, source, length) for source in range(self.cp))
            return (f"_to_copy {sum(piece is not None for piece in pieces) + 1}",)
        return ("flash_forward 1",)


def _exchanged(b: int, heads: int, key_heads: int, before: int) -> tuple[str, ...]:
    """What makes Q, K, V and the output of all heads in an exchange: the copy behind it, or its buffer where
    no copy is needed.
    """
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
    if activation in ("swiglu", "geglu", "swiglu-clamped"):
        return [
            cut("gate and value (one tensor)", second, columns=2 * f, symbols="2·sbf"),
            cut("gated value, input of the second matrix", "gated_forward 1", columns=f, symbols="sbf"),
        ]
    if activation == "relu":  # its derivative needs the output alone
        return [cut("output of ReLU", "relu 1", columns=f, symbols=symbols)]
    return [
        cut("input of GELU", second, columns=f, symbols=symbols),
        cut("output of GELU", "gelu 1", columns=f, symbols=symbols),
    ]


def predict(
    s: int,
    b: int,
    h: int,
    a: int,
    t: int = 1,
    w: int = 2,
    *,
    dropout: bool = True,
    flash: bool = False,
    recompute: str = "none",
    sequence_parallel: bool = False,
    capped: bool = False,
    key_width: int | None = None,
    query_width: int | None = None,
    mlp: int | None = None,
    cp: int = 1,
    exchange: bool = False,
) -> int:
    """Eq 17, the closed form: bytes a layer keeps on one of t·cp ranks, without what is listed separately.

    Outside the matrices' regions stay both norms' inputs and outputs and two masks: 4w + 2; inside 12w, cut
    by t: Q, K, V and the heads' output 4, GELU 8. Other shapes: key_width k, query_width q (h where heads
    share out h) and mlp = n·f columns (KEPT_OF_MLP). capped: the scores are kept as well as their softmax.
    exchange: Ulysses in place of a ring.
    """
    outside = cp * (t if sequence_parallel else 1)
    if recompute == "full":
        return w * s * b * h // outside
    q, inner = query_width or h, mlp or 8 * h
    k = key_width or q
    masks = 2 if dropout else 0
    twice = q if exchange and flash and recompute == "none" else 0
    each = (2 * w + 1 if dropout else w) + (w if capped else 0)
    quadratic = 0 if flash or recompute == "selective" else a * s * s * b * each // (t * cp)
    return (
        (4 * w + masks) * s * b * h // outside
        + w * s * b * (2 * q + 2 * k + inner + twice) // (t * cp)
        + quadratic
    )


@dataclass(frozen=True)
class Line:
    """A kept tensor, predicted beside counted."""

    name: str
    term: str
    predicted: int
    counted: int
    separate: bool
    part: str = "outside"

    @property
    def ok(self) -> bool:
        """Equal, not close."""
        return self.predicted == self.counted


def account(terms: Sequence[Term], saved: Sequence[Saved]) -> list[Line]:
    """Every term with what was counted for it, then every saved tensor that no term names."""
    claimed = {maker for term in terms for maker in term.makers}
    lines = [
        Line(
            x.name, x.term, x.nbytes, sum(k.nbytes for k in saved if k.maker in x.makers), x.separate, x.part
        )
        for x in terms
    ]
    return lines + [
        Line(f"not in the list: {k.maker} {k.dtype} {list(k.shape)}", "", 0, k.nbytes, True)
        for k in saved
        if k.maker not in claimed
    ]

"""The options of context parallelism: rings, Ulysses, and rings of Ulysses groups."""

from __future__ import annotations

from itertools import count
from typing import Literal

from pydantic import ConfigDict, Field

from glasscluster.base.errors import InputError
from glasscluster.base.requests import Options
from glasscluster.model.config import ModelConfig
from glasscluster.strategies.layout.sizes import Layout, divisors


class ContextOptions(Options):
    """A sequence is cut over cp ranks. cp = rings × heads_cut: a ring of groups that exchange heads."""

    model_config = ConfigDict(title="Context parallelism")

    cp: int = Field(1, ge=1, description="context-parallel GPUs a sequence is cut over")
    context: Literal["ring", "striped", "zigzag", "ulysses"] = Field(
        "ring", description="how context parallelism cuts a sequence"
    )
    ulysses: int = Field(
        0,
        ge=0,
        description="neighbours on cp that exchange heads, inside a ring of such groups; 0: none, or all",
    )

    @property
    def heads_cut(self) -> int:
        """cp ranks that share out the heads inside attention; the other factor of cp is a ring."""
        return self.cp if self.context == "ulysses" else self.ulysses or 1

    def rules(self, model: ModelConfig, layout: Layout) -> None:
        """A sequence is cut into equal pieces, heads can be shared out, and a ring has flash attention."""
        if model.patches and self.cp > 1:
            rule = "cuts tokens; an image's pixels at the beginning of a sequence are none"
            raise InputError("cp", self.cp, rule, [1])
        if self.cp == 1 and not self.ulysses:
            return
        if self.context == "ulysses" and self.ulysses not in (0, self.cp):
            rule = "with --context ulysses every rank of cp exchanges heads"
            raise InputError("ulysses", self.ulysses, rule, [0, self.cp])
        if self.cp % self.heads_cut:
            raise InputError("ulysses", self.ulysses, f"must divide cp = {self.cp}", divisors(self.cp))
        self._sequence_divides(model, layout)
        if self.cp > self.heads_cut and model.attention != "flash":
            rule = "a ring merges blocks by flash attention's log-sum-exp"
            raise InputError("attention", model.attention, rule, ["flash"])
        self._heads_divide(model, layout)

    def _sequence_divides(self, model: ModelConfig, layout: Layout) -> None:
        rings = self.cp // self.heads_cut
        chunks = rings * (2 if self.context == "zigzag" else 1)
        inside = self.heads_cut * (layout.tp if layout.sequence_parallel else 1)

        def divides(seq: int) -> bool:
            return not (seq % chunks or seq // rings % inside)

        if not divides(model.seq):
            ways = (range(model.seq, -1, -1), count(model.seq))
            near = [next(n for n in numbers if divides(n)) for numbers in ways]
            also = f" and tp = {layout.tp} (sequence parallel)" if layout.sequence_parallel else ""
            rule = f"must be cut into equal pieces by cp = {self.cp} ({self.context}){also}"
            raise InputError("seq", model.seq, rule, [n for n in near if n])

    def _heads_divide(self, model: ModelConfig, layout: Layout) -> None:
        heads = {"heads": model.heads // layout.tp, "kv-heads": max(1, model.key_heads // layout.tp)}
        for field, local in heads.items():
            if local % self.heads_cut:
                fits = [k for k in divisors(self.cp) if all(n % k == 0 for n in heads.values())]
                option = "ulysses" if self.ulysses else "cp"
                raise InputError(
                    option, self.heads_cut, f"a tensor rank has {local} {field} to share out", fits
                )

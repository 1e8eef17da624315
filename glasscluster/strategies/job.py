"""A job: everything that a rank needs to train, and what a graph file remembers of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from glasscluster.base.errors import InputError
from glasscluster.base.files import stamp
from glasscluster.model.adamw import Optimizer
from glasscluster.model.config import ModelConfig
from glasscluster.model.text.captions import captioned
from glasscluster.model.text.data import batch, corpus, objective
from glasscluster.model.text.mixture import Mixture
from glasscluster.strategies.numerics.loss_scale import ScaleRule
from glasscluster.strategies.observer import Observer
from glasscluster.strategies.plan import Plan


@dataclass(frozen=True)
class Job:
    """Everything a rank needs to train: plan, model, steps, data, seed.

    `capture` keeps the gradients and weights of every step, `keep` the last weights. `data`: a text file,
    None for the built-in one, or several sources with weights. `weights`: a folder in Hugging Face's layout
    to start from; None: drawn from the seed. `observers`: classes of which every rank makes one, to be told
    what its training does (observer.py); a dry run has none.
    """

    plan: Plan
    model: ModelConfig
    steps: int = 3
    data: str | Mixture | None = None
    seed: int = 0
    capture: bool = False
    keep: bool = False
    loss_scale: ScaleRule = field(default_factory=ScaleRule)
    weights: str | None = None
    observers: tuple[Callable[[], Observer], ...] = ()
    # which files `data` and `weights` were when the job was made: a run reads them once, the next run anew
    files: tuple[Any, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        data = self.data if isinstance(self.data, str) else None
        object.__setattr__(self, "files", stamp(data, self.weights))

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer with the plan's learning rate and its course."""
        return Optimizer(self.plan.optimizer, lr=self.plan.lr, schedule=self.plan.rate)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The global batch of a step: [G, s] tokens and targets."""
        m = self.model
        if m.patches:
            return objective(*captioned(step, self.plan.global_batch, m, self.seed), m, step, self.seed)
        if isinstance(self.data, Mixture):
            tokens, targets, *_ = self.data.batch(step, self.plan.global_batch, m.seq, m.vocab, self.seed)
            return objective(tokens, targets, m, step, self.seed)
        return objective(
            *batch(
                corpus(self.data, self.files[:1] if self.data else ()),
                step,
                self.plan.global_batch,
                m.seq,
                m.vocab,
                self.seed,
            ),
            m,
            step,
            self.seed,
        )

    @property
    def packed(self) -> bool:
        """True where rows hold several documents."""
        return isinstance(self.data, Mixture) and self.data.packed

    def documents(self, step: int) -> tuple[tuple[int, ...], ...] | None:
        """For packed rows, the lengths of the documents in each row; None where a row is one document."""
        if not isinstance(self.data, Mixture) or not self.data.packed:
            return None
        return self.data.batch(
            step, self.plan.global_batch, self.model.seq, self.model.vocab, self.seed
        ).documents

    def check_packed(self) -> None:
        """Packed documents need causal flash attention on whole rows: InputError for what has no
        such thing.
        """
        if not self.packed:
            return
        model, plan = self.model, self.plan
        for name, value, good, why in (
            ("cp", plan.cp, 1, "a document must lie whole on one rank"),
            ("exchange", plan.exchange, "all-reduce", "a server's workers do not know of documents"),
            ("objective", model.objective, "causal", "documents are triangles of a causal mask"),
            ("prefix", model.prefix, 0, "documents are triangles of a causal mask"),
            ("attention", model.attention, "flash", "documents are attended to one by one"),
            (
                "experts",
                model.experts,
                0,
                "places of experts are shared out within a row, so one document could push out another's "
                "tokens",
            ),
        ):
            if value != good:
                raise InputError(name, value, f"does not go with packed documents: {why}", [good])


def job_info(job: Job, **more: Any) -> dict[str, Any]:
    """What a graph file remembers about the job that made it."""
    plan = job.plan
    tokens = plan.global_batch * job.model.seq
    return {
        "precision": plan.precision,
        "plan": plan.model_dump(mode="json"),
        "model": job.model.model_dump(mode="json"),
        "model_flops": job.model.model_flops(tokens),
        "causal_flops": job.model.causal_flops(tokens),
        "tokens": tokens,
        **more,
    }

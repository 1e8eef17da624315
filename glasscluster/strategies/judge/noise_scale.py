"""The gradient noise scale: how large a batch is still useful, from gradients that data parallelism has
anyway.

Follows McCandlish et al., "An empirical model of large-batch training", 1812.06162, section 2 and appendix
A.1. Symbols: G true gradient, Σ covariance of one example's gradient, B batch, b part of it on one rank, N =
B/b ranks.

    E|G_B|² = |G|² + trΣ/B                      two batch sizes, two equations: a rank's own gradient is
                                                the batch b, the all-reduced one B
    |G|²    ≈ (B|G_B|² − b|G_b|²) / (B − b)     both unbiased; averaged over steps
    trΣ     ≈ (|G_b|² − |G_B|²) / (1/b − 1/B)   before they are divided
    B_simple = trΣ / |G|²

Below B_simple twice the batch nearly halves the steps; above it, it hardly does: (S/S_min − 1)(E/E_min − 1) =
1 for S steps and E = B·S examples. The rate that suits a batch is ε_max / (1 + B_simple/B).

But: B_simple takes the Hessian for a multiple of the identity; it grows as the loss falls, so it is an
average over a run.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from glasscluster.sim.ranks.communicator import Communicator


@dataclass
class NoiseScale:
    """Sums over steps of |G_b|² (mean over ranks) and |G_B|². `small` b, `large` B, in examples."""

    small: int
    large: int
    small_norm: float = 0.0
    large_norm: float = 0.0
    steps: int = 0

    def add(self, small_norm: float, large_norm: float) -> None:
        """One step's two norms, squared."""
        self.small_norm, self.large_norm, self.steps = (
            self.small_norm + small_norm,
            self.large_norm + large_norm,
            self.steps + 1,
        )

    @property
    def signal(self) -> float:
        """|G|²."""
        return (
            (self.large * self.large_norm - self.small * self.small_norm)
            / (self.large - self.small)
            / self.steps
        )

    @property
    def noise(self) -> float:
        """trΣ."""
        return (self.small_norm - self.large_norm) / (1 / self.small - 1 / self.large) / self.steps

    @property
    def simple(self) -> float:
        """B_simple, in examples."""
        return self.noise / self.signal


def average(comm: Communicator, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Average a rank's mean gradient over ranks, in place; returns |G_b|² (averaged over ranks) and |G_B|²:
    one scalar more to send.
    """
    own = gradient.square().sum()
    comm.all_reduce(gradient, purpose="gradients", label="gradient")
    comm.all_reduce(own, purpose="scalars", label="norm of a rank's own gradient")
    gradient.div_(comm.size)
    return own / comm.size, gradient.square().sum()


# ---- theory ------------------------------------------------------------------------------------------------


def rate(largest: float, noise_scale: float, batch: float) -> float:
    """The learning rate that suits a batch."""
    return largest / (1 + noise_scale / batch)


def fit(batches: list[float], steps: list[float]) -> tuple[float, float]:
    """S_min and E_min from S = S_min + E_min / B (the hyperbola, solved for S), relative least squares over
    the runs.
    """
    rows = [
        (1.0 / s, 1.0 / (b * s)) for b, s in zip(batches, steps, strict=True)
    ]  # S_min/S + E_min/(B S) = 1
    aa, ab, bb = (sum(r[i] * r[j] for r in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = (sum(r[i] for r in rows) for i in (0, 1))
    det = aa * bb - ab * ab
    return (a * bb - b * ab) / det, (aa * b - ab * a) / det


def predict(batch: float, fewest_steps: float, fewest_examples: float) -> float:
    """Eq 35: steps at a batch size; B_crit = E_min / S_min."""
    return fewest_steps + fewest_examples / batch

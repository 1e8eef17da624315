"""What answers are worth: accuracy and how sure it is, two models on the same items, pass@k, perplexity and
bits a byte.

    acc       the likeliest continuation is right  argmax_i log p(choice_i | context)
    acc_norm  the same a byte                      argmax_i log p(choice_i | context) / bytes of choice_i
    Eq 41     standard error                       √(p (1 - p) / (n - 1))
    paired    two models on the same items         mean of the differences over their own standard error;
                                                   McNemar's test
    Eq 37     bits a byte                          loss in nats · tokens / (bytes · ln 2)

Sums of log-likelihoods favour short continuations, divided by bytes they favour predictable ones: neither is
right (lm-evaluation-harness reports both). A difference of two accuracies is judged on the same items,
because what is hard for one model is hard for the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


def chosen(loglikelihoods: Sequence[float], lengths: Sequence[int] | None = None) -> int:
    """The likeliest continuation; with `lengths` (bytes), the likeliest a byte. Of equal ones the first."""
    values = (
        [x / n for x, n in zip(loglikelihoods, lengths, strict=True)]
        if lengths is not None
        else list(loglikelihoods)
    )
    return max(range(len(values)), key=values.__getitem__)


def mean(right: Sequence[float]) -> float:
    """Accuracy, of n items that are 1 or 0; or any mean."""
    return sum(right) / len(right)


def spread(values: Sequence[float]) -> float:
    """Standard error of the mean of n values, counted from them: their standard deviation (n - 1) over √n."""
    m, n = mean(values), len(values)
    return math.sqrt(sum((x - m) ** 2 for x in values) / (n - 1) / n) if n > 1 else math.inf


class Paired(NamedTuple):
    """A second model against a first on the same items."""

    difference: float  # of the accuracies
    error: float  # its standard error
    better: int  # items that only the second has right
    worse: int  # items that only the first has right
    p: float  # McNemar's exact test, two-sided: as unequal by chance


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """McNemar (1947): only items that one of the two has right tell them apart; by chance they
    are a coin's.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    n, tail = better + worse, min(better, worse)
    p = min(1.0, 2 * sum(math.comb(n, k) for k in range(tail + 1)) / 2**n) if n else 1.0
    return Paired(mean(differences), spread(differences), better, worse, p)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that one of k answers is right, from `right` of n samples: 1 - C(n - c, k) / C(n, k)
    (2107.03374, section 2.1).
    """
    if not 0 < k <= samples:
        raise ValueError(f"k = {k} must be 1 to {samples}, the number of samples")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def perplexity(loglikelihood: float, tokens: int) -> float:
    """exp of the mean loss a token; depends on the tokenizer."""
    return math.exp(-loglikelihood / tokens)


def bits_per_byte(loglikelihood: float, size: int) -> float:
    """Eq 37; the same whatever the tokenizer."""
    return -loglikelihood / size / math.log(2)


# ---- theory ------------------------------------------------------------------------------------------------
def predict_error(accuracy: float, items: int) -> float:
    """Eq 41: √(p (1 - p) / (n - 1))."""
    return math.sqrt(accuracy * (1 - accuracy) / (items - 1))


def predict_unpaired(first: float, second: float, items: int) -> float:
    """Standard error of the difference of two accuracies on different items: √(e² + e'²)."""
    return math.hypot(predict_error(first, items), predict_error(second, items))

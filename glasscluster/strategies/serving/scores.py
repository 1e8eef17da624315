"""Scores of a model's answers: accuracy with its standard error, paired comparison, pass@k, perplexity.

    acc       the likeliest continuation is right  argmax_i log p(choice_i | context)
    acc_norm  the likeliest for its length         argmax_i log p(choice_i | context) / bytes of choice_i
    Eq 41     standard error                       √(p (1 - p) / (n - 1))
    paired    two models on the same items         mean of the differences over their own standard error;
                                                   McNemar's test
    Eq 37     bits a byte                          loss in nats · tokens / (bytes · ln 2)

`acc` favours short continuations, `acc_norm` favours predictable ones; neither is right, so
lm-evaluation-harness reports both. Two models are compared on the same items, because items that are hard for
one model are hard for the other: the difference then varies less than either accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


def chosen(loglikelihoods: Sequence[float], lengths: Sequence[int] | None = None) -> int:
    """The index of the likeliest continuation; with `lengths` (bytes), the likeliest for its length.

    Of equally likely ones, the first.
    """
    values = (
        [x / n for x, n in zip(loglikelihoods, lengths, strict=True)]
        if lengths is not None
        else list(loglikelihoods)
    )
    return max(range(len(values)), key=values.__getitem__)


def mean(right: Sequence[float]) -> float:
    """The mean; of numbers that are 1 for a right answer and 0 for a wrong one, the accuracy."""
    return sum(right) / len(right)


def spread(values: Sequence[float]) -> float:
    """Standard error of the mean of n values: their standard deviation (divisor n - 1) over √n."""
    m, n = mean(values), len(values)
    return math.sqrt(sum((x - m) ** 2 for x in values) / (n - 1) / n) if n > 1 else math.inf


class Paired(NamedTuple):
    """A second model compared with a first one, on the same items."""

    difference: float  # of the accuracies
    error: float  # its standard error
    better: int  # items that only the second has right
    worse: int  # items that only the first has right
    p: float  # of McNemar's exact, two-sided test: chance of a split at least as unequal as better and worse


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare two models by McNemar's test (1947).

    Only items that exactly one of the two has right say which model is better. Were the models equally good,
    each such item would favour either with probability 1/2.

    Args:
        first: for each item 1 if the first model has it right, else 0.
        second: the same for the second model.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    n, tail = better + worse, min(better, worse)
    p = min(1.0, 2 * sum(math.comb(n, k) for k in range(tail + 1)) / 2**n) if n else 1.0
    return Paired(mean(differences), spread(differences), better, worse, p)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """pass@k: the chance that at least one of k answers is right (Chen et al., 2107.03374, section 2.1).

    Estimated from n = `samples` answers of which c = `right` are right: 1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError: if k is not between 1 and the number of samples.
    """
    if not 0 < k <= samples:
        raise ValueError(f"k = {k} must be 1 to {samples}, the number of samples")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def perplexity(loglikelihood: float, tokens: int) -> float:
    """exp of the mean loss (nats) of a token. It depends on the tokenizer."""
    return math.exp(-loglikelihood / tokens)


def bits_per_byte(loglikelihood: float, size: int) -> float:
    """Eq 37: the loss in bits for each byte of text. Unlike perplexity it is comparable across tokenizers.

    loglikelihood: of the whole text, in nats. size: its bytes.
    """
    return -loglikelihood / size / math.log(2)


# ---- theory ------------------------------------------------------------------------------------------------
def predict_error(accuracy: float, items: int) -> float:
    """Eq 41: the standard error of an accuracy p on n items, √(p (1 - p) / (n - 1))."""
    return math.sqrt(accuracy * (1 - accuracy) / (items - 1))


def predict_unpaired(first: float, second: float, items: int) -> float:
    """The standard error of the difference of two accuracies on different items, √(e² + e'²).

    e and e' are the standard errors of the two, each on `items` items (Eq 41).
    """
    return math.hypot(predict_error(first, items), predict_error(second, items))

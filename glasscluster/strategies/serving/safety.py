"""What an evaluation of safety counts: refusals on both sides of a threshold, a verdict's dependence on the
order of two answers, and a score's dependence on length.

    refusal     a request is refused when its score s > threshold; one threshold gives two rates:
                refused of those that should be, and refused of those that only look so (over-refusal)
    order       a judge reads answers (a, b) and (b, a); its margin for the first place is
                m_ab = content + position,  m_ba = -content + position
                the verdict follows the position where |position| > |content|
    length      a score is regressed on length; what is left has no part that grows with length
                (as the length-controlled win rates of 2404.04475)

The two models here are counts and nothing else: naive Bayes over words, and a byte n-gram that backs off.
They are real, and small enough to see why they fail.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

BACK_OFF = 0.4  # Brants et al. 2007, section 4


class WordClassifier:
    """Naive Bayes over words (add-one smoothing): how much likelier a request's words are among those that
    were refused.

    Args:
        refused: requests, as words between spaces.
        answered: the others.
    """

    def __init__(self, refused: Sequence[str], answered: Sequence[str]) -> None:
        self.counts = [Counter(w for text in texts for w in text.split()) for texts in (refused, answered)]
        self.kinds = len({*self.counts[0], *self.counts[1]}) + 1
        self.totals = [sum(count.values()) for count in self.counts]

    def score(self, request: str) -> float:
        """Log-likelihood ratio in nats: above 0 the words speak for a refusal."""
        return sum(
            math.log((self.counts[0][word] + 1) / (self.totals[0] + self.kinds))
            - math.log((self.counts[1][word] + 1) / (self.totals[1] + self.kinds))
            for word in request.split()
        )


def rates(harmful: Sequence[float], harmless: Sequence[float], threshold: float) -> tuple[float, float]:
    """The shares refused of harmful and of harmless requests, by their scores."""
    refused = [sum(score > threshold for score in scores) for scores in (harmful, harmless)]
    return refused[0] / len(harmful), refused[1] / len(harmless)


def sweep(harmful: Sequence[float], harmless: Sequence[float]) -> list[tuple[float, float]]:
    """Both rates at every threshold that makes a difference, from refusing nothing to refusing everything."""
    thresholds = [math.inf, *sorted({*harmful, *harmless}, reverse=True), -math.inf]
    return [rates(harmful, harmless, threshold) for threshold in thresholds]


def area(curve: Sequence[tuple[float, float]]) -> float:
    """The area below a sweep: refusals over over-refusals, by trapezoids."""
    return sum((x1 - x0) * (y0 + y1) / 2 for (y0, x0), (y1, x1) in pairwise(curve))


def pairs_in_order(harmful: Sequence[float], harmless: Sequence[float]) -> float:
    """The share of pairs in which the harmful request scores higher; ties count half. It equals `area`."""
    won = sum((a > b) + 0.5 * (a == b) for a in harmful for b in harmless)
    return won / len(harmful) / len(harmless)


def content_and_position(first: float, second: float) -> tuple[float, float]:
    """Split a judge's two margins: for the answer a in the first place, and with the answers exchanged."""
    return (first - second) / 2, (first + second) / 2


def flipped(first: float, second: float) -> bool:
    """Whether the verdict names the same place in both orders, that is another answer in each."""
    return (first > 0) == (second > 0)


def slope(lengths: Sequence[float], scores: Sequence[float]) -> float:
    """What one unit of length adds to a score: least squares over items whose own means are taken off."""
    x, y = sum(lengths) / len(lengths), sum(scores) / len(scores)
    above = sum((a - x) * (b - y) for a, b in zip(lengths, scores, strict=True))
    return above / sum((a - x) ** 2 for a in lengths)


class ByteModel:
    """A byte n-gram with back-off: the next byte after the longest context that training has seen.

    Args:
        text: what it is trained on.
        order: most bytes of a context.
    """

    def __init__(self, text: bytes, order: int = 16) -> None:
        self.order, self.seen = order, defaultdict[bytes, Counter[int]](Counter)
        for at in range(len(text)):
            for size in range(min(order, at) + 1):
                self.seen[text[at - size : at]][text[at]] += 1

    def loglikelihood(self, context: bytes, continuation: bytes) -> float:
        """Score of a continuation in nats: relative frequencies, and a fixed factor for every byte of context
        that is given up ("stupid back-off"; so it does not sum to one).
        """
        total, text = 0.0, context
        for byte in continuation:
            kept = text[max(0, len(text) - self.order) :]
            while kept and (kept not in self.seen or not self.seen[kept][byte]):
                kept, total = kept[1:], total + math.log(BACK_OFF)
            counts = self.seen[kept]
            total += math.log(counts[byte] / sum(counts.values()) if counts[byte] else 1 / 256)
            text += bytes([byte])
        return total

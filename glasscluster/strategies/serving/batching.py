"""Batching: which requests run together at each step, in static batches or by continuous batching.

Continuous batching follows Orca (Yu et al., OSDI'22, section 3), which chooses the batch anew at every step,
and vLLM (Kwon et al., 2309.06180, section 4.5), which preempts a request when the blocks of its key-value
cache run out:

    static      admit up to n requests that have arrived; all slots run until the longest request has ended;
                then admit the next batch
    continuous  at every step, in order of arrival:
                  1. each running sequence reserves cache for one more token; where no block is left, the
                     sequence that arrived last is preempted: it frees its blocks and goes back to the head of
                     the queue, to be recomputed (its prompt and its tokens so far, in one prefill)
                  2. if none was preempted, waiting requests are admitted while a slot and enough blocks for
                     their tokens are free
                  3. all of them run one step together: a new request its whole prompt, the others one token

Continuous batching cannot deadlock: the oldest running sequence is never preempted for another one, and
`check` has made sure that each request fits into the cache alone, so every step brings the oldest nearer to
its end. A policy does not know how many tokens a request will generate; after each step it receives the
requests that ended in it.

A serving plan (`Schedule`) is the list of these decisions, with times from a virtual clock. It is made before
the run, as in exchange/arrivals.py and for the same reason: which request comes first depends on time, and a
recording has none.

But: a request states how many tokens it generates, as in a trace (a real server ends at an end-of-sequence
token, which no plan can know beforehand); a prompt is prefilled in one step (no chunked prefill); first come,
first served; nothing is swapped to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from glasscluster.base.errors import InputError


@dataclass(frozen=True)
class Request:
    """A prompt that arrives at `arrival_s` (seconds) and is answered with `tokens` tokens."""

    prompt: tuple[int, ...]
    tokens: int
    arrival_s: float = 0.0

    @property
    def cached(self) -> int:
        """Tokens in the cache when the request has ended. The last token chosen is never fed back."""
        return len(self.prompt) + self.tokens - 1


@dataclass(frozen=True)
class Work:
    """What a step computes of one request: `count` new tokens, after `start` tokens that are in the cache.

    A count of 0 means that the request has ended but still occupies its slot in a static batch.
    """

    slot: int
    request: int
    start: int
    count: int


@dataclass(frozen=True)
class Step:
    """One forward pass: the requests that it computes.

    Before it the caches of the `cleared` slots (of the last static batch) and of the `preempted` requests,
    given as (slot, request), are freed.
    """

    work: tuple[Work, ...]
    cleared: tuple[int, ...] = ()
    preempted: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Schedule:
    """A serving plan: its steps in order, and when each begins and ends on the clock it was planned with.

    `times` are (begin, end) in seconds, one pair for each step.
    """

    policy: str
    slots: int
    steps: tuple[Step, ...]
    times: tuple[tuple[float, float], ...] = field(compare=False)

    @property
    def preemptions(self) -> list[int]:
        """The requests that were preempted, in order; one that was preempted twice is there twice."""
        return [request for step in self.steps for _, request in step.preempted]


class Policy(Protocol):
    """Chooses what each step computes. It depends on neither the model nor the hardware."""

    slots: int

    def next(self, now: float) -> Step | None:
        """The step to run at time `now` (seconds); None when no request is running or has arrived."""

    def done(self, step: Step, ended: set[int]) -> None:
        """Take note that a step is over, and that the requests `ended` got their last token in it."""

    @property
    def waiting(self) -> list[int]:
        """The requests that have not been admitted yet, or were preempted, in the order of admission."""


class Static:
    """Static batching: a batch is filled once, and the next one starts when its longest request has ended."""

    def __init__(self, requests: Sequence[Request], slots: int) -> None:
        self.requests, self.slots = requests, slots
        self.waiting = in_order(requests)
        self.batch: list[int] = []
        self.length: dict[int, int] = {}  # cached tokens of the batch's requests
        self.over: set[int] = set()

    def next(self, now: float) -> Step | None:
        """The next step of the current batch, or the first of a new one when all its requests have ended."""
        cleared: tuple[int, ...] = ()
        if self.over == set(self.batch):
            batch = [r for r in self.waiting if self.requests[r].arrival_s <= now][: self.slots]
            if not batch:
                return None
            cleared = tuple(range(len(self.batch)))
            self.batch, self.waiting = batch, [r for r in self.waiting if r not in batch]
            self.length, self.over = dict.fromkeys(batch, 0), set()
        counts = [
            0 if r in self.over else 1 if self.length[r] else len(self.requests[r].prompt) for r in self.batch
        ]
        work = tuple(
            Work(slot, r, self.length[r], n)
            for slot, (r, n) in enumerate(zip(self.batch, counts, strict=True))
        )
        return Step(work, cleared)

    def done(self, step: Step, ended: set[int]) -> None:
        """Take note of the requests that ended; they stay in their slots until the batch is over."""
        self.over |= ended
        for work in step.work:
            self.length[work.request] += work.count


class Continuous:
    """Continuous batching: requests are admitted, and may be preempted, at every step.

    The cache consists of `blocks` blocks with room for `block` tokens each.
    """

    def __init__(self, requests: Sequence[Request], slots: int, block: int, blocks: int) -> None:
        self.requests, self.slots, self.block, self.unused = requests, slots, block, blocks
        self.waiting = in_order(requests)
        self.running: dict[int, int] = {}  # request -> slot
        self.rank = {r: i for i, r in enumerate(self.waiting)}  # place in the order of arrival
        self.length = dict.fromkeys(self.waiting, 0)  # tokens in the cache
        self.tokens = {r: len(requests[r].prompt) for r in self.waiting}  # of the prompt and generated so far
        self.held = dict.fromkeys(self.waiting, 0)  # blocks that the request occupies

    def next(self, now: float) -> Step | None:
        """Reserve cache for the running requests (preempting where needed), then admit waiting ones."""
        preempted = []
        for r in self.by_age():
            while r in self.running and not self.take(r):
                preempted.append(self.give_up(self.by_age()[-1]))
        while not preempted and self.waiting and len(self.running) < self.slots:
            r = self.waiting[0]
            if self.requests[r].arrival_s > now or not self.take(r):
                break
            self.waiting.remove(r)
            self.running[r] = min(set(range(self.slots)) - set(self.running.values()))
        work = [
            Work(self.running[r], r, self.length[r], self.tokens[r] - self.length[r]) for r in self.by_age()
        ]
        return Step(tuple(sorted(work, key=lambda w: w.slot)), (), tuple(preempted)) if work else None

    def done(self, step: Step, ended: set[int]) -> None:
        """Count the new tokens, and free the slots and blocks of the requests that ended."""
        for work in step.work:
            self.length[work.request] += work.count
            self.tokens[work.request] += 1
        for r in ended:
            self.release(r)

    def by_age(self) -> list[int]:
        """The running requests, in the order of their arrival."""
        return sorted(self.running, key=self.rank.__getitem__)

    def take(self, r: int) -> bool:
        """Reserve the blocks that all of a request's tokens need; False if too few are free."""
        more = -(-self.tokens[r] // self.block) - self.held[r]
        if more > self.unused:
            return False
        self.held[r], self.unused = self.held[r] + more, self.unused - more
        return True

    def give_up(self, r: int) -> tuple[int, int]:
        """Preempt a request: free its cache and put it at the head of the queue. Its tokens are not lost.

        Returns (slot, request).
        """
        slot = self.running[r]
        self.release(r)
        self.waiting.insert(0, r)
        return slot, r

    def release(self, r: int) -> None:
        """Free the slot and the blocks of a request."""
        del self.running[r]
        self.unused, self.held[r], self.length[r] = self.unused + self.held[r], 0, 0


def in_order(requests: Sequence[Request]) -> list[int]:
    """The indices of the requests by time of arrival; requests with equal times by index."""
    return sorted(range(len(requests)), key=lambda r: (requests[r].arrival_s, r))


def plan(requests: Sequence[Request], policy: Policy, clock: Callable[[Step], float]) -> Schedule:
    """Run a policy on a virtual clock, without a model: the steps that it chooses, and when each one runs.

    Args:
        requests: what arrives, and when.
        policy: chooses the steps; it must not have been used before.
        clock: `clock(step)` is how long a step takes, in seconds.

    Returns:
        The plan. Where no request is there, time jumps to the next arrival.
    """
    now, steps, times, chosen = 0.0, list[Step](), list[tuple[float, float]](), [0] * len(requests)
    while True:
        step = policy.next(now)
        if step is None:
            if not policy.waiting:
                return Schedule(type(policy).__name__.lower(), policy.slots, tuple(steps), tuple(times))
            now = max(now, requests[policy.waiting[0]].arrival_s)
            step = policy.next(now)
            assert step is not None, "a request that fits alone was not admitted to an empty server"
        for work in step.work:
            chosen[work.request] += work.count > 0
        policy.done(
            step,
            {w.request for w in step.work if w.count and chosen[w.request] == requests[w.request].tokens},
        )
        end = now + clock(step)
        steps.append(step)
        times.append((now, end))
        now = end


def check(
    requests: Sequence[Request], slots: int, block: int = 0, blocks: int = 0, seq: int | None = None
) -> None:
    """Check that every request can be served.

    Args:
        requests: what is to be served.
        slots: sequences that a step computes at most.
        block: tokens that a block of the paged cache has room for; 0 for a static cache.
        blocks: blocks of the paged cache.
        seq: positions of the model, if they are limited.

    Raises:
        InputError: with the request that could never be served, or the size that is too small.
    """
    if not requests:
        raise InputError("requests", 0, "there is nothing to serve", [1])
    if slots < 1:
        raise InputError("slots", slots, "needs at least one", [1])
    for number, request in enumerate(requests):
        if not request.prompt or request.tokens < 1:
            raise InputError("requests", number, "needs at least one token of prompt and one new token")
        if seq is not None and request.cached > seq:
            raise InputError(
                "requests", number, f"takes {request.cached} positions, the model has {seq}", [seq]
            )
        if block and request.cached > block * blocks:
            rule = (
                f"request {number} has {request.cached} tokens in the end, "
                f"{blocks} blocks hold {block * blocks}: it would never finish"
            )
            raise InputError("blocks", blocks, rule, [-(-request.cached // block)])


# ---- theory ------------------------------------------------------------------------------------------------
def predict_static(
    requests: Sequence[Request], batches: Sequence[Sequence[int]], slots: int
) -> tuple[int, int]:
    """Eq 33: the waste of static batching, as (slots computed, slots that generated no token).

    Both are summed over all steps. A batch takes as many steps as its longest request has tokens, so in a
    batch that fills its slots the wasted share is 1 - mean/max of the requests' numbers of tokens.
    """
    computed = slots * sum(max(requests[r].tokens for r in batch) for batch in batches)
    return computed, computed - sum(requests[r].tokens for batch in batches for r in batch)

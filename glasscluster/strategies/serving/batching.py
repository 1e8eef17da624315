"""Who is in which slot at which step: static batches, or iteration-level scheduling with paged memory and
preemption.

Follows Orca (Yu et al., OSDI'22, section 3) for deciding anew at every step, and vLLM (2309.06180, section
4.5) for blocks that run out:

    static      take up to n requests that have arrived; all slots run until the slowest of them has ended;
                then the next batch
    continuous  at every step, in order of arrival:
                  each running sequence gets room for a token; where no block is left, the youngest gives up
                    its blocks, and waits at the head of the queue to be computed again (recomputation: prompt
                    and tokens so far, in one prefill)
                  then, if nobody had to go, those that wait are admitted while there is a slot and blocks
                    for their tokens
                  then all of them run one step together: prompts whole, running sequences one token each
The oldest running sequence never gives way to another, and alone it fits (checked): so every step brings it
nearer its end, and there is no deadlock. A policy never looks at how many tokens a request will have: it
learns after a step which sequences ended. A plan is these decisions written down with the steps' times from a
clock, before the run, as arrivals.py does and for the same reason: what comes first depends on time, which a
recording does not know. But: a request comes with its number of tokens, as in a trace (an end-of-sequence
token is known only when it is chosen, and the plan is made before); a prompt is taken in at once (no chunks);
first come, first served; nothing is swapped to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from glasscluster.base.errors import InputError


@dataclass(frozen=True)
class Request:
    """A prompt that arrives at a time and gets so many tokens."""

    prompt: tuple[int, ...]
    tokens: int
    arrival_s: float = 0.0

    @property
    def cached(self) -> int:
        """Tokens in the cache in the end: the last one that is chosen never is."""
        return len(self.prompt) + self.tokens - 1


@dataclass(frozen=True)
class Work:
    """A request's part in a step: `count` new tokens behind `start` that are cached. None: it has ended and
    holds its slot.
    """

    slot: int
    request: int
    start: int
    count: int


@dataclass(frozen=True)
class Step:
    """What one forward does. Before it slots of a finished batch are cleared, and preempted (slot, request)
    give up their blocks.
    """

    work: tuple[Work, ...]
    cleared: tuple[int, ...] = ()
    preempted: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Schedule:
    """Steps in order, and when each began and ended on the clock they were planned with, in seconds."""

    policy: str
    slots: int
    steps: tuple[Step, ...]
    times: tuple[tuple[float, float], ...] = field(compare=False)

    @property
    def preemptions(self) -> list[int]:
        """Requests that had to leave, in that order."""
        return [request for step in self.steps for _, request in step.preempted]


class Policy(Protocol):
    """Decides each step; the same whoever carries it out."""

    slots: int

    def next(self, now: float) -> Step | None:
        """What to do now; None where nobody is there."""

    def done(self, step: Step, ended: set[int]) -> None:
        """A step is over, and these requests had their last token in it."""

    @property
    def waiting(self) -> list[int]:
        """Requests that are still to be admitted, in order."""


class Static:
    """A batch is filled once and waits for its slowest."""

    def __init__(self, requests: Sequence[Request], slots: int) -> None:
        self.requests, self.slots = requests, slots
        self.waiting = in_order(requests)
        self.batch: list[int] = []
        self.length: dict[int, int] = {}  # cached tokens of the batch's requests
        self.over: set[int] = set()

    def next(self, now: float) -> Step | None:
        """The batch's next step; a new batch when all of the last have ended."""
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
        """Who ended stays in its slot."""
        self.over |= ended
        for work in step.work:
            self.length[work.request] += work.count


class Continuous:
    """Slots and blocks are handed out anew at every step."""

    def __init__(self, requests: Sequence[Request], slots: int, block: int, blocks: int) -> None:
        self.requests, self.slots, self.block, self.unused = requests, slots, block, blocks
        self.waiting = in_order(requests)
        self.running: dict[int, int] = {}  # request -> slot
        self.rank = {r: i for i, r in enumerate(self.waiting)}  # of age
        self.length = dict.fromkeys(self.waiting, 0)  # tokens that are cached
        self.tokens = {r: len(requests[r].prompt) for r in self.waiting}  # that there are, prompt and chosen
        self.held = dict.fromkeys(self.waiting, 0)  # blocks

    def next(self, now: float) -> Step | None:
        """Room for those that run, then whoever can be admitted."""
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
        """Who ended frees its slot and blocks at once."""
        for work in step.work:
            self.length[work.request] += work.count
            self.tokens[work.request] += 1
        for r in ended:
            self.release(r)

    def by_age(self) -> list[int]:
        """Running requests, the one that came first first."""
        return sorted(self.running, key=self.rank.__getitem__)

    def take(self, r: int) -> bool:
        """Blocks for all of a request's tokens, if there are so many."""
        more = -(-self.tokens[r] // self.block) - self.held[r]
        if more > self.unused:
            return False
        self.held[r], self.unused = self.held[r] + more, self.unused - more
        return True

    def give_up(self, r: int) -> tuple[int, int]:
        """Back to the head of the queue: its tokens are kept, its keys and values are not."""
        slot = self.running[r]
        self.release(r)
        self.waiting.insert(0, r)
        return slot, r

    def release(self, r: int) -> None:
        """Its slot and blocks are free."""
        del self.running[r]
        self.unused, self.held[r], self.length[r] = self.unused + self.held[r], 0, 0


def in_order(requests: Sequence[Request]) -> list[int]:
    """By arrival, of equals by number."""
    return sorted(range(len(requests)), key=lambda r: (requests[r].arrival_s, r))


def plan(requests: Sequence[Request], policy: Policy, clock: Callable[[Step], float]) -> Schedule:
    """Play the policy on a clock: clock(step) is how long a step takes, in seconds. An empty server waits for
    the next arrival.
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
    """InputError naming the request that can never be served. block 0: a static cache."""
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
    """Eq 33: (slots computed, of them without a token) over all steps of static batches, each as long as its
    slowest request.

    Of a batch that fills its slots the share is 1 - mean/max of its requests' tokens.
    """
    computed = slots * sum(max(requests[r].tokens for r in batch) for batch in batches)
    return computed, computed - sum(requests[r].tokens for batch in batches for r in batch)

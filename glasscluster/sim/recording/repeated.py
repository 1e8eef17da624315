"""Actions that repeat are recorded once: what one recorded is kept, and recorded again without running it.

A pipeline's rank does the same for every micro-batch: F and B of a stage, each thousands of kernels and
messages. On the dry backend nothing depends on values, so each micro-batch but the first and the last leaves
the same rows behind, at another place. An action is emitted (recorded from its template, and not run) only
where that is checked:

    micro-batch   0     1     2     3     4    ...   m-3   m-2   m-1
    F             run   run   run   emit  emit       emit  run   run
    B             run   run   run   emit  emit       emit  run   run*      * another key: it is the last

    key        what the executor says: kind, stage, and whether it is the last of a step
    state      what lasts beyond a micro-batch when it begins (parameters gathered or not, buckets), and what
               the action is given and was kept for it
    twice      an action is emitted after two runs with the same key and state recorded equal templates
               (template.py says what a template is)
    compared   whatever is run is compared with what is known of its key and state; so the last ones say that
               what was emitted between was right

All actions of a micro-batch on a stage are emitted or none (a `chain`): a backward cannot run without its
forward. So a forward is emitted before it is sure that its backward can be. If it turns out that it cannot,
`NotRepeated` is raised, and the backend records the rank again, running everything.

What is not an action (the pipeline's messages, the optimizer's step) is always run. A strategy knows nothing
of all this, but that its action runs within `Repeated.run`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from glasscluster.sim.recording.events import CATEGORIES
from glasscluster.sim.recording.memory import Ledger
from glasscluster.sim.recording.placing import placed
from glasscluster.sim.recording.recorder import Recorder
from glasscluster.sim.recording.template import Begin, Held, Queue, Template, Unlike, taken

FIRST = 3  # of each key so many are run: the first differs from all others (no collective before it)
TWICE = 2  # equal runs before one is emitted
ACTIVATIONS = CATEGORIES.index("activations")

Made = tuple[Tensor | None, Any]  # what an action hands on to others, and to the next of its chain
State = tuple[tuple[int, Held], ...]


class NotRepeated(BaseException):
    """What was emitted does not go on as it was recorded: the rank is to be recorded again, all of it run.

    No program's `except Exception` may take it.
    """


@dataclass(frozen=True)
class Step:
    """An action: what it is, of which chain, and where hidden state may lie that it shares with others.

    Two actions of one key and state record the same.
    """

    key: Hashable
    chain: Hashable
    place: Hashable


@dataclass
class Chain:
    """A micro-batch on a stage: is it emitted, and the storages that live for its next action."""

    begun: bool = False
    emitted: bool = False
    kept: list[int] = field(default_factory=list)
    held: tuple[Held, ...] = ()
    known: bool = True  # False: what is kept for it cannot be told


@dataclass
class Known:
    """What is known of a key and state: the last template, and how often it was recorded in a row."""

    template: Template
    times: int = 1
    emitted: bool = False


class EachTime:
    """Runs every action."""

    def begin(self, steps: Sequence[Step], journals: Sequence[list[Any]] = ()) -> None:
        """A step begins (see `Repeated.begin`)."""

    def run(self, step: Step, lent: list[Tensor], given: list[Tensor], do: Callable[[], Made]) -> Made:
        """Run an action (see `Repeated.run`)."""
        return do()


class Repeated(EachTime):
    """Runs an action, or emits it.

    Args:
        recorder: writes down what this rank does.
        ledger: counts the bytes that live on it.
        queues: its communicators.
    """

    def __init__(self, recorder: Recorder, ledger: Ledger, queues: Sequence[Queue]) -> None:
        self.recorder, self.ledger, self.queues = recorder, ledger, queues
        self.emitted = 0  # actions

    def begin(self, steps: Sequence[Step], journals: Sequence[list[Any]] = ()) -> None:
        """A step begins; nothing is known.

        Args:
            steps: its actions, in the order in which they will come.
            journals: lists that actions append to; an emitted one appends what it did before.
        """
        if any(reference is None for *_, reference, _ in self.ledger.live.values()):
            raise NotRepeated("something that was emitted in an earlier step lives on")
        self.journals = journals
        self.steps, self.known, self.chains = list(steps), dict[Any, Known](), dict[Hashable, Chain]()
        self.lasting = self.ledger.next_number
        self.stateful = False  # whether an action changes what was there when the step began
        self.unlike = dict[Hashable, str]()  # by key: why it has no template
        self.left: State | None = None  # what lasted after the last action that ran
        self.to_run = {False: first_and_last(self.steps)}

    def run(self, step: Step, lent: list[Tensor], given: list[Tensor], do: Callable[[], Made]) -> Made:
        """Run an action, or emit it where it is known what it records.

        Args:
            step: the action; its own micro-batch is the recorder's.
            lent: the tensors from outside that it uses.
            given: those that it takes: `do` empties the list, so that nobody else holds them, and the action
                frees them, or keeps them for the next of its chain.
            do: runs it. Returns a tensor for others (None: there is none), and something for the next action
                of its chain.

        Returns:
            What `do` returns; of an emitted action a tensor of the same shape, and None.

        Raises:
            NotRepeated: if something that was emitted does not go on as it was recorded.
        """
        if self.recorder.paused:
            return super().run(step, lent, given, do)
        chain = self.chains.setdefault(step.chain, Chain())
        state = self._state()
        shapes = tuple(tuple(self._looks(x) for x in tensors) for tensors in (lent, given))
        key = (step.key, shapes, chain.held, state)
        known = self.known.get(key)
        if known is not None and (known.times < TWICE or not self._fits(known.template)):
            known = None
        if not chain.begun:
            chain.begun = True
            chain.emitted = known is not None and step.chain not in self._run_at_least()
        if chain.emitted:
            if known is None:
                raise NotRepeated(
                    f"nothing is known of {step} as it comes here; {self.unlike.get(step.key, '')}"
                )
            return self._emit(known, chain, lent, given), None
        if self.emitted and self.left is not None and state != self.left:
            raise NotRepeated(f"{step} would run on what an emitted action has not really changed")
        return self._really(key, chain, lent, given, do)

    # ---- run, and learn ------------------------------------------------------------------------------------
    def _really(
        self, key: Any, chain: Chain, lent: list[Tensor], given: list[Tensor], do: Callable[[], Made]
    ) -> Made:
        begin = self._begin(chain, lent, given)
        begin.open()
        known = chain.known and all(number in begin.live for number in chain.kept)
        made = do()
        self.left = self._state()
        self.stateful |= _there(self.left) != _there(key[-1])
        try:
            template = taken(begin, made[0])
            if not known:
                raise Unlike("what it was kept is gone")
        except Unlike as why:
            chain.known, self.unlike[key[0]] = False, str(why)
            before = self.known.pop(key, None)
            if before is not None and before.emitted:
                raise NotRepeated(f"{key[0]}: {why}") from None
            return made
        chain.kept = [number for number, _ in template.living(begin)]
        chain.held = tuple(held for *_, held in template.kept)
        self._learn(key, template)
        return made

    def _learn(self, key: Any, template: Template) -> None:
        known = self.known.get(key)
        if known is not None and known.template.same(template):
            known.times += 1
            return
        if known is not None and known.emitted:
            raise NotRepeated(f"{key[0]} recorded something else than was emitted")
        self.known[key] = Known(template)

    # ---- emit ----------------------------------------------------------------------------------------------
    def _emit(self, known: Known, chain: Chain, lent: list[Tensor], given: list[Tensor]) -> Tensor | None:
        known.emitted = True
        self.emitted += 1
        template = known.template
        device = (lent or given)[0].device if template.output else None
        now = self._begin(chain, lent, given)
        made = placed(template, now, device)
        chain.kept = [number for number, _ in template.living(now)]
        chain.held = tuple(held for *_, held in template.kept)
        return made

    def _fits(self, template: Template) -> bool:
        """Whether memory holds it: a run that is out of memory says where."""
        capacity = self.ledger.capacity
        return capacity is None or self.ledger.total + template.rise <= capacity

    # ---- what is looked at ---------------------------------------------------------------------------------
    def _begin(self, chain: Chain, lent: list[Tensor], given: list[Tensor]) -> Begin:
        return Begin(
            self.recorder, self.ledger, self.queues, chain.kept, lent, given, self.lasting, self.journals
        )

    def _state(self) -> State:
        """What lives and is no micro-batch's own: what was there when the step began, and what is no
        activation.
        """
        lasting = self.lasting
        return tuple(
            sorted(
                (number if number < lasting else -1, (category, nbytes, name))
                for category, nbytes, name, _, number in self.ledger.live.values()
                if category != ACTIVATIONS or number < lasting
            )
        )

    def _looks(self, x: Tensor) -> Hashable:
        entry = self.ledger.live.get(x.untyped_storage()._cdata)
        return x.shape, x.stride(), x.dtype, entry and entry[:3]

    def _run_at_least(self) -> set[Hashable]:
        """The chains that are run whatever is known."""
        if self.stateful not in self.to_run:
            self.to_run[True] = alike(self.steps)
        return self.to_run[self.stateful]


def _there(state: State) -> list[tuple[int, Held]]:
    """What of a state was there when the step began."""
    return [entry for entry in state if entry[0] >= 0]


def first_and_last(steps: Sequence[Step]) -> set[Hashable]:
    """Chains to run: of each key the first ones, and the last."""
    seen, chosen, last = Counter[Hashable](), set[Hashable](), dict[Hashable, Hashable]()
    for step in steps:
        if seen[step.key] < FIRST:
            chosen.add(step.chain)
        seen[step.key] += 1
        last[step.key] = step.chain
    return chosen | set(last.values())


def alike(steps: Sequence[Step]) -> set[Hashable]:
    """Chains to run where an action changes what lasts, so that each one that runs finds what it would have.

    What lasts at a place (a stage) depends on the last action there. So of each key the first ones are run
    after each such action at all places, and an action runs only if the last one before it that ran, at each
    place, has the key of the last one before it.
    """
    seen, last = Counter[Hashable](), dict[Hashable, Step]()
    before = list[dict[Hashable, Step]]()
    chosen = first_and_last(steps)
    for step in steps:
        before.append(dict(last))
        context = step.key, frozenset((place, s.key) for place, s in last.items())
        if seen[context] < FIRST:
            chosen.add(step.chain)
        seen[context] += 1
        last[step.place] = step
    while True:
        ran, more = dict[Hashable, Hashable](), set[Hashable]()
        for step, earlier in zip(steps, before, strict=True):
            if step.chain not in chosen:
                continue
            more |= {s.chain for place, s in earlier.items() if ran.get(place) != s.key}
            ran[step.place] = step.key
        if not more:
            return chosen
        chosen |= more

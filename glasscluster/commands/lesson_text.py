"""A lesson on the terminal: the question first, and the answer only when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glasscluster.base.errors import InputError
from glasscluster.base.text import Said
from glasscluster.visualize.words import CATALOGUE

if TYPE_CHECKING:
    from glasscluster.scenarios.requests.scenarios import RunRequest
    from glasscluster.scenarios.scenario import Scenario


def check_guess(chosen: Scenario, request: RunRequest) -> None:
    """Refuse a guess of what asks for none, and one that cannot be, before anything runs.

    Raises:
        InputError: the scenario is no lesson, or the guess lies outside the question's range.
    """
    if request.guess is None and not request.answer:
        return
    taught: Any = getattr(chosen, "lesson", None)
    if taught is None:
        field = "guess" if request.guess is not None else "answer"
        raise InputError(
            field,
            True if request.guess is None else request.guess,
            f"{chosen.name} is no lesson, and asks nothing",
        )
    prompts = list(taught.texts.content.get("ask", {}).values())
    if request.guess is None or len(prompts) != 1 or "range" not in prompts[0]:
        return
    low, high = prompts[0]["range"]
    if isinstance(low, str) or isinstance(high, str):  # known when it has run
        return
    if not low <= request.guess <= high:
        unit = prompts[0].get("unit", {}).get("en")
        within = f"the answer lies between {low:g} and {high:g}" + (f" {unit}" if unit else "")
        raise InputError("guess", request.guess, within)


def show_question(lab: Any, guess: float | None) -> None:
    """The question and what to predict; with a guess, how far it was off."""
    question, prompt = lab.scenario.lesson.question, lab.prompt
    say("question", question)
    say("predict", prompt.text)
    limits = f" {prompt.low:g}…{prompt.high:g}" if prompt.low is not None else ""
    unit = prompt.unit.en if prompt.unit.en == prompt.unit.zh else f"{prompt.unit.en} · {prompt.unit.zh}"
    print(f"({unit}{limits})\n")
    if guess is not None:
        both(prompt.judged(guess))
        print()


def show_findings(lab: Any) -> None:
    """The story's sentences, and what was found."""
    for text, _ in lab.story:
        print(f"- {text.en}\n  {text.zh}")
    print(f"\n{lab.finding.en}\n{lab.finding.zh}")


def show_lesson(lab: Any) -> None:
    """The explanation, the misconception, the card with its follow-up questions, and the code that ran."""
    from rich.console import Console
    from rich.syntax import Syntax

    taught, card = lab.scenario.lesson, lab.filled_card()
    print()
    if lab.explanation:
        say("explain", lab.explanation)
    say("misconception", lab.misconception())
    say("card", card.question)
    both(card.short)
    both(card.long)
    if lab.own:
        say("own_number", lab.own)
    head("follow_ups")
    for follow_up in card.follow_ups:
        both(follow_up.question, "- ")
        if follow_up.answer:
            both(follow_up.answer, "  ")
        if follow_up.lesson:
            print(f"  glass run {follow_up.lesson}")
    console = Console(highlight=False)
    for shown in taught.code():
        print(f"\n{shown.caption.en} · {shown.caption.zh}\n{shown.path}:{shown.first}")
        console.print(Syntax(shown.text, "python", line_numbers=True, start_line=shown.first, word_wrap=True))
    print()


def head(key: str) -> None:
    """A heading in both languages."""
    print(f"{CATALOGUE[key].en} · {CATALOGUE[key].zh}")


def say(key: str, text: Said) -> None:
    """A heading, and the text below it."""
    head(key)
    both(text)
    print()


def both(text: Said, mark: str = "") -> None:
    """A text in both languages, below each other."""
    print(f"{mark}{text.en}\n{' ' * len(mark)}{text.zh}")

"""`glass run`: a scenario or a lesson, with the options that its function's signature has."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from glasscluster.base.errors import InputError
from glasscluster.base.requests import build
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, is_leader, progress, verdict
from glasscluster.commands.failures import UsageError, named, usage, value_of
from glasscluster.commands.lesson_text import check_guess, show_findings, show_lesson, show_question
from glasscluster.commands.options import CONTEXT, dressed, given_in, parameters, shown
from glasscluster.scenarios.requests.scenarios import RunRequest

if TYPE_CHECKING:
    from glasscluster.scenarios.declared import Declared
    from glasscluster.scenarios.scenario import Scenario

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
SHARED = "and --backend --device --seed --hardware --timeout --out --request --json, as in `glass run --help`"


def run(context: typer.Context, scenario: str, as_json: bool) -> int:
    """Run a scenario: `glass run tour`, `glass run my_lesson.py`.
    Its own options: `glass run NAME --help`.
    """
    words = list(context.args)
    if scenario in ("--help", "-h"):
        print(context.get_help())
        return 0
    if "--help" in words or "-h" in words:
        scenario_command(body("declared")(scenario) or body("find")(scenario), scenario).main(
            ["--help"],
            f"glass run {scenario}",
            standalone_mode=False,
        )
        return 0
    given = given_in(context)
    own = {name: given.pop(name) for name in list(given) if name not in RunRequest.names()}
    request: RunRequest = build(RunRequest, given)
    if (says := body("declared")(scenario)) is not None:
        read_options(says, scenario, words, own)  # a wrong option is refused before torch is imported
    with progress() as say:
        say(f"glass run {scenario}")
        chosen = body("find")(scenario)
        options = read_options(chosen, scenario, words, own)
        check_guess(chosen, request)
        lab, report, wall = body("run")(chosen, request, options, say)
    if not is_leader():
        return 0
    if as_json:
        emit(lab.as_json(report))
        return 0 if lab.ok else 1
    if lab.prompt is None:
        show_findings(lab)
        return verdict(lab.all_checks, report, wall, lab.not_checked)
    show_question(lab, request.guess)
    if request.answer or request.guess is not None:
        show_findings(lab)
        show_lesson(lab)
    code = verdict(lab.all_checks, report, wall, lab.not_checked)
    if not request.answer and request.guess is None:
        again = f"glass run {scenario}"
        print(f"answer: {again} --guess NUMBER, or {again} --answer; the report asks you, too")
    return code


# ---- the options of a scenario -----------------------------------------------------------------------
def read_options(
    chosen: Scenario | Declared, scenario: str, words: list[str], own: dict[str, Any]
) -> dict[str, Any]:
    """The scenario's own options, from the words behind `glass run NAME` and from a request's file (`own`).

    Raises:
        InputError: for an option that the scenario does not have, or whose value is not of its kind.
    """
    flags = {name: "--" + name.replace("_", "-") for name in chosen.options}
    for name, value in own.items():
        if name not in flags:
            names = [*RunRequest.names(), *flags]
            raise InputError(name, value, unknown_option(chosen), names, by_name=True)
    made = scenario_command(chosen, scenario)
    try:
        with made.make_context(f"glass run {scenario}", list(words), default_map=own) as context:
            known = (name for name in flags if source_of(context, name) != "DEFAULT")
            return {name: context.params[name] for name in known}
    except UsageError as problem:
        wrong = getattr(problem, "option_name", None) if hasattr(problem, "possibilities") else None
        extra = words[0] if words and not words[0].startswith("-") else None
        if wrong or (extra and getattr(problem, "param", None) is None):
            option = str(wrong or extra)
            names = [*flags, *RunRequest.names()]
            field, value = named(option), value_of([option], words)
            raise InputError(field, value, unknown_option(chosen), names, by_name=True) from None
        raise usage(problem, words) from None


def unknown_option(chosen: Scenario | Declared) -> str:
    """That a scenario does not have an option, and which it has."""
    has = " ".join("--" + name.replace("_", "-") for name in chosen.options)
    return f"{chosen.name} has no such option; it has {has or 'none of its own'}"


def source_of(context: Any, name: str) -> str:
    """Where the value of an option comes from, as click calls it."""
    return str(context.get_parameter_source(name).name)


def scenario_command(chosen: Scenario | Declared, scenario: str) -> Any:
    """A command with the options of a scenario's signature; its help is the story."""
    takes = [parameter(name, p) for name, p in chosen.options.items()]

    def perform(**_values: Any) -> int:
        return 0

    paragraphs = [f"{chosen.title.en} · {chosen.title.zh}", *chosen.story.split("\n\n")]
    story = shown("\n\n".join(" ".join(p.split()) for p in paragraphs))
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command(name=scenario, help=story, epilog=SHARED)(dressed(perform, takes, perform))
    return typer.main.get_command(app)


def parameter(name: str, declared: inspect.Parameter) -> inspect.Parameter:
    """An option like a parameter of a scenario."""
    kind, flag = kind_of(declared), "--" + name.replace("_", "-")
    option = typer.Option(f"{flag}/--no-{flag[2:]}" if kind is bool else flag)
    annotation: Any = Annotated[kind if declared.default is not None else kind | None, option]
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=declared.default,
        annotation=annotation,
    )


def kind_of(declared: inspect.Parameter) -> Any:
    """int, float, bool or str, from the annotation or else from the default."""
    kinds = [k for k in get_args(declared.annotation) if k is not type(None)] or [declared.annotation]
    if kinds[0] in (int, float, bool, str):
        return kinds[0]
    return type(declared.default) if isinstance(declared.default, (int, float, bool)) else str


def _called(**values: Any) -> int:
    return run(values[CONTEXT], values["scenario"], values["json"])


command = dressed(_called, parameters(RunRequest), run)

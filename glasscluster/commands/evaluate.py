"""`glass evaluate`: what a model knows, with standard errors."""

from __future__ import annotations

from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, is_leader, progress, show_checks, verdict
from glasscluster.commands.options import command
from glasscluster.scenarios.requests.evaluate import EvaluateRequest


@command(EvaluateRequest)
def evaluate(request: EvaluateRequest, as_json: bool) -> int:
    """Score a model on tasks made from rules and from held-out text:
    accuracy, exact match, bits a byte, refusals.
    """
    with progress() as say:
        say("glass evaluate: making tasks and model")
        made = body("evaluate")(request, say)
    if not is_leader():
        return 0
    if as_json:
        emit(made.as_json())
        return 0 if made.ok else 1
    for row in made.scores:
        known = ((k, v) for k, v in row.items() if k != "task" and v is not None)
        numbers = (f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in known)
        print(f"{row['task']:12} " + "  ".join(numbers))
    for name, items in made.contaminated.items():
        print(f"{name:12} {items} items are in the training text")
    show_checks(made.checks)
    return verdict(made.checks, None, not_checked=made.not_checked)

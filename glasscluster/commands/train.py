"""`glass train`: train a GPT with a plan, check it against one device, count it, draw it."""

from __future__ import annotations

from glasscluster.base.quantities import written_time
from glasscluster.base.text import counted
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, is_leader, progress, show_checks, show_time, verdict
from glasscluster.commands.options import command
from glasscluster.scenarios.requests.train import TrainRequest


@command(TrainRequest)
def train(request: TrainRequest, as_json: bool) -> int:
    """Train a GPT with a plan, check it against one device, count it, draw it."""
    with progress() as say:
        size = f", {request.shape.parameters():,} parameters" if request.shape else ""
        say(f"glass train: {counted(request.plan.gpus, 'GPU')}{size}")
        trained = body("train")(request, say)
    if not is_leader():
        return 0
    if as_json:
        emit(trained.as_json())
        return 0 if trained.ok else 1
    print(f"loss {', '.join(f'{float(x):.4f}' for x in trained.run.results[-1].losses[-5:])}")
    for source in (trained.read or {}).get("sources", []):
        print(f"{source['source']}: {source['epochs']:.3g} epochs of {source['tokens']:,} tokens")
    t = trained.timeline
    print(f"{written_time(t.makespan)} a step on {t.hardware.name} (virtual)")
    show_time(t.last_rank(), t.breakdown(), t.bubble())
    show_checks(trained.checks)
    return verdict(trained.checks, trained.report, not_checked=trained.not_checked)

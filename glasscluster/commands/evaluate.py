"""`glass evaluate`: what a model knows, with standard errors."""

from __future__ import annotations

from typing import Annotated

import typer

from glasscluster.commands.console import Json, emit, is_leader, progress, show_checks, verdict
from glasscluster.commands.options import (
    Device,
    Hardware,
    Precision,
    Preset,
    Seed,
    TensorParallel,
    Weights,
    shaped,
)


@shaped
def evaluate(
    given: dict,
    task: Annotated[list[str] | None, typer.Option(help="a built-in task; may be repeated [default: all]")] = None,
    items: Annotated[int, typer.Option(min=2, help="of each task")] = 100,
    samples: Annotated[int, typer.Option(min=1, help="answers to each prompt, for pass@k")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="of answers; 0: the likeliest token")] = 0.0,
    against: Annotated[list[str] | None, typer.Option(help="training text to look for items in: a file, folder or built-in text")] = None,
    model: Preset = "tiny",
    weights: Weights = None,
    tokenizer: Annotated[str | None, typer.Option(help="a tokenizer.json [default: bytes]")] = None,
    dp: Annotated[int, typer.Option(min=1, help="ranks that share out the items")] = 1,
    tp: TensorParallel = 1,
    precision: Precision = "fp32",
    check: Annotated[bool, typer.Option(help="compare with one device in float64")] = True,
    backend: Annotated[str, typer.Option(help="threads | ray | torchrun")] = "threads",
    device: Device = "cpu",
    seed: Seed = 0,
    hardware: Hardware = "classroom",
    json_: Json = False,
) -> int:
    """Score a model on tasks made from rules and from held-out text: accuracy, exact match, bits a byte, refusals."""
    with progress() as say:
        say("glass evaluate: making tasks and model")
        from glasscluster.scenarios.jobs import evaluation
        from glasscluster.scenarios.jobs.generation import read_model
        from glasscluster.strategies.plan import make_model

        shape = read_model(weights, **given) if weights else make_model(model, **given)
        made = evaluation.evaluate_command(
            shape, tasks=task or [], items=items, samples=samples, temperature=temperature, dp=dp, tp=tp, precision=precision,
            weights=weights, tokenizer=tokenizer, against=against or [], checked=check, backend=backend, device=device, seed=seed,
            hardware=hardware, say=say,
        )  # fmt: skip
    if not is_leader():
        return 0
    if json_:
        emit(made.as_json())
        return 0 if made.ok else 1
    for row in made.scores:
        numbers = (f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "task" and v is not None)
        print(f"{row['task']:12} " + "  ".join(numbers))
    for name, found in made.contaminated.items():
        print(f"{name:12} {found} items are in the training text")
    show_checks(made.checks)
    return verdict(made.checks, None, not_checked=made.not_checked)

"""`glass serve`: requests with arrival times and lengths on one model, in continuous or static batches."""

from __future__ import annotations

from typing import Annotated

import typer

from glasscluster.commands.console import Json, emit, is_leader, progress, show_checks, verdict
from glasscluster.commands.options import (
    AlsoDry,
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
def serve(
    given: dict,
    requests: Annotated[str | None, typer.Option(help='file: a JSON list of {"prompt", "tokens", "arrival_s"} [default: drawn]')] = None,
    count: Annotated[int, typer.Option(min=1, help="requests to draw")] = 12,
    prompt_length: Annotated[int, typer.Option(min=1, help="of drawn requests, on average; exponential")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="new tokens of drawn requests, on average; exponential")] = 12,
    rate: Annotated[float, typer.Option(min=0, help="drawn requests a virtual second; 0: all are there at the start")] = 0.0,
    policy: Annotated[str, typer.Option(help="continuous | static")] = "continuous",
    slots: Annotated[int, typer.Option(min=1, help="requests that run at once")] = 4,
    block: Annotated[int, typer.Option(min=1, help="tokens in a block of the paged cache (continuous)")] = 8,
    blocks: Annotated[int, typer.Option(min=0, help="blocks of the pool; 0: the longest request in every slot")] = 0,
    model: Preset = "tiny",
    weights: Weights = None,
    tp: TensorParallel = 1,
    precision: Precision = "fp32",
    check: Annotated[bool, typer.Option(help="compare with each request alone on one device in float64")] = True,
    backend: AlsoDry = "threads",
    device: Device = "cpu",
    seed: Seed = 0,
    hardware: Hardware = "classroom",
    out: Annotated[str | None, typer.Option(help="folder for a report [default: none is written]")] = None,
    json_: Json = False,
) -> int:
    """Serve requests with a paged cache, deciding at every step who runs; or in static batches that wait for their slowest."""
    with progress() as say:
        say("glass serve: making the model")
        from glasscluster.scenarios.jobs import generation, serving_command
        from glasscluster.strategies.plan import make_model

        shape = generation.read_model(weights, **given) if weights else make_model(model, **given)
        drawn = (count, prompt_length, tokens, rate, shape, seed)
        asked = serving_command.read_requests(requests, shape) if requests else serving_command.draw_requests(*drawn)
        made = serving_command.serve_command(
            shape,
            asked,
            policy=policy,
            slots=slots,
            block=block,
            blocks=blocks,
            tp=tp,
            precision=precision,
            weights=weights,
            checked=check,
            backend=backend,
            device=device,
            seed=seed,
            hardware=hardware,
            say=say,
        )
        report = None
        if out and is_leader():
            say(f"writing a report to {out}")
            report = serving_command.write(made, out)
    if not is_leader():
        return 0
    content = made.as_json()
    if json_:
        emit(content)
        return 0 if made.ok else 1
    print(made.grid())
    first = content["mean_time_to_first_token_s"] * 1e3
    print(f"{len(asked)} requests in {len(content['steps'])} steps, {content['time_s'] * 1e3:.4g} ms on {content['hardware']} (virtual): "
          f"{content['tokens_per_s']:,.0f} tokens/s, first token after {first:.4g} ms on average")  # fmt: skip
    print(f"slots without a token {content['idle_slots_fraction']:.1%}, reserved cache without a token "
          f"{content['empty_cache_fraction']:.1%}, tokens computed again after preemption {content['recomputed_tokens']}")  # fmt: skip
    show_checks(made.checks)
    return verdict(made.checks, report, not_checked=made.not_checked)

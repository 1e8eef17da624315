"""`glass serve`: requests with arrival times and lengths on one model, in continuous or static batches."""

from __future__ import annotations

from glasscluster.base.quantities import written_time
from glasscluster.base.text import counted
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, is_leader, progress, show_checks, verdict
from glasscluster.commands.options import command
from glasscluster.scenarios.requests.serve import ServeRequest


@command(ServeRequest)
def serve(request: ServeRequest, as_json: bool) -> int:
    """Serve requests with a paged cache, deciding at every step who runs;
    or in static batches that wait for their slowest.
    """
    with progress() as say:
        say("glass serve: making the model")
        made, report = body("serve")(request, say)
    if not is_leader():
        return 0
    content = made.as_json()
    if as_json:
        emit(content)
        return 0 if made.ok else 1
    print(made.grid())
    first = written_time(content["mean_time_to_first_token_s"])
    print(
        f"{counted(len(made.job.requests), 'request')} in {counted(len(content['steps']), 'step')}, "
        f"{written_time(content['time_s'])} on {content['hardware']} (virtual): "
        f"{content['tokens_per_s']:,.0f} tokens/s, first token after {first} on average"
    )
    print(
        f"slots without a token {content['idle_slots_fraction']:.1%}, reserved cache without a token "
        f"{content['empty_cache_fraction']:.1%}, "
        f"tokens computed again after preemption {content['recomputed_tokens']}"
    )
    show_checks(made.checks)
    return verdict(made.checks, report, not_checked=made.not_checked)

"""`glass generate`: prompts in, tokens out."""

from __future__ import annotations

from glasscluster.base.quantities import written_bytes, written_count, written_number, written_time
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, is_leader, progress, show_checks, verdict
from glasscluster.commands.options import command
from glasscluster.scenarios.requests.generate import GenerateRequest


@command(GenerateRequest)
def generate(request: GenerateRequest, as_json: bool) -> int:
    """Generate tokens with a cache of keys and values; count the cache, prefill and decode, and time them."""
    with progress() as say:
        say("glass generate: making the model")
        made = body("generate")(request, say)
    if not is_leader():
        return 0
    content = made.as_json()
    if as_json:
        emit(content)
        return 0 if made.ok else 1
    for words, numbers in zip(content["text"], content["tokens"], strict=False):
        print(repr(words) if words is not None else numbers)
    for name in ("prefill", "decode"):
        if phase := content[name]:
            print(
                f"{name:8} {written_time(phase['time_s']):>10} on {content['hardware']} (virtual), "
                f"{written_count(phase['flops'], 'FLOPs')}, {written_bytes(phase['memory_traffic_bytes'])}: "
                f"{written_number(phase['intensity_flops_per_byte'], 3)} a byte, bound by {phase['bound']}"
            )
    show_checks(made.checks)
    return verdict(made.checks, None, not_checked=made.not_checked)

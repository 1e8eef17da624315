"""`glass collective`: one collective on some wires."""

from __future__ import annotations

from typing import Any

from glasscluster.base.quantities import written_rate, written_time
from glasscluster.base.text import counted
from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit, progress
from glasscluster.commands.options import command
from glasscluster.scenarios.requests.collective import CollectiveRequest


@command(CollectiveRequest)
def collective(request: CollectiveRequest, as_json: bool) -> int:
    """One collective on some wires: time, bytes, steps, bus bandwidth, busiest link.

    Recorded dry: no data moves.
    """
    with progress() as say:
        say(f"glass collective: {request.operation} by {request.algorithm} on {counted(request.gpus, 'GPU')}")
        content = body("collective")(request, say)
    if as_json:
        emit(content)
    else:
        show(content, request.contention)
    return 0


def show(content: dict[str, Any], contention: bool | None) -> None:
    """The answer in words; `contention` as it was asked for."""
    took, bus = written_time(content["time_s"], 5), written_rate(content["bus_bandwidth_bytes_per_s"])
    print(f"{took} (virtual, {content['hardware']}), bus bandwidth {bus}")
    if "nccl" in content:
        chosen = content["nccl"]
        how = f"{chosen['protocol']} on {chosen['channels']} channels"
        print(f"NCCL would choose {chosen['algorithm']} with {how}")
    else:
        link, most = content["busiest_link"], max(content["bytes_sent_per_gpu"])
        unshared = "no link is shared" if contention is None else "without contention"
        shared = "messages share links" if content["contention"] else unshared
        print(
            f"{counted(content['steps'], 'step')}, {counted(content['messages'], 'message')}, "
            f"busiest GPU sends {most:,} bytes; "
            f"busiest link {link['from']} → {link['to']}, {link['utilisation_fraction']:.0%} ({shared})"
        )
        if content["roles"]:
            roles = counted(content["roles"], "role")
            print(f"{content['gpus']:,} GPUs have {roles}: one of each was replayed, the others do the same")
    for row in content.get("sweep", []):
        took, bus = written_time(row["time_s"], 5), written_rate(row["bus_bandwidth_bytes_per_s"])
        what = f"{row['algorithm']:20} {row['gpus']:6} GPUs {row['size_bytes']:>16,} B"
        print(f"{what}  {took:>12}  {bus:>12} bus")
    if "report" in content:
        print(f"report: {content['report']}")

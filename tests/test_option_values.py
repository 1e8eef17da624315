"""An option with a closed list of values shows them in its help, as whoever judges it has them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from test_nearest_choice import COMMANDS, refusal

from glasscluster.base.requests import Request
from glasscluster.commands import options
from glasscluster.scenarios.requests import names
from glasscluster.scenarios.requests.evaluate import EvaluateRequest
from glasscluster.scenarios.requests.scenarios import GalleryRequest, RunRequest
from glasscluster.sim.ranks.collectives import ALGORITHMS
from glasscluster.sim.ranks.collectives.own import is_own
from glasscluster.sim.run import BACKENDS, DEVICES
from glasscluster.sim.time.network import BUILDERS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))
import make_contract

REQUESTS: dict[str, type[Request]] = {name: request for name, (request, _, _) in COMMANDS.items()}
REQUESTS |= {"run": RunRequest, "gallery": GalleryRequest, "evaluate": EvaluateRequest}
# A form of which a refusal gives examples; --against takes several names of --algorithm.
EXAMPLES = {"costs", "sweep", "rank", "out", "against"}


def help_of(command: str) -> dict[str, str]:
    """Option -> what its help says."""
    made = make_contract.commands()[command].params
    return {str(o.name).removesuffix("_"): make_contract.text(o) for o in made if o.name}


@pytest.mark.parametrize("command", REQUESTS)
def test_help_lists_every_value_of_every_closed_list(command):
    said, seen = help_of(command), 0
    for name, field, _ in REQUESTS[command].options():
        kind, _ = options.kind_of(field)
        extra: Any = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        values = get_args(kind) if get_origin(kind) is Literal else extra.get("choices", ())
        seen += bool(values)
        assert [v for v in values if str(v) not in said[name]] == [], name
        listed = " | ".join(map(str, values))
        assert not values or f"[{listed}]" in said[name], f"{name}: the list is made from the field"
    assert seen or command == "schedule"  # whose names stand in the help of its argument


@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_a_refusal_offers_stands_in_the_help(command):
    """An option that is judged by a list which nobody declared would show none: so a wrong value is tried."""
    request, _, base = COMMANDS[command]
    said, tried = help_of(command), 0
    for name, field, _ in request.options():
        if (
            str not in {field.annotation, *get_args(field.annotation)}
            and get_origin(field.annotation) is not Literal
        ):
            continue
        refused = refusal(command, {**base, name: "no-such-value"})
        if refused is None or request.called.get(refused.field, refused.field) != name or refused.by_name:
            continue
        offered = [c for c in refused.choices if isinstance(c, str) and c.isascii() and c[:1].isalpha()]
        if not offered or name in EXAMPLES or "glass list" in said[name]:  # where all names are
            continue
        tried += 1
        assert [choice for choice in offered if choice not in said[name]] == [], name
    assert tried


def test_copied_lists_are_those_of_the_registries():
    assert set(names.BACKENDS) == set(BACKENDS) - {"dry"}
    assert set(names.DEVICES) == set(DEVICES)
    assert {n.replace("-", "_") for n in names.COLLECTIVES} == set(ALGORITHMS)
    registered = {n for known in ALGORITHMS.values() for n, steps in known.items() if steps is not None}
    ours = {name for known in ALGORITHMS.values() for name, s in known.items() if s and not is_own(s)}
    assert set(names.ALGORITHMS) == (registered & ours) | {"nccl"}
    assert set(names.TOPOLOGIES) == set(BUILDERS)

"""`glass plan`: the quickest layouts of a model on some GPUs, and why the others are not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from glasscluster.model.config import ModelConfig
from glasscluster.scenarios.jobs.planner_report import write
from glasscluster.scenarios.jobs.prediction import predict
from glasscluster.scenarios.planning.launch import chosen, megatron, torchrun, torchtitan
from glasscluster.scenarios.planning.layouts import SEARCHED, layouts
from glasscluster.scenarios.planning.reasons import reason
from glasscluster.scenarios.planning.search import Found, Layout, search
from glasscluster.scenarios.requests.plan import PlannerRequest
from glasscluster.sim.time.hardware import Hardware, hardware
from glasscluster.strategies.plan import Plan

SHOWN = 10  # layouts whose reason is said
Shape = tuple[int, int, int, int, int]


def plan_command(request: PlannerRequest, say: Callable[[str], None]) -> dict[str, Any]:
    """Run `glass plan`: the `glass.plan/1` object. Raises InputError where no layout is legal."""
    begun, machine, model = time.perf_counter(), hardware(request.hardware), request.shape
    assert model is not None  # `glass plan` has no --weights, so the request has a shape
    fixed = {name: request.given[name] for name in SEARCHED if name in request.given}
    base = common(request, machine)
    machine.gpu.peak(base.precision)
    legal = layouts(request.gpus, model, base, fixed)
    say(f"{len(legal):,} legal layouts of {request.gpus:,} GPUs")
    outcome = search(
        legal, model, machine, lambda plan: measured(plan, model, request.hardware), request.top, say
    )
    content = {
        "schema": "glass.plan/1",
        "hardware": machine.name,
        "gpus": request.gpus,
        "considered": outcome.considered,
        "fitting": outcome.fitting,
        "replayed": outcome.replayed,
        "best": [_shown(layout, request, machine) for layout in outcome.best],
        "why_not": why_not(outcome, machine),
        "wall_s": time.perf_counter() - begun,
        "report": None,
    }
    if request.out is not None:
        content["report"] = str(write(content, outcome, machine, request.out))
    return content


def measured(plan: Plan, model: ModelConfig, machine: str) -> dict[str, Any]:
    """What `glass predict` says of a plan."""
    return predict(plan, model, machine)


def common(request: PlannerRequest, machine: Hardware) -> Plan:
    """What all layouts have in common; without a word about precision, bf16 where the GPU has it."""
    given = {
        k: getattr(request.plan, k) for k in request.given if k in Plan.model_fields and k not in SEARCHED
    }
    if "precision" not in given and "bf16" in machine.gpu.peak_flops:
        given["precision"] = "bf16"
    return Plan(**given)


def _shown(layout: Layout, request: PlannerRequest, machine: Hardware) -> dict[str, Any]:
    assert request.shape is not None
    named = {"model": request.model, **request.shape_given}
    return {
        "plan": chosen(layout.plan),
        **{k: v for k, v in layout.content.items() if k != "schema"},
        "torchrun": torchrun(layout.plan, named, machine),
        "megatron": megatron(layout.plan, request.shape),
        "torchtitan": torchtitan(layout.plan),
    }


def shape_of(layout: Layout) -> Shape:
    """How a layout shares out the GPUs."""
    plan = layout.plan
    return plan.dp, plan.tp, plan.pp, plan.cp, plan.ep


def by_shape(outcome: Found) -> dict[Shape, Layout]:
    """The best layout of each way to share out the GPUs: the quickest of those that may fit, if any may."""
    shapes: dict[Shape, Layout] = {}

    def rank(layout: Layout) -> tuple[bool, float, int]:
        full = not layout.content.get("fits", True) or layout.bytes > capacity
        return full, *layout.order

    capacity = outcome.capacity
    for layout in sorted([*outcome.best, *outcome.others], key=rank):
        shapes.setdefault(shape_of(layout), layout)
    return shapes


def why_not(outcome: Found, machine: Hardware) -> list[dict[str, Any]]:
    """Of every other way to share out the GPUs its best layout with a reason; the ten nearest."""
    if not outcome.best:
        others = sorted(by_shape(outcome).values(), key=lambda layout: layout.bytes)[:SHOWN]
        return [_because(layout, layout, machine) for layout in others]
    first = outcome.best[0]
    taken = {shape_of(layout) for layout in outcome.best}
    others = [layout for shape, layout in by_shape(outcome).items() if shape not in taken]
    return [_because(layout, first, machine) for layout in others[:SHOWN]]


def _because(layout: Layout, best: Layout, machine: Hardware) -> dict[str, Any]:
    said = reason(layout, best, machine)
    return {"plan": chosen(layout.plan), "reason": {"en": said.en, "zh": said.zh}}

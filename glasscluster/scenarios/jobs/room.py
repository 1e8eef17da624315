"""What a run holds in this machine's memory, at least: refused where it is more than there is, and said
before the run begins where it is much.

    training   weights, gradients and optimizer states of all ranks (Eq 15). Its check in float64 keeps the
               gradients and weights of every checked step, those of each replica and those of one device,
               beside the states of one device
    decoding   weights of all ranks, and the cache of keys and values (Eq 3). The check has weights in float64

But: no activations and no buffers, so a run that passes can still be too large. Ranks on other machines
(torchrun, a Ray cluster) and on GPUs are not judged.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from glasscluster.base.errors import InputError
from glasscluster.base.limits import check_bytes, machine_bytes, written_gb
from glasscluster.model.config import ModelConfig
from glasscluster.sim.run import Cluster
from glasscluster.strategies.data.rows import optimizer_state
from glasscluster.strategies.data.zero import predict_state
from glasscluster.strategies.job import Job
from glasscluster.strategies.judge.check import check_job
from glasscluster.strategies.numerics.widths import WIDTH
from glasscluster.strategies.plan import Plan

LARGE = 10**9  # parameters from which on a run says how large it is
MUCH = 0.5  # of the machine's memory


@dataclass(frozen=True)
class Room:
    """What a run needs at least.

    parameters: of the model. what: in words, what the run itself holds. run: bytes of that. checked: bytes
    that it takes with the check in float64; 0 without a check. instead: in words, what needs less.
    """

    parameters: int
    what: str
    run: int
    checked: int = 0
    instead: str = "--backend dry records shapes alone"

    def check(self, cluster: Cluster) -> None:
        """Refuse what is more than this machine's memory, where it would lie there.

        Raises:
            InputError: with both numbers; for `check` where the run fits without it.
        """
        if not all_here(cluster):
            return
        check_bytes("model", f"{self.parameters:,} parameters", self.run, self.what, self.instead)
        memory = machine_bytes()
        if memory is not None and self.checked > memory:
            rule = f"the check in float64 of {self.parameters:,} parameters needs at least "
            rule += f"{written_gb(self.checked)}, and this machine has {written_gb(memory)}; --no-check "
            rule += f"leaves it out: then it is at least {written_gb(self.run)}"
            raise InputError("check", True, rule, [False])

    def said(self, cluster: Cluster) -> str | None:
        """A sentence about a large run: over a billion parameters, or half of the memory; else None."""
        memory, most = machine_bytes(), max(self.run, self.checked)
        if not all_here(cluster) or memory is None:
            return None
        if self.parameters <= LARGE and most <= MUCH * memory:
            return None
        check = f", with the check in float64 {written_gb(self.checked)}" if self.checked > self.run else ""
        return (
            f"this is large: {self.parameters:,} parameters, at least {written_gb(self.run)} of {self.what}"
            f"{check}, in this machine's {written_gb(memory)}"
        )


def all_here(cluster: Cluster) -> bool:
    """Whether all ranks keep what they hold in this machine's memory."""
    backend = cluster.backend_name
    local = backend == "threads" or (backend == "ray" and not os.environ.get("RAY_ADDRESS"))
    return local and cluster.options.get("device", "cpu") == "cpu"


def of_training(job: Job, with_check: bool) -> Room:
    """What a training takes. Parameter servers: the workers' weights alone."""
    plan, psi, instead = job.plan, job.model.parameters(), "glass predict records shapes alone"
    if plan.exchange != "all-reduce":
        return Room(psi, "weights", psi * plan.dp * plan.width, instead=instead)
    what, states = "weights, gradients and optimizer states", _states(plan, psi)
    if not with_check:
        return Room(psi, what, states, instead=instead)
    small = check_job(job)
    moments, width = optimizer_state(small.plan)
    kept = 2 * width * psi * small.steps  # gradients and weights of every step
    alone = (2 + moments) * width * psi
    checked = kept * _copies(plan) + max(_states(small.plan, psi), alone + kept)
    return Room(psi, what, states, checked, instead)


def _copies(plan: Plan) -> int:
    """How many ranks hold the same parameter, at least: experts are on fewer ranks than the rest."""
    return max(1, plan.expert_replicas)


def _states(plan: Plan, psi: int) -> int:
    """Eq 15 of all ranks."""
    copies, (moments, width) = _copies(plan), optimizer_state(plan)
    state_width = (moments + plan.has_master) * width
    each = predict_state(plan.zero, psi, copies, plan.width, plan.gradient_width, state_width)
    return int(sum(each.values()) * copies)


def of_decoding(model: ModelConfig, precision: str, checked: bool, dp: int = 1, cache: int = 0) -> Room:
    """What going on with texts takes.

    Args:
        model: its shape.
        precision: of weights and activations.
        checked: whether the run is compared with one device in float64.
        dp: ranks, or groups of ranks, with a whole model each.
        cache: bytes of keys and values of all ranks.
    """
    weights = model.parameters() * dp
    what = f"weights and cache ({written_gb(cache)} of it cache)" if cache else "weights"
    run = weights * WIDTH[precision] + cache
    return Room(model.parameters(), what, run, weights * WIDTH["fp64"] if checked else 0)

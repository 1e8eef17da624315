"""ZeRO: data parallelism in which ranks share out optimizer state, gradients and parameters.

Follows Rajbhandari et al., "ZeRO" (1910.02054), sections 5 and 7. Symbols: Ψ parameters, N ranks, m
micro-batches.

    stage   sharded over N            sent per rank and step (elements x (N-1)/N)
    1       optimizer                 Ψ reduce-scatter + Ψ all-gather of new parameters
    2       + gradients               mΨ reduce-scatter (each micro-batch) + Ψ all-gather
    3       + parameters              m (Ψ all-gather forward + Ψ all-gather backward + Ψ reduce-scatter)

Two options trade memory for traffic. `accumulate whole` (stages 2, 3): whole gradients of a step's
micro-batches are added up and reduce-scattered once, so Ψ is sent instead of mΨ. `no-reshard` (stage 3):
parameters stay whole between forward and backward, so mΨ is gathered instead of 2mΨ.

Hybrid sharding (MiCS, Zhang et al. 2205.00119; FSDP, 2304.11277 section 3.2.2): states are sharded over the K
ranks of a group instead of all dp ranks, and R = dp/K groups hold the same. All of the above happens inside a
group, with N = K; then the finished shards are summed over the groups:

    group 0   rank 0 [a] ─ rank 1 [b]     reduce-scatter and all-gather inside, where links are fast
                    │             │
    group 1   rank 2 [a] ─ rank 3 [b]     one all-reduce of Ψ/K across, once a step: 2(R-1)/R Ψ/K per rank

Each stage is a file: data_parallel.py (stage 0), zero1.py, zero2.py, zero3.py. They are composed of
reducer.py (when buckets are reduced), gradients.py (where gradients are held), optimizer.py (the update of a
slice) and parameters.py (when parameters are whole). Units are padded so that they divide into N equal
shards.

But: gathers are not quantised. The sum over groups starts when a unit's shard is complete (stages 2, 3) or
after backward (stage 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glasscluster.strategies.plan import Plan

# ---- theory ------------------------------------------------------------------------------------------------


def predict_traffic(plan: Plan, padded: int, width: int, experts: bool = False) -> dict[str, int]:
    """Eq 16: bytes that all dp·cp ranks together send in a step.

    Inside the R groups of N ranks: R(N-1)Ψ for each time that Ψ is reduced or gathered. Between groups: N
    all-reduces of Ψ/N over R ranks (Eq 9).

    Args:
        plan: the plan, with its ZeRO stage and micro-batches.
        padded: Ψ, elements of a rank's units with their padding to N.
        width: bytes of a parameter.
        experts: whether Ψ is of a rank's experts, which dp·cp/ep ranks hold and shard.

    Returns:
        Bytes of gradients and parameters inside groups, and "across" groups.
    """
    n, m = plan.expert_replicas if experts else plan.shards, plan.micro_batches
    groups = plan.data_ranks // n
    once = groups * (n - 1) * padded
    reduced = m if plan.zero >= 2 and plan.accumulate == "sharded" else 1
    gathered = (2 * m if plan.reshard else m) if plan.zero == 3 else 1
    across, w = 0 if experts else 2 * (groups - 1) * padded, plan.gradient_width
    return {"gradients": reduced * once * w, "parameters": gathered * once * width, "across": across * w}


def predict_state(
    stage: int, padded: int, shards: int, width: int, gradient_width: int, state_width: int
) -> dict[str, float]:
    """Eq 15: bytes of parameters, gradients and optimizer state that a rank holds.

    Args:
        stage: the ZeRO stage, 0 to 3.
        padded: Ψ, elements of the rank's units with their padding.
        shards: N, ranks that share out what the stage shards.
        width: bytes of a parameter.
        gradient_width: bytes of a gradient element.
        state_width: bytes of optimizer state for each parameter, all moments and the master weight together.
    """
    return {
        "parameters": padded * width / (shards if stage >= 3 else 1),
        "gradients": padded * gradient_width / (shards if stage >= 2 else 1),
        "optimizer": padded * state_width / (shards if stage >= 1 else 1),
    }

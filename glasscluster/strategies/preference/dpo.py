"""Direct preference optimization: the policy is its own reward model (Rafailov et al., 2305.18290, equation
7).

Symbols: policy π_θ, reference π_ref, preferred answer w and rejected l to prompt q, strength β of the pull to
the reference.

    reward with a KL penalty has the optimum  π*(o|q) ∝ π_ref(o|q) exp(r(q, o) / β)           (equation 4)
    so  r(q, o) = β log π*(o|q) / π_ref(o|q) + a constant of q, which drops out of r_w − r_l

    h = β [(log π_θ(w) − log π_ref(w)) − (log π_θ(l) − log π_ref(l))]     L = − mean log σ(h)
    dL/d log π_θ(w) = − β σ(−h) / B      dL/d log π_θ(l) = + β σ(−h) / B
                                         a pair that is already far apart pulls little

No reward model, no critic, no generation while training: two forwards of a frozen model instead, 16Ψ + 2Ψ
bytes. Only the difference counts, so both probabilities may fall, to the benefit of answers that nobody
compared. Against that the preferred answers' SFT loss can be added (Pang et al., 2404.19733, equation 1: "DPO
+ NLL"; `Tuning.imitation` is its weight). But: the pairs are those of an older policy (off-policy).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def margins(
    policy_w: Tensor, policy_l: Tensor, reference_w: Tensor, reference_l: Tensor, beta: float
) -> Tensor:
    """h, the difference of implicit rewards: log-probabilities of whole answers [B] each -> [B]."""
    return beta * ((policy_w - reference_w) - (policy_l - reference_l))


def loss(policy_w: Tensor, policy_l: Tensor, reference_w: Tensor, reference_l: Tensor, beta: float) -> Tensor:
    """Log-probabilities of whole answers [B] each -> scalar."""
    return -logsigmoid(margins(policy_w, policy_l, reference_w, reference_l, beta)).mean()

"""Direct preference optimization: train a policy on comparisons directly, without a reward model.

Follows Rafailov et al. (2305.18290, equation 7). Symbols: policy π_θ, reference π_ref, answers to a prompt q:
w preferred to l; β weight of the KL penalty that keeps the policy near the reference.

    the best policy for a reward r with a KL penalty is π*(o|q) ∝ π_ref(o|q) exp(r(q, o) / β)  (equation 4)
    so r(q, o) = β log π*(o|q) / π_ref(o|q) + a constant of q, which drops out of r_w − r_l    (equation 5)

    h = β [(log π_θ(w) − log π_ref(w)) − (log π_θ(l) − log π_ref(l))]     L = − mean log σ(h)
    dL/d log π_θ(w) = − β σ(−h) / B      dL/d log π_θ(l) = + β σ(−h) / B
                                         small gradient where w is already much likelier than l (h large)

Training needs no reward model, no critic and no generation, only two forwards of the frozen reference: 16Ψ +
2Ψ bytes for Ψ parameters. The loss depends on the difference of two log-probabilities, so that both may fall
and answers outside the comparisons become likelier. Against that, the SFT loss of the preferred answers can
be added (Pang et al., 2404.19733, equation 1: "DPO + NLL"; `Tuning.imitation` is its weight).

But: the pairs were sampled from an earlier policy (off-policy).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def margins(
    policy_w: Tensor, policy_l: Tensor, reference_w: Tensor, reference_l: Tensor, beta: float
) -> Tensor:
    """h: how much more implicit reward the preferred answer of each pair has than the rejected one: [B].

    The four arguments are log-probabilities of whole answers [B].
    """
    return beta * ((policy_w - reference_w) - (policy_l - reference_l))


def loss(policy_w: Tensor, policy_l: Tensor, reference_w: Tensor, reference_l: Tensor, beta: float) -> Tensor:
    """The DPO loss, a scalar. The first four arguments are log-probabilities of whole answers [B]."""
    return -logsigmoid(margins(policy_w, policy_l, reference_w, reference_l, beta)).mean()

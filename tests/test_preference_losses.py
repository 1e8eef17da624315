"""Every loss of preference tuning equals the paper's sum written as loops over numbers, and its gradient the
closed form.
"""

from __future__ import annotations

import math

import pytest
import torch

from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import IGNORE
from glasscluster.strategies.preference import dpo, grpo, ppo, reward_model, sequences, sft
from glasscluster.strategies.preference.rewards import ENDS_PROMPT, SortTask

LENGTHS = (4, 2, 3, 1, 4, 4)  # answer tokens of each sequence; the rest is padding
B, T = len(LENGTHS), max(LENGTHS)
MASK = torch.tensor([[float(t < n) for t in range(T)] for n in LENGTHS], dtype=torch.float64)
MODEL = ModelConfig(layers=1, hidden=8, heads=2, vocab=64, seq=7)


def drawn(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def clipped(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


NEW, OLD, REFERENCE, VALUES, TARGETS = (drawn(B, T, seed=s, scale=0.4) - 1 for s in range(5))
SCORES, REWARDS = drawn(B, seed=5), drawn(B, T, seed=6)


def test_the_rule_knows_right_from_wrong_and_nothing_trains_on_what_is_held_out():
    task = SortTask(3)
    tokens = torch.tensor(
        [list(b"315>135"), list(b"315>153"), list(b"090>009"), list(b"777>777"), list(b"315>531")]
    )
    assert task.reward(tokens).tolist() == [1, 0, 1, 1, 0]
    train, kept = ({tuple(p) for p in task.prompts(h).tolist()} for h in (False, True))
    assert (len(train), len(kept), train & kept) == (800, 200, set())
    assert {p[-1] for p in train | kept} == {ENDS_PROMPT}
    shown = task.demonstrations(
        task.draw(4000, torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2)
    )
    palindromes = (task.answers(shown[:, :4]) == task.answers(shown[:, :4]).flip(1)).all(1).double()
    assert float(task.reward(shown).mean() - 0.6 * palindromes.mean()) == pytest.approx(task.upward, abs=0.03)


def test_sft_counts_answer_tokens_alone():
    stage, task = GPTStage(MODEL, dtype=torch.float64), SortTask(3)
    tokens = task.demonstrations(
        task.draw(5, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    )
    mine = sft.loss(sequences.log_probs(stage, tokens, 3), torch.ones(5, 3))
    targets = tokens[:, 1:].clone()
    targets[:, :3] = IGNORE
    assert mine.item() == pytest.approx(stage(tokens[:, :-1], targets).item() / 15, rel=1e-12)
    padded = -sum(float(NEW[b, t]) for b in range(B) for t in range(LENGTHS[b])) / sum(LENGTHS)
    assert float(sft.loss(NEW, MASK)) == pytest.approx(padded, rel=1e-12)


def test_values_stand_before_their_token_and_a_score_behind_the_last():
    model = sequences.ScalarModel(MODEL, dtype=torch.float64)
    tokens = torch.randint(64, (3, 7), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % 64
    assert torch.equal(sequences.values(model, tokens, 3), sequences.values(model, other, 3)), (
        "a value has not seen its own token"
    )
    assert not torch.isclose(sequences.scores(model, tokens), sequences.scores(model, other)).any()
    other = tokens.clone()
    other[:, -2] = (other[:, -2] + 1) % 64
    moved = (sequences.values(model, tokens, 3) != sequences.values(model, other, 3)).any(0)
    assert moved.tolist() == [False, False, True]
    policy = GPTStage(MODEL)
    assert (
        sum(p.numel() for p in model.parameters())
        == sum(p.numel() for p in policy.parameters()) + MODEL.hidden + 1
    )
    assert set(model.full_names()) - set(policy.full_names()) == {"head.scalar_weight", "head.scalar_bias"}


def test_a_reward_model_is_bradley_and_terrys_likelihood():
    w, l = drawn(6, seed=1), drawn(6, seed=2)
    pairs = list(zip(w.tolist(), l.tolist(), strict=True))
    likelihood = math.prod(math.exp(a) / (math.exp(a) + math.exp(b)) for a, b in pairs)
    assert float(reward_model.loss(w, l)) == pytest.approx(-math.log(likelihood) / 6, rel=1e-12)
    assert reward_model.agreement(w, l) == sum(a > b for a, b in pairs) / 6


def test_a_standardized_reward_model_scores_with_mean_0_and_variance_1():
    model = sequences.ScalarModel(MODEL, dtype=torch.float64)
    tokens = torch.randint(64, (50, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = sequences.scores(model, tokens)
        reward_model.standardize(model.scalar, before)
        after = sequences.scores(model, tokens)
    assert after.mean().item() == pytest.approx(0, abs=1e-12)
    assert after.std().item() == pytest.approx(1, rel=1e-12)
    assert torch.equal(after.argsort(), before.argsort())


def test_dpo_equals_equation_7_and_its_gradient_the_closed_form():
    w, l, rw, rl = (drawn(6, seed=s) - 3 for s in range(4))
    w.requires_grad_()
    l.requires_grad_()
    beta, by_hand, pull = 0.3, [], []
    for a, b, c, d in zip(*(x.tolist() for x in (w, l, rw, rl)), strict=True):
        h = beta * math.log((math.exp(a) / math.exp(c)) / (math.exp(b) / math.exp(d)))
        by_hand.append(-math.log(sigmoid(h)))
        pull.append(beta * (1 - sigmoid(h)) / 6)
    made = dpo.loss(w, l, rw, rl, beta)
    made.backward()
    assert made.item() == pytest.approx(sum(by_hand) / 6, rel=1e-12)
    assert w.grad.tolist() == pytest.approx([-x for x in pull], rel=1e-10)
    assert l.grad.tolist() == pytest.approx(pull, rel=1e-10)


def test_dpos_reward_is_the_one_whose_optimum_the_policy_is():
    """Equation 4 on 5 answers: tilt the reference by exp(r/β), and the implicit rewards differ as r does."""
    beta, reward = 0.5, drawn(5, seed=3)
    reference = torch.log_softmax(drawn(5, seed=4), 0)
    best = torch.log_softmax(reference + reward / beta, 0)
    for w in range(5):
        for l in range(5):
            h = dpo.margins(
                best[w : w + 1], best[l : l + 1], reference[w : w + 1], reference[l : l + 1], beta
            )
            assert float(h) == pytest.approx(float(reward[w] - reward[l]), abs=1e-12)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.7), (0.9, 0.0)])
def test_gae_is_the_discounted_sum_of_surprises(gamma, lam):
    rewards = REWARDS * MASK
    made, targets = ppo.advantages(rewards, VALUES, MASK, gamma, lam)
    for b, n in enumerate(LENGTHS):
        delta = [
            float(rewards[b, t] + (gamma * VALUES[b, t + 1] if t + 1 < n else 0) - VALUES[b, t])
            for t in range(n)
        ]
        for t in range(T):
            sum_ = sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) if t < n else 0.0
            assert float(made[b, t]) == pytest.approx(sum_, abs=1e-12)
            assert float(targets[b, t]) == pytest.approx(
                sum_ + float(VALUES[b, t]) if t < n else 0.0, abs=1e-12
            )
        if lam == 1:  # the value drops out of the target: it is what really came
            assert float(targets[b, 0]) == pytest.approx(
                sum(gamma**k * float(rewards[b, k]) for k in range(n)), abs=1e-12
            )


def test_ppos_rewards_are_a_penalty_a_token_and_the_score_on_the_last():
    made = ppo.token_rewards(SCORES, OLD, REFERENCE, MASK, 0.2)
    for b, n in enumerate(LENGTHS):
        right = [
            -0.2 * float(OLD[b, t] - REFERENCE[b, t]) + (float(SCORES[b]) if t == n - 1 else 0.0)
            if t < n
            else 0.0
            for t in range(T)
        ]
        assert made[b].tolist() == pytest.approx(right, abs=1e-12)


def test_ppos_losses_equal_loops_and_what_is_clipped_has_no_gradient():
    new, values = NEW.clone().requires_grad_(), TARGETS.clone().requires_grad_()
    advantage, clip, tokens = drawn(B, T, seed=7), 0.2, sum(LENGTHS)
    policy, value, slopes = 0.0, 0.0, torch.zeros(B, T, dtype=torch.float64)
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            ratio, a = math.exp(NEW[b, t]) / math.exp(OLD[b, t]), float(advantage[b, t])
            policy -= min(ratio * a, clipped(ratio, 1 - clip, 1 + clip) * a) / tokens
            stopped = (a > 0 and ratio > 1 + clip) or (a < 0 and ratio < 1 - clip)
            slopes[b, t] = 0.0 if stopped else -a * ratio / tokens
            v, old, target = float(TARGETS[b, t]), float(VALUES[b, t]), float(REWARDS[b, t])
            value += 0.5 * max((v - target) ** 2, (clipped(v, old - clip, old + clip) - target) ** 2) / tokens
    made = ppo.policy_loss(new, OLD, advantage, MASK, clip)
    made.backward()
    assert made.item() == pytest.approx(policy, rel=1e-12)
    assert torch.allclose(new.grad, slopes, rtol=1e-10, atol=1e-14)
    assert (slopes[MASK > 0] == 0).any(), "no ratio was out of range: the test shows nothing"
    assert (slopes != 0).any()
    assert ppo.value_loss(values, VALUES, REWARDS, MASK, clip).item() == pytest.approx(value, rel=1e-12)


def test_at_the_old_policy_ppos_gradient_is_reinforces():
    new, advantage = OLD.clone().requires_grad_(), drawn(B, T, seed=7)
    ppo.policy_loss(new, OLD, advantage, MASK, 0.2).backward()
    assert torch.allclose(new.grad, -advantage * MASK / MASK.sum(), rtol=1e-12, atol=0)


def test_whitened_numbers_have_mean_0_and_variance_1():
    kept = [float(x) for x, m in zip(ppo.whitened(REWARDS, MASK).flatten(), MASK.flatten(), strict=True) if m]
    mean = sum(kept) / len(kept)
    assert mean == pytest.approx(0, abs=1e-12)
    assert sum((x - mean) ** 2 for x in kept) / len(kept) == pytest.approx(1, rel=1e-6)


def test_grpos_advantages_are_each_groups_own():
    rewards = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0.5, 2, -1, 0]], dtype=torch.float64)
    made = grpo.advantages(rewards)
    for row, mine in zip(rewards.tolist(), made.tolist(), strict=True):
        mean = sum(row) / len(row)
        std = math.sqrt(sum((r - mean) ** 2 for r in row) / len(row))
        assert mine == pytest.approx([(r - mean) / (std + 1e-6) for r in row], abs=1e-12)
    assert made[1].abs().max() == made[2].abs().max() == 0, "a group that agrees teaches nothing"


def test_grpos_loss_equals_equation_3_written_as_loops():
    advantage, clip, beta, total = drawn(B, seed=8), 0.2, 0.1, 0.0
    for b, n in enumerate(LENGTHS):
        answer = 0.0
        for t in range(n):
            ratio, a = math.exp(NEW[b, t]) / math.exp(OLD[b, t]), float(advantage[b])
            other = math.exp(REFERENCE[b, t]) / math.exp(NEW[b, t])
            answer += min(ratio * a, clipped(ratio, 1 - clip, 1 + clip) * a) - beta * (
                other - math.log(other) - 1
            )
        total -= answer / n / B
    assert float(grpo.loss(NEW, OLD, REFERENCE, advantage, MASK, clip, beta)) == pytest.approx(
        total, rel=1e-12
    )


def test_grpos_kl_estimate_is_never_negative_and_its_mean_is_the_kl():
    policy, reference = torch.log_softmax(drawn(5, seed=1), 0), torch.log_softmax(drawn(5, seed=2), 0)
    k = grpo.kl(policy, reference)
    assert (k >= 0).all()
    assert float((policy.exp() * k).sum()) == pytest.approx(
        float((policy.exp() * (policy - reference)).sum()), rel=1e-12
    )


BROKEN = {
    "the ratio is not clipped": (
        ppo,
        "policy_loss",
        lambda n, o, a, m, c: -ppo.masked_mean(ppo.ratios(n, o) * a, m),
    ),
    "the value is not held": (
        ppo,
        "value_loss",
        lambda n, o, g, m, c: 0.5 * ppo.masked_mean((n - g) ** 2, m),
    ),
    "GAE forgets lambda": (
        ppo,
        "advantages",
        lambda r, v, m, g, _lam, right=ppo.advantages: right(r, v, m, g, 1.0),
    ),
    "a mean over all tokens": (
        grpo,
        "loss",
        lambda n, o, r, a, m, c, b, right=grpo.loss: right(n, o, r, a, torch.ones_like(m), c, b),
    ),
    "std divided by G - 1": (
        grpo,
        "advantages",
        lambda r: (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-6),
    ),
    "DPO without its reference": (dpo, "margins", lambda w, l, rw, rl, beta: beta * (w - l)),
    "padding has a loss": (sft, "loss", lambda p, m: -p.mean()),
}
SEEN_BY = {
    "the ratio is not clipped": test_ppos_losses_equal_loops_and_what_is_clipped_has_no_gradient,
    "the value is not held": test_ppos_losses_equal_loops_and_what_is_clipped_has_no_gradient,
    "GAE forgets lambda": lambda: test_gae_is_the_discounted_sum_of_surprises(0.9, 0.7),
    "a mean over all tokens": test_grpos_loss_equals_equation_3_written_as_loops,
    "std divided by G - 1": test_grpos_advantages_are_each_groups_own,
    "DPO without its reference": test_dpo_equals_equation_7_and_its_gradient_the_closed_form,
    "padding has a loss": test_sft_counts_answer_tokens_alone,
}


def test_answers_without_a_token_add_nothing_to_any_loss_and_no_loss_of_none_is_nan():
    empty, mask = (
        drawn(3, 4, seed=0).requires_grad_(),
        torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]),
    )
    old, reference, gains = (drawn(3, 4, seed=s) for s in (1, 2, 3))
    advantages = drawn(3, seed=4)
    each = grpo.loss(empty, old, reference, advantages, mask, 0.2, 0.1)
    kept = [0, 2]
    others = grpo.loss(*(x[kept] for x in (empty, old, reference, advantages, mask)), clip=0.2, beta=0.1)
    assert float(each.detach()) == pytest.approx(
        float(others.detach()) * 2 / 3, rel=1e-12
    )  # a mean over answers, of which one is 0
    assert torch.autograd.grad(each, empty)[0].isfinite().all()
    rewards = ppo.token_rewards(advantages, old, reference, mask, 0.1)
    assert torch.equal(rewards[1], torch.zeros(4, dtype=rewards.dtype))
    assert torch.equal(
        rewards[kept], ppo.token_rewards(advantages[kept], old[kept], reference[kept], mask[kept], 0.1)
    )
    none = torch.zeros_like(mask)
    for loss in (
        sft.loss(empty, none),
        grpo.loss(empty, old, reference, advantages, none, 0.2, 0.1),
        ppo.policy_loss(empty, old, ppo.whitened(gains, none), none, 0.2),
        ppo.value_loss(empty, old, gains, none, 0.2),
    ):
        assert loss == 0
        assert torch.equal(torch.autograd.grad(loss, empty)[0], torch.zeros(3, 4, dtype=empty.dtype))


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_mistake_in_a_loss_is_seen(mistake, monkeypatch):
    module, name, wrong = BROKEN[mistake]
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError):
        SEEN_BY[mistake]()

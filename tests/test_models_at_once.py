"""Many small GPTs side by side are the project's own GPT, each for itself."""

from __future__ import annotations

import pytest
import torch

from glasscluster.model.gpt import GPTStage
from glasscluster.scenarios import models_at_once
from glasscluster.scenarios.models_at_once import Adam, ModelsAtOnce, train
from glasscluster.strategies.plan import make_model

SHAPES = {
    "pre": {"norm_position": "pre"},
    "post": {"norm_position": "post"},
    "rmsnorm, no biases": {"norm": "rmsnorm", "bias": False},
    "tied": {"tied": True},
    "one head": {"heads": 1},
}


def small(**options):
    shape = {"layers": 3, "hidden": 32, "heads": 4, "vocab": 16, "seq": 12, "tied": False, "init_std": 0.2}
    return make_model("tiny", **{**shape, **options})


def some_tokens(models: int):
    tokens = torch.randint(0, 16, (models, 2, 13), generator=torch.Generator().manual_seed(5))
    return tokens[..., :-1], tokens[..., 1:]


def differences(config, seeds):
    """For each seed: how far its loss and its gradients are from those of the project's GPT."""
    rms = (
        (lambda x: torch.nn.functional.rms_norm(x, x.shape[-1:], eps=1e-5))
        if config.norm == "rmsnorm"
        else None
    )
    models = ModelsAtOnce(config, seeds, torch.float64, **({"normalise": rms} if rms else {}))
    tokens, targets = some_tokens(len(seeds))
    losses = models.losses(tokens, targets)
    gradients = models.weights(torch.autograd.grad(losses.sum(), models.flat)[0])
    for place, seed in enumerate(seeds):
        gpt = GPTStage(config, seed=seed, dtype=torch.float64)
        loss = gpt(tokens[place], targets[place]) / targets[place].numel()
        loss.backward()
        named = {name: parameter for name, (parameter, _) in gpt.full_names().items()}
        assert set(named) == set(gradients)
        worst = max(float((p.grad - gradients[name][place]).abs().max()) for name, p in named.items())
        yield float((loss - losses[place]).detach().abs()), worst


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradients_are_those_of_the_gpt_of_each_seed(shape):
    for loss, gradient in differences(small(**SHAPES[shape]), [0, 3]):
        assert loss < 1e-13
        assert gradient < 1e-13


def test_a_wrong_scale_or_a_future_that_is_seen_would_be_noticed(monkeypatch):
    honest = torch.Tensor.masked_fill
    monkeypatch.setattr(torch.Tensor, "masked_fill", lambda x, mask, value: honest(x, mask.triu(2), value))
    assert all(loss > 1e-6 for loss, _ in differences(small(), [0, 3]))


def test_a_model_that_learns_alone_learns_the_same_in_company():
    tokens, targets = some_tokens(2)
    both = ModelsAtOnce(small(), [0, 3], torch.float64)
    rates = torch.tensor([1e-3, 1e-2], dtype=torch.float64)
    together = train(both, lambda _: (tokens, targets), lambda _: rates, 4, clip=1.0)
    for place, seed in enumerate((0, 3)):
        alone = ModelsAtOnce(small(), [seed], torch.float64)
        here = slice(place, place + 1)
        losses = train(
            alone, lambda _, x=here: (tokens[x], targets[x]), lambda _, x=here: rates[x], 4, clip=1.0
        )
        assert torch.allclose(losses[:, 0], together[:, place], atol=1e-12)
        assert torch.allclose(alone.flat[0], both.flat[place], atol=1e-10)


def test_adam_is_torch_s():
    weights = torch.randn(1, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = weights.clone(), weights.clone().requires_grad_()
    adam, torchs = Adam(ours), torch.optim.Adam([theirs], lr=0.03, betas=(0.9, 0.95))
    for step in range(3):
        gradient = torch.sin(weights * (step + 1))
        adam.update(gradient, torch.tensor([0.03], dtype=torch.float64))
        theirs.grad = gradient.clone()
        torchs.step()
    assert torch.allclose(ours, theirs.detach(), atol=1e-14)


def test_a_pruned_head_gives_what_a_head_without_values_gives():
    config = small()
    models = ModelsAtOnce(config, [0], torch.float64)
    tokens, targets = some_tokens(1)
    left = torch.ones(1, config.layers, config.heads, dtype=torch.float64)
    left[0, 1, 2] = 0
    pruned = models.losses(tokens, targets, left)
    with torch.no_grad():
        d = config.hidden // config.heads
        models.weights()["layers.1.out_weight"][0, :, 2 * d : 3 * d] = 0  # nothing of the head is read
    assert torch.allclose(models.losses(tokens, targets), pruned, atol=1e-14)
    assert models_at_once.ModelsAtOnce(config, [0], torch.float64).losses(tokens, targets) != pruned

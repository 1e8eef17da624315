"""What models compute of whole sequences: log-probabilities of answers, values, scores.

Dims: B sequences, S tokens of prompt and answer, T answer tokens (the last T of S), H hidden, V vocabulary.

    policy        log π(o_t | q, o_<t)  [B, T]  from the logits at the position before o_t
    critic        v_t                   [B, T]  its output at the position before o_t, so that it does not
                                                depend on o_t
    reward model  r                     [B]     its output at the last token
                                                (InstructGPT 2203.02155, section 3.5)

A critic and a reward model are a policy whose logits are replaced by a scalar head: one number a position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from glasscluster.model.config import ModelConfig
from glasscluster.model.gpt import GPTStage, Module
from glasscluster.model.layers import norms
from glasscluster.model.parallel import Shard, Unsharded


def hidden_states(stage: GPTStage, tokens_BS: Tensor) -> Tensor:
    """The output of the last block, before the final norm: tokens [B, S] -> [B, S, H]."""
    assert stage.embedding is not None
    return stage.keep.layers(list(stage.layers.values()), stage.embedding(tokens_BS), None)


def log_softmax(stage: GPTStage, tokens_BS: Tensor, answer: int) -> Tensor:
    """Log-probabilities of all V tokens at each position of the answer, the last `answer` tokens: [B, T, V].

    They are in float32, or float64 if the model is.
    """
    assert stage.head is not None
    logits = stage.head.scores(hidden_states(stage, tokens_BS[:, :-1])[:, -answer:])
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)


def log_probs(stage: GPTStage, tokens_BS: Tensor, answer: int) -> Tensor:
    """log π(o_t | q, o_<t) of each of the last `answer` tokens: [B, S] -> [B, T]."""
    return log_softmax(stage, tokens_BS, answer).gather(-1, tokens_BS[:, -answer:, None]).squeeze(-1)


class ScalarHead(Module):
    """The final norm and a linear layer with one output: [B, S, H] -> [B, S].

    The norm has the same parameter names as a policy's head, so it can start from the policy's weights.
    """

    def __init__(self, config: ModelConfig, seed: int, like: Tensor) -> None:
        super().__init__("head.", config, Unsharded(), seed, like)
        if config.norm_position != "post":
            norms.declare(self, "norm", config.hidden)
        self.weight("scalar_weight", 1, config.hidden, std=config.init_std)
        self.weight("scalar_bias", 1, std=config.init_std)

    def forward(self, x_BSH: Tensor) -> Tensor:
        """One number a position: [B, S, H] -> [B, S], in float32, or float64 if the input is."""
        x = x_BSH if self.config.norm_position == "post" else norms.norm(self, "norm", x_BSH)
        y = (self.parallel.linear(x, self.scalar_weight, self.scalar_bias)).squeeze(-1)
        return y.to(torch.promote_types(y.dtype, torch.float32))


class ScalarModel(nn.Module):
    """A critic or a reward model: a policy's trunk and a scalar head of h + 1 parameters beside its norm."""

    def __init__(
        self,
        config: ModelConfig,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.trunk = GPTStage(config, last=False, seed=seed, dtype=dtype, device=device)
        self.scalar = ScalarHead(config, seed, torch.empty(0, dtype=dtype, device=device))

    def parts(self) -> list[Any]:
        """Embedding, blocks and head, in the order in which they run."""
        return [*self.trunk.parts(), self.scalar]

    def full_names(self) -> dict[str, tuple[nn.Parameter, Shard | None]]:
        """Full name -> (parameter, its shard); the shard is None, as every parameter is whole."""
        return self.trunk.full_names() | {
            name: (getattr(self.scalar, name.split(".")[-1]), None) for name in self.scalar.shards
        }

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """The scalar head's output at every token: [B, S] -> [B, S]."""
        return self.scalar(hidden_states(self.trunk, tokens_BS))


def values(critic: ScalarModel, tokens_BS: Tensor, answer: int) -> Tensor:
    """The values v_t, at the position before each of the last `answer` tokens: [B, S] -> [B, T]."""
    return critic(tokens_BS[:, :-1])[:, -answer:]


def scores(reward_model: ScalarModel, tokens_BS: Tensor) -> Tensor:
    """The scores r of whole sequences, at their last token: [B, S] -> [B]."""
    return reward_model(tokens_BS)[:, -1]

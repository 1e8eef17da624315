"""What models say of whole sequences: a policy's log-probability of every answer token, a critic's or reward
model's numbers.

Dims: B sequences, S tokens of prompt and answer, T answer tokens (the last T of S), H hidden, V vocabulary.

    policy        log π(o_t | q, o_<t)  [B, T]  from the logits one place earlier
    critic        v_t                   [B, T]  one number a place, in the place before o_t:
                                                what o_t has yet to decide
    reward model  r                     [B]     the same number behind the last token
                                                (InstructGPT 2203.02155, section 3.5)

A critic and a reward model are the policy's trunk with a row of numbers instead of the vocabulary's logits.
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
    """Behind the last block, before the final norm: [B, S] -> [B, S, H]."""
    assert stage.embedding is not None
    return stage.keep.layers(list(stage.layers.values()), stage.embedding(tokens_BS), None)


def log_softmax(stage: GPTStage, tokens_BS: Tensor, answer: int) -> Tensor:
    """Log-probabilities of every token at the places of the answer, the last `answer` of S: [B, T, V].

    They are in float32 at least.
    """
    assert stage.head is not None
    logits = stage.head.scores(hidden_states(stage, tokens_BS[:, :-1])[:, -answer:])
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)


def log_probs(stage: GPTStage, tokens_BS: Tensor, answer: int) -> Tensor:
    """log π(o_t | q, o_<t) of the last `answer` tokens: [B, S] -> [B, T]."""
    return log_softmax(stage, tokens_BS, answer).gather(-1, tokens_BS[:, -answer:, None]).squeeze(-1)


class ScalarHead(Module):
    """Final norm and one row: [B, S, H] -> [B, S].

    Its norm has the name of the policy's, so it can start from it.
    """

    def __init__(self, config: ModelConfig, seed: int, like: Tensor) -> None:
        super().__init__("head.", config, Unsharded(), seed, like)
        if config.norm_position != "post":
            norms.declare(self, "norm", config.hidden)
        self.weight("scalar_weight", 1, config.hidden, std=config.init_std)
        self.weight("scalar_bias", 1, std=config.init_std)

    def forward(self, x_BSH: Tensor) -> Tensor:
        """[B, S, H] -> [B, S], in float32 at least."""
        x = x_BSH if self.config.norm_position == "post" else norms.norm(self, "norm", x_BSH)
        y = (self.parallel.linear(x, self.scalar_weight, self.scalar_bias)).squeeze(-1)
        return y.to(torch.promote_types(y.dtype, torch.float32))


class ScalarModel(nn.Module):
    """A trunk and a scalar head: a critic or a reward model.

    It has h + 1 parameters that a policy with a tied head has not.
    """

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
        """Embedding, blocks, head: in the order they run."""
        return [*self.trunk.parts(), self.scalar]

    def full_names(self) -> dict[str, tuple[nn.Parameter, Shard | None]]:
        """Full name -> (parameter, None: it is whole)."""
        return self.trunk.full_names() | {
            name: (getattr(self.scalar, name.split(".")[-1]), None) for name in self.scalar.shards
        }

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """A number behind every token: [B, S] -> [B, S]."""
        return self.scalar(hidden_states(self.trunk, tokens_BS))


def values(critic: ScalarModel, tokens_BS: Tensor, answer: int) -> Tensor:
    """v_t, from the place before each of the last `answer` tokens: [B, S] -> [B, T]."""
    return critic(tokens_BS[:, :-1])[:, -answer:]


def scores(reward_model: ScalarModel, tokens_BS: Tensor) -> Tensor:
    """r, from behind the last token: [B, S] -> [B]."""
    return reward_model(tokens_BS)[:, -1]

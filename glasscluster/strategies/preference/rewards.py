"""A task whose answers a rule can check: put digits in ascending order.

    prompt 315>   right answer 135   reward 1        any other answer   reward 0

Demonstrations are what people write: some sort upwards, the others downwards. A model that imitates them well
is right as often as they are, and no more imitation makes it better; a reward can. Tokens are bytes: digits
are 48 to 57, `>` is 62. The expected reward needs no sampling: one answer is right, so it is the policy's
probability of that answer.
But: answers all have one length, so a batch has no padding, and nobody writes anything but digits in a
demonstration.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ZERO, ENDS_PROMPT, VOCABULARY = ord("0"), ord(">"), 64


@dataclass(frozen=True)
class SortTask:
    """`digits` of them to sort (at most 4: all prompts are listed); `upward` is the share of demonstrations
    that are right.
    """

    digits: int = 3
    upward: float = 0.4

    @property
    def answer(self) -> int:
        """Tokens of an answer."""
        return self.digits

    @property
    def length(self) -> int:
        """Tokens of a prompt and its answer."""
        return 2 * self.digits + 1

    def prompts(self, held_out: bool = False) -> Tensor:
        """[N, digits + 1]: every fifth prompt is held out, nothing trains on it; the others are
        for training.
        """
        each = 10 ** torch.arange(self.digits - 1, -1, -1)
        numbers = torch.arange(10**self.digits)
        chosen = numbers[(numbers % 5 == 0) == held_out]
        digits = chosen[:, None] // each % 10 + ZERO
        return torch.cat([digits, torch.full_like(digits[:, :1], ENDS_PROMPT)], 1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, digits + 1] training prompts, with repetition."""
        pool = self.prompts()
        return pool[torch.randint(len(pool), (count,), generator=generator)]

    def answers(self, prompts: Tensor) -> Tensor:
        """The right ones: [B, digits + 1] -> [B, digits]."""
        return prompts[:, : self.digits].sort(1).values

    def demonstrations(self, prompts: Tensor, generator: torch.Generator) -> Tensor:
        """Prompts with what somebody wrote behind them: [B, digits + 1] -> [B, length]."""
        right = self.answers(prompts)
        upward = torch.rand(len(prompts), 1, generator=generator) < self.upward
        return torch.cat([prompts, torch.where(upward, right, right.flip(1))], 1)

    def reward(self, tokens: Tensor) -> Tensor:
        """The rule: [B, length] -> [B] of 0 and 1, in float64."""
        right = self.answers(tokens[:, : self.digits + 1])
        return (tokens[:, self.digits + 1 :] == right).all(1).double()


@dataclass(frozen=True)
class Blank(SortTask):
    """Lengths without content: prompts of zeros and answers of `answer_tokens`.

    For what is recorded dry, where no token has a value.
    """

    prompt_tokens: int = 1
    answer_tokens: int = 1

    @property
    def answer(self) -> int:
        """Tokens of an answer."""
        return self.answer_tokens

    @property
    def length(self) -> int:
        """Tokens of a prompt and its answer."""
        return self.prompt_tokens + self.answer_tokens

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Prompts of zeros: [count, prompt_tokens]."""
        return torch.zeros(count, self.prompt_tokens, dtype=torch.int64)

    def demonstrations(self, prompts: Tensor, generator: torch.Generator) -> Tensor:
        """Sequences of zeros: [B, length]."""
        return torch.zeros(len(prompts), self.length, dtype=torch.int64)

    def reward(self, tokens: Tensor) -> Tensor:
        """Nothing to check: [B] zeros."""
        return tokens.new_zeros(len(tokens), dtype=torch.float64)

"""A task whose answers a rule can check: put digits in ascending order.

    prompt 315>   right answer 135   reward 1        any other answer   reward 0

Of the demonstrations, a share sorts upwards and the rest downwards, as people make mistakes. A model that
imitates them perfectly is right as often as they are and no more; only a reward makes it better. Tokens are
bytes: digits are 48 to 57, `>` is 62. The expected reward needs no sampling: exactly one answer to a prompt
is right, so it is the policy's probability of that answer.

But: all answers have the same length, so a batch has no padding, and a demonstration consists of digits only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ZERO, ENDS_PROMPT, VOCABULARY = ord("0"), ord(">"), 64


@dataclass(frozen=True)
class SortTask:
    """The sorting task.

    `digits`: how many digits to sort, at most 4, because all prompts are enumerated. `upward`: the share of
    demonstrations that sort upwards and so are right.
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
        """All prompts for training, or all held-out ones: [N, digits + 1]. Every fifth prompt is held out."""
        each = 10 ** torch.arange(self.digits - 1, -1, -1)
        numbers = torch.arange(10**self.digits)
        chosen = numbers[(numbers % 5 == 0) == held_out]
        digits = chosen[:, None] // each % 10 + ZERO
        return torch.cat([digits, torch.full_like(digits[:, :1], ENDS_PROMPT)], 1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` training prompts drawn with replacement: [count, digits + 1]."""
        pool = self.prompts()
        return pool[torch.randint(len(pool), (count,), generator=generator)]

    def answers(self, prompts: Tensor) -> Tensor:
        """The right answers to prompts: [B, digits + 1] -> [B, digits]."""
        return prompts[:, : self.digits].sort(1).values

    def demonstrations(self, prompts: Tensor, generator: torch.Generator) -> Tensor:
        """Prompts followed by a demonstrated answer, right or wrong: [B, digits + 1] -> [B, length]."""
        right = self.answers(prompts)
        upward = torch.rand(len(prompts), 1, generator=generator) < self.upward
        return torch.cat([prompts, torch.where(upward, right, right.flip(1))], 1)

    def reward(self, tokens: Tensor) -> Tensor:
        """The rule: 1.0 for sequences whose answer is right, else 0.0: [B, length] -> [B], in float64."""
        right = self.answers(tokens[:, : self.digits + 1])
        return (tokens[:, self.digits + 1 :] == right).all(1).double()


@dataclass(frozen=True)
class Blank(SortTask):
    """A task that has lengths but no content, for the dry backend, where no token has a value."""

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
        """Zeros [B]: there is nothing to check."""
        return tokens.new_zeros(len(tokens), dtype=torch.float64)

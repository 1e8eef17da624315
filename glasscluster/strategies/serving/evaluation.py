"""Evaluation on many ranks: items are shared out over dp, each is scored by tp ranks together, one sum brings
all scores everywhere.

    item 0 1 2 3 4 5 ...  rank 0: 0 2 4 ...  scores [x . x . x .]
    dp = 2                rank 1: 1 3 5 ...  scores [. x . x . x]  ─all-reduce─►  [x x x x x x] on every rank

log p(continuation | context) is minus the loss of training, on the continuation's tokens alone: the same
forward, the same vocabulary-parallel cross-entropy. Rows are padded behind, which nobody sees. An answer that
is drawn depends on (seed, item) alone, so scores do not depend on the layout. Sent by all ranks for the
scores, S numbers of 8 bytes: 2 (dp - 1) · 8 S (Eq 9), on each of tp planes. But: no pipeline; a row has to
fit into the model's sequence (longer contexts lose their beginning, as in lm-evaluation-harness).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding.cache import StaticCache
from glasscluster.model.decoding.generate import GREEDY, Generator, Sampling, listed, pad
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import IGNORE
from glasscluster.model.text.tasks import Choice, Item, Prompt, Task
from glasscluster.model.text.tokenizer import Tokenizer
from glasscluster.model.uses import check_use
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.serving.generation import make_stage


@dataclass(frozen=True)
class EvaluationJob:
    """Everything a rank needs. `samples` answers to every prompt; a tokenizer.json, or None for bytes as
    tokens.
    """

    model: ModelConfig
    tasks: tuple[Task, ...]
    dp: int = 1
    tp: int = 1
    batch: int = 16
    samples: int = 1
    sampling: Sampling = GREEDY
    precision: str = "fp32"
    seed: int = 0
    weights: str | None = None
    tokenizer: str | None = None
    algorithm: str = "ring"

    @property
    def scores(self) -> int:
        """Numbers that all items have together: one a choice, one a prompt or text; and one an item that says
        who scored it.
        """
        items = [item for task in self.tasks for item in task.items]
        return sum(numbers(item) for item in items) + len(items)


@dataclass
class RankEvaluation:
    """What a rank brings back: for every task and item the scores of all ranks, how many ranks scored it, and
    what was said here.

    Scores of a Choice: log-likelihoods; of a Text: its own; of a Prompt: how many samples were right.
    """

    scores: list[list[list[float]]] = field(default_factory=list)
    scored: list[list[int]] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)  # tokens of each Text that were predicted
    said: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)


def numbers(item: Item) -> int:
    """Scores of an item."""
    return len(item.choices) if isinstance(item, Choice) else 1


def evaluate_rank(gpu: GPU, job: EvaluationJob) -> RankEvaluation:
    """The SPMD program: the same on every backend."""
    mesh = gpu.make_mesh({"dp": job.dp, "tp": job.tp})
    tokenizer = Tokenizer.load(job.tokenizer) if job.tokenizer is not None else None
    with gpu.unrecorded():
        stage = make_stage(gpu, job.model, job.tp, job.precision, job.seed, job.weights, job.algorithm, mesh)
        for parameter in stage.parameters():
            gpu.memory.register(parameter, "parameters")
        found = torch.zeros(job.scores, dtype=torch.float64, device=gpu.device)
    result = RankEvaluation(
        lengths=[[predicted(i, tokenizer, job.model.seq) for i in t.items] for t in job.tasks]
    )
    gpu.start_step()
    rank, at, step = mesh.index("dp"), 0, 0
    for t, task in enumerate(job.tasks):
        places: list[int] = []  # of this rank's rows: where each score goes
        rows: list[tuple[list[int], int]] = []  # and what is scored
        for i, item in enumerate(task.items):
            if i % job.dp == rank:
                found[at + numbers(item)] = 1
                if isinstance(item, Prompt):
                    with gpu.region("forward", micro_batch=step):
                        result.said[t, i] = answers(
                            stage, item, task.tokens, job, (job.seed, t, i), tokenizer
                        )
                    found[at] = sum(map(item.right, result.said[t, i]))
                    step += 1
                else:
                    new = [row_of(item, c, tokenizer, job.model.seq) for c in range(numbers(item))]
                    places, rows = places + list(range(at, at + len(new))), rows + new
            at += numbers(item) + 1
        for a in range(0, len(rows), job.batch):
            with gpu.region("forward", micro_batch=step):
                scores = loglikelihoods(stage, rows[a : a + job.batch])
            found[torch.tensor(places[a : a + job.batch])] = scores.double()
            step += 1
    with gpu.region("forward", micro_batch=step):
        mesh["dp"].all_reduce(found, algorithm=job.algorithm, purpose="scalars", label="scores")
    rest = iter(found.tolist())
    for task in job.tasks:
        pairs = [([next(rest) for _ in range(numbers(item))], round(next(rest))) for item in task.items]
        result.scores.append([scores for scores, _ in pairs])
        result.scored.append([times for _, times in pairs])
    return result


def encode(text: bytes, tokenizer: Tokenizer | None) -> list[int]:
    """Tokens of a text."""
    return list(text) if tokenizer is None else tokenizer.encode(text)


def row_of(item: Item, choice: int, tokenizer: Tokenizer | None, seq: int) -> tuple[list[int], int]:
    """A sequence of at most seq + 1 tokens, and how many of them, at its end, are scored. A context loses its
    beginning.

    Context and continuation become tokens apart: a merge across the seam would hide where the continuation
    begins.
    """
    if isinstance(item, Choice):
        before, after = encode(item.context, tokenizer), encode(item.choices[choice], tokenizer)
    else:
        tokens = encode(item.text, tokenizer)  # type: ignore[union-attr]
        before, after = tokens[:1], tokens[1:]
    return [*before, *after][-(seq + 1) :], min(len(after), seq)


def predicted(item: Item, tokenizer: Tokenizer | None, seq: int) -> int:
    """How many tokens of a Text are scored: all but the first. 0 for others."""
    return 0 if isinstance(item, (Choice, Prompt)) else row_of(item, 0, tokenizer, seq)[1]


@torch.no_grad()
def loglikelihoods(stage: GPTStage, rows: Sequence[tuple[list[int], int]]) -> Tensor:
    """log p of the last tokens of each row, given those before: [rows]."""
    assert stage.embedding is not None
    assert stage.head is not None
    check_use(stage.config, "evaluate")
    device = next(stage.parameters()).device
    tokens = pad([row[:-1] for row, _ in rows], device)
    targets = torch.full_like(tokens, IGNORE)
    for target, (row, scored) in zip(targets, rows, strict=True):
        target[len(row) - 1 - scored : len(row) - 1] = torch.tensor(row[len(row) - scored :])
    x = stage.embedding(tokens)
    for block in stage.layers.values():
        x = block(x)
    logits, head = stage.head.scores(x), stage.head
    losses = [
        head.parallel.cross_entropy(a, b, stage.config.vocab)
        for a, b in zip(logits.split(1), targets.split(1), strict=True)
    ]
    return -torch.stack(losses)


def answers(
    stage: GPTStage,
    item: Prompt,
    tokens: int,
    job: EvaluationJob,
    seed: tuple[int, ...],
    tokenizer: Tokenizer | None,
) -> list[bytes]:
    """What the model says to a prompt: `samples` texts of at most `tokens` tokens."""
    prompt = encode(item.text, tokenizer)[-(job.model.seq + 1 - tokens) :]
    cache = StaticCache(stage, job.samples, len(prompt) + tokens - 1)
    sampling = dataclasses.replace(
        job.sampling, seed=hash(seed) & 0x7FFFFFFF
    )  # of integers: the same in every process
    chosen = [listed(c) for _, c in Generator(stage, [prompt] * job.samples, tokens, cache, sampling)]
    texts = zip(*chosen, strict=True)
    return [bytes(text) if tokenizer is None else tokenizer.decode_bytes(text) for text in texts]


# ---- theory ------------------------------------------------------------------------------------------------
def predict_traffic(job: EvaluationJob) -> int:
    """Bytes that all ranks send for the scores: 2 (dp - 1) S of 8 bytes in each of tp planes (Eq 9)."""
    return 2 * (job.dp - 1) * job.scores * 8 * job.tp

"""Evaluation on many ranks: dp ranks share out the items of a task, tp ranks score each item together.

One all-reduce at the end gives every rank the scores of all items:

    item 0 1 2 3 4 5 ...  rank 0: 0 2 4 ...  scores [x . x . x .]
    dp = 2                rank 1: 1 3 5 ...  scores [. x . x . x]  ─all-reduce─►  [x x x x x x] on every rank

log p(continuation | context) is minus the training loss, summed over the continuation's tokens only: the same
forward, the same vocabulary-parallel cross-entropy. Shorter sequences are padded at their end, where causal
attention does not see the padding. A sampled answer depends only on the seed and the item, so scores do not
depend on dp and tp. For S scores of 8 bytes all ranks together send tp · 2 (dp - 1) · 8 S bytes (Eq 9).

But: no pipeline; a sequence must fit into the model's positions, so a longer context loses its beginning (as
in lm-evaluation-harness).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glasscluster.base.errors import InputError
from glasscluster.model.config import ModelConfig
from glasscluster.model.decoding.cache import StaticCache
from glasscluster.model.decoding.generate import GREEDY, Generator, Sampling, listed, pad
from glasscluster.model.gpt import GPTStage
from glasscluster.model.parallel import IGNORE
from glasscluster.model.text.tasks import Choice, Item, Prompt, Task, Text
from glasscluster.model.text.tokenizer import Tokenizer
from glasscluster.model.uses import check_use
from glasscluster.sim.ranks.gpu import GPU
from glasscluster.strategies.serving.generation import make_stage

UNKNOWN = "\ufffd".encode()  # in the place of a token that no text has


@dataclass(frozen=True)
class EvaluationJob:
    """Everything a rank needs to evaluate.

    `samples`: answers drawn for every prompt. `tokenizer`: the path of a tokenizer.json; None: each byte is a
    token.
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
        """How many numbers are all-reduced.

        An item has one for each of its choices, or one if it is a prompt or a text; and one more in which the
        ranks that scored it are counted.
        """
        items = [item for task in self.tasks for item in task.items]
        return sum(numbers(item) for item in items) + len(items)


@dataclass
class RankEvaluation:
    """What a rank brings back of an evaluation.

    Attributes:
        scores: for every task and item, its scores: the log-likelihood of each choice, the log-likelihood of
            a text, or how many samples of a prompt were right.
        scored: for every task and item, how many ranks of dp scored it; 1 where all is well.
        lengths: for every task and item, how many tokens of a text were scored; 0 for other items.
        sizes: for every task and item, how many bytes those tokens stand for.
        answers: (task, item) -> the answers that this rank sampled.
    """

    scores: list[list[list[float]]] = field(default_factory=list)
    scored: list[list[int]] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    sizes: list[list[int]] = field(default_factory=list)
    answers: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)


def numbers(item: Item) -> int:
    """How many scores an item has: one for each choice, or one."""
    return len(item.choices) if isinstance(item, Choice) else 1


def evaluate_rank(gpu: GPU, job: EvaluationJob) -> RankEvaluation:
    """Evaluate on this rank (an SPMD program: every rank runs it, on every backend).

    Raises:
        InputError: for items that cannot be scored (`check_items`).
    """
    mesh = gpu.make_mesh({"dp": job.dp, "tp": job.tp})
    tokenizer = check_items(job)
    with gpu.unrecorded():
        stage = make_stage(gpu, job.model, job.tp, job.precision, job.seed, job.weights, job.algorithm, mesh)
        for parameter in stage.parameters():
            gpu.memory.register(parameter, "parameters")
        all_scores = torch.zeros(job.scores, dtype=torch.float64, device=gpu.device)
    counted = [[scored_of(i, tokenizer, job.model.seq) for i in t.items] for t in job.tasks]
    result = RankEvaluation(
        lengths=[[tokens for tokens, _ in task] for task in counted],
        sizes=[[nbytes for _, nbytes in task] for task in counted],
    )
    gpu.start_step()
    rank, at, step = mesh.index("dp"), 0, 0
    for t, task in enumerate(job.tasks):
        places: list[int] = []  # for each of this rank's rows, the index of its score in `all_scores`
        rows: list[tuple[list[int], int]] = []  # for each, its tokens and how many of them are scored
        for i, item in enumerate(task.items):
            if i % job.dp == rank:
                all_scores[at + numbers(item)] = 1
                if isinstance(item, Prompt):
                    with gpu.region("forward", micro_batch=step):
                        result.answers[t, i] = answers(
                            stage, item, task.tokens, job, (job.seed, t, i), tokenizer
                        )
                    all_scores[at] = sum(map(item.right, result.answers[t, i]))
                    step += 1
                else:
                    new = [row_of(item, c, tokenizer, job.model.seq) for c in range(numbers(item))]
                    # a text of one token has nothing to score
                    scorable = [(at + c, row) for c, row in enumerate(new) if row[1]]
                    places += [place for place, _ in scorable]
                    rows += [row for _, row in scorable]
            at += numbers(item) + 1
        for a in range(0, len(rows), job.batch):
            with gpu.region("forward", micro_batch=step):
                scores = loglikelihoods(stage, rows[a : a + job.batch])
            all_scores[torch.tensor(places[a : a + job.batch])] = scores.double()
            step += 1
    with gpu.region("forward", micro_batch=step):
        mesh["dp"].all_reduce(all_scores, algorithm=job.algorithm, purpose="scalars", label="scores")
    rest = iter(all_scores.tolist())
    for task in job.tasks:
        pairs = [([next(rest) for _ in range(numbers(item))], round(next(rest))) for item in task.items]
        result.scores.append([scores for scores, _ in pairs])
        result.scored.append([times for _, times in pairs])
    return result


def encode(text: bytes, tokenizer: Tokenizer | None, begins: bool = False) -> list[int]:
    """The tokens of a text; without a tokenizer its bytes. begins: nothing stands before it, so that the
    tokens come first that the tokenizer puts before a text. None come behind: the model goes on.
    """
    if tokenizer is None:
        return list(text)
    return [*(tokenizer.rules.before if begins else ()), *tokenizer.encode(text)]


def row_of(item: Item, choice: int, tokenizer: Tokenizer | None, seq: int) -> tuple[list[int], int]:
    """The tokens of an item with one of its continuations, and how many tokens at the end are scored.

    There are at most seq + 1 tokens; a context that is too long loses its beginning. Context and continuation
    are tokenized separately: if a token spanned both, no token would be where the continuation begins.
    """
    if isinstance(item, Choice):
        before, after = encode(item.context, tokenizer, begins=True), encode(item.choices[choice], tokenizer)
    else:
        tokens = encode(item.text, tokenizer, begins=True)  # type: ignore[union-attr]
        before, after = tokens[:1], tokens[1:]
    return [*before, *after][-(seq + 1) :], min(len(after), seq)


def text_of(tokens: Iterable[int], tokenizer: Tokenizer | None) -> bytes:
    """The bytes that tokens stand for; U+FFFD for numbers that only the model's table has."""
    if tokenizer is None:
        return b"".join(bytes([t]) if t < 256 else UNKNOWN for t in tokens)
    return b"".join(tokenizer.decode_bytes([t]) if t in tokenizer else UNKNOWN for t in tokens)


def scored_of(item: Item, tokenizer: Tokenizer | None, seq: int) -> tuple[int, int]:
    """How many tokens of a Text are scored, all but the first at most, and how many bytes they are. 0 for
    other items.
    """
    if not isinstance(item, Text):
        return 0, 0
    row, scored = row_of(item, 0, tokenizer, seq)
    return scored, len(text_of(row[len(row) - scored :], tokenizer))


def check_items(job: EvaluationJob) -> Tokenizer | None:
    """Check that every item can be scored: nothing is divided by zero, and no score is of a part of an answer.

    Returns:
        The tokenizer; None where tokens are bytes.

    Raises:
        InputError: naming the vocabulary, the sequence's length or the task.
    """
    seq, vocab = job.model.seq, job.model.vocab
    tokenizer = Tokenizer.load(job.tokenizer) if job.tokenizer is not None else None
    if tokenizer is None and vocab < 256:
        rule = "texts are bytes: give a tokenizer, or a vocabulary of at least 256 tokens"
        raise InputError("vocab", vocab, rule, [256])
    if tokenizer is not None:
        tokenizer.check_vocab(vocab, str(job.tokenizer), job.weights)
    for task in job.tasks:
        for number, item in enumerate(task.items):
            empty = ""
            if isinstance(item, Prompt):
                empty = "" if item.text else "has an empty prompt, after which nothing is likely"
            elif isinstance(item, Choice) and not item.context:
                empty = "has an empty context: nothing stands before the first token of its continuations"
            elif isinstance(item, Choice) and not all(item.choices):
                empty = "has an empty continuation, which is always certain"
            if empty:
                raise InputError("task", task.name, f"item {number} {empty}")
            texts = item.choices if isinstance(item, Choice) else ()
            longest = max((len(encode(text, tokenizer)) for text in texts), default=0)
            if longest > seq:
                rule = (
                    f"item {number} of {task.name} has a continuation of {longest} tokens, and all are scored"
                )
                raise InputError("seq", seq, rule, [longest])
        texts_alone = all(isinstance(item, Text) for item in task.items)
        if texts_alone and not any(scored_of(item, tokenizer, seq)[0] for item in task.items):
            raise InputError("task", task.name, "no text has a second token, and the first is not scored")
    return tokenizer


@torch.no_grad()
def loglikelihoods(stage: GPTStage, rows: Sequence[tuple[list[int], int]]) -> Tensor:
    """The log-likelihood, in nats, of the scored tokens of each row, given the tokens before them: [rows].

    Raises:
        ValueError: a row scores no token, or has none before those that it scores.
    """
    if any(not 0 < scored < len(row) for row, scored in rows):
        raise ValueError("every row scores at least one token, and has at least one before it")
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
    """The model's answers to a prompt: `job.samples` texts of `tokens` tokens each."""
    prompt = encode(item.text, tokenizer, begins=True)[-(job.model.seq + 1 - tokens) :]
    cache = StaticCache(stage, job.samples, len(prompt) + tokens - 1)
    # the hash of a tuple of integers is the same in every process
    sampling = dataclasses.replace(job.sampling, seed=hash(seed) & 0x7FFFFFFF)
    chosen = [listed(c) for _, c in Generator(stage, [prompt] * job.samples, tokens, cache, sampling)]
    texts = zip(*chosen, strict=True)
    return [text_of(text, tokenizer) for text in texts]


# ---- theory ------------------------------------------------------------------------------------------------
def predict_traffic(job: EvaluationJob) -> int:
    """Bytes that all ranks send for S scores: tp ring all-reduces of 8 S bytes over dp ranks (Eq 9)."""
    return 2 * (job.dp - 1) * job.scores * 8 * job.tp

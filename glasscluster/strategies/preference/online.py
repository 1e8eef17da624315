"""PPO and GRPO on ranks: each role runs on a rank, and what roles send each other is recorded.

One iteration of PPO (Schulman et al., 1707.06347; with the roles of InstructGPT, 2203.02155). GRPO has no
critic, and so none of the critic's messages:

    rollout          writes answers ···  tokens ──► all ranks
    reference                            log π_ref(o_t) ──► actor                               (these three
    reward model                         R ──► actor                                             at the same
    critic                               v_t ──► actor                                           time)
    actor            r_t, A_t ···········targets ──► critic; both train, side by side;  weights ──► rollout

    sent in an iteration  Ψ·w weights;  B·S·8 tokens (to each other rank);
    of PPO (bytes)        B·T·w' log-probabilities of the reference;  B·T·w' values;  B·w' scores;
                          B·T·w' targets. w bytes a parameter, w' = max(w, 4) bytes a log-probability;
                          B answers, S tokens of prompt and answer, T of the answer

Every rank runs the same list of steps and computes only those of its own roles, so that roles on one rank run
one after the other and send nothing. Each step of generation is recorded as a micro-batch, then the forwards
on the answers as one, then each epoch as one.

But: one rank a role (no data or tensor parallelism within it); no mini-batches; and no overlap of generation
and training: the rollout waits for new weights, training waits for answers. Systems in which the rollout runs
ahead (2410.18252) train on answers of an older policy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glasscluster.model.decoding.cache import StaticCache
from glasscluster.model.decoding.generate import Generator, Sampling, listed
from glasscluster.strategies.preference import grpo, ppo
from glasscluster.strategies.preference.cast import Cast, Made, number_of
from glasscluster.strategies.preference.policy import prompts_of
from glasscluster.strategies.preference.sequences import log_probs, scores, values


def refresh(cast: Cast) -> None:
    """Send the actor's weights to the rollout, unless they share a rank."""
    if cast.shares:
        return
    where = cast.job.where
    if cast.has_role("actor"):
        cast.comm.send(cast.held["actor"].flat, where["rollout"], purpose="parameters", label="weights")
    if cast.has_role("rollout"):
        held = cast.held["rollout"]
        cast.comm.recv(held.flat, where["actor"], purpose="parameters", label="weights")
        # receiving has renamed the buffer to the message's label, so it gets its name back
        held.remember(held.flat, "parameters")


def roll_out(cast: Cast, iteration: int) -> Tensor:
    """Sample answers to this iteration's prompts and broadcast them: [B, S] on every rank."""
    gpu, job, n = cast.gpu, cast.job, cast.job.task.answer
    with gpu.unrecorded():
        tokens = torch.zeros(job.answers, job.task.length, dtype=torch.int64, device=gpu.device)
    if cast.has_role("rollout"):
        seed = job.sampling_seed(iteration)
        stage = cast.held["actor" if cast.shares else "rollout"].model
        with gpu.unrecorded():
            prompts = prompts_of(job.task, job.prompts, job.group, seed)
            cache = StaticCache(stage, job.answers, job.task.length - 1)
            for pool in (t for pools in cache.pools.values() for t in pools):
                gpu.memory.register(pool, "buffers", "rollout cache")
            cast.out.cache_bytes = cache.bytes
            tokens[:, : prompts.shape[1]] = prompts.to(gpu.device)
        steps = iter(Generator(stage, prompts.tolist(), n, cache, Sampling(temperature=1.0, seed=seed)))
        for number in range(n):
            with gpu.region("forward", micro_batch=number):
                _, chosen = next(steps)
            with gpu.unrecorded():
                tokens[:, prompts.shape[1] + number] = torch.tensor(listed(chosen), device=gpu.device)
    cast.comm.broadcast(tokens, src=job.where["rollout"], algorithm="tree", label="answers")
    return tokens


def experience(cast: Cast, tokens: Tensor) -> tuple[Made, Made, Made]:
    """Score the answers. On the actor's rank: log π_old and log π_ref [B, T], and the scores [B].

    On all other ranks (None, None, None).
    """
    job, n = cast.job, cast.job.task.answer
    reference = cast.on("reference", n, lambda model: log_probs(model, tokens, n))
    score = cast.on("reward", n, lambda model: scores(model, tokens))
    old = cast.on("actor", n, lambda model: log_probs(model, tokens, n))
    reference = cast.hand(reference, (job.answers, n), "reference", "actor", "reference log-probabilities")
    if job.reward == "model":
        score = cast.hand(score, (job.answers,), "reward", "actor", "scores")
    if old is None:
        return None, None, None
    with cast.gpu.unrecorded():
        right = job.task.reward(tokens)
        score = right.to(cast.wide) if job.reward == "rule" else score
        cast.out.rewards.append(number_of(right.mean()))
        cast.out.scores.append(number_of(score.mean()))
        cast.out.kl.append(number_of((old - reference).sum(1).mean()))
    return old, reference, score


def ppo_iteration(cast: Cast, iteration: int) -> None:
    """Run one iteration of PPO (1707.06347, Algorithm 1) with the rewards of 2203.02155."""
    job, n, mask = cast.job, cast.job.task.answer, cast.mask
    refresh(cast)
    tokens = roll_out(cast, iteration)
    own = cast.on("critic", n, lambda model: values(model, tokens, n))
    old, reference, score = experience(cast, tokens)
    before = cast.hand(own, (job.answers, n), "critic", "actor", "values")
    targets: Made = None
    advantages: Made = None
    if old is not None:
        with cast.gpu.region("forward", layer=-1, micro_batch=n):
            rewards = ppo.token_rewards(score, old, reference, mask, job.beta)
            raw, targets = ppo.advantages(rewards, before, mask, job.gamma, job.lam)
            advantages = ppo.whitened(raw, mask)
    targets = cast.hand(targets, (job.answers, n), "actor", "critic", "targets")
    for epoch in range(job.epochs):
        cast.learn(
            "actor",
            n + 1 + epoch,
            lambda model: ppo.policy_loss(log_probs(model, tokens, n), old, advantages, mask, job.clip),
        )
        cast.learn(
            "critic",
            n + 1 + epoch,
            lambda model: ppo.value_loss(values(model, tokens, n), own, targets, mask, job.clip),
        )


def grpo_iteration(cast: Cast, iteration: int) -> None:
    """Run one iteration of GRPO (2402.03300, Algorithm 1), with a reference that is never updated."""
    job, n, mask = cast.job, cast.job.task.answer, cast.mask
    refresh(cast)
    tokens = roll_out(cast, iteration)
    old, reference, score = experience(cast, tokens)
    advantages: Made = None
    if score is not None:
        with cast.gpu.region("forward", layer=-1, micro_batch=n):
            advantages = grpo.advantages(score.view(job.prompts, job.group)).view(-1)
    for epoch in range(job.epochs):
        cast.learn(
            "actor",
            n + 1 + epoch,
            lambda model: grpo.loss(
                log_probs(model, tokens, n), old, reference, advantages, mask, job.clip, job.beta
            ),
        )

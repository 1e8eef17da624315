"""Preference tuning, small but real: imitate, compare, then be rewarded.

    rewards.py        the task and the rule that checks an answer
    sequences.py      log-probabilities, values and scores of whole sequences
    sft.py            imitate demonstrations                                  2203.02155
    reward_model.py   learn a reward from comparisons                         Bradley and Terry
    dpo.py            the same comparisons, without a reward model            2305.18290
    ppo.py            reward, critic, clipped ratio, KL to the reference      1707.06347
    grpo.py           a group of answers is the baseline, no critic           2402.03300

The losses are pure functions of tensors. On ranks:

    job.py            what is tuned, and which rank plays which role
    held.py           what a rank holds for a role: parameters alone, or gradients and Adam too
    cast.py           the roles of a rank, and how what one made gets to another
    online.py         an iteration of PPO and GRPO: rollout, experience, training
    offline.py        an iteration of SFT, reward model, DPO
    ranks.py          the program, and the theory of its memory (Eq 39) and messages
    placements.py     which roles share a GPU when memory is short
    alone.py          all of it in one process: the reference
    policy.py         sampling, the exact expected reward, KL, comparisons
"""

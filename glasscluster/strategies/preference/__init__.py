"""Preference tuning of a small model: by imitation, by comparisons, and by rewards (RLHF).

    rewards.py        the task, and the rule that checks an answer
    sequences.py      log-probabilities, values and scores of whole sequences
    sft.py            imitate demonstrations                                  2203.02155
    reward_model.py   learn a reward from comparisons                         Bradley and Terry
    dpo.py            the same comparisons, without a reward model            2305.18290
    ppo.py            reward, critic, clipped ratio, KL to the reference      1707.06347
    grpo.py           a group of answers is the baseline, no critic           2402.03300

The losses are pure functions of tensors. On ranks:

    job.py            what is tuned, and which rank has which role (actor, critic, reference, ...)
    held.py           the model of a role on its rank: frozen, or with gradients and Adam's state
    cast.py           the roles of one rank, and the messages by which a role's results reach another role
    online.py         one iteration of PPO and GRPO: rollout, experience, training
    offline.py        one iteration of SFT, reward model and DPO
    ranks.py          the program of a rank, and what theory says of its memory (Eq 39) and messages
    placements.py     which roles share a GPU when memory is short
    alone.py          the same training in one process, which the ranks are compared with
    policy.py         sampling answers, the exact expected reward, KL, making comparisons
"""

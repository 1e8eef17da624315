"""Preference tuning, small but real: imitate, compare, then be rewarded.

    rewards.py        the task and the rule that checks an answer
    sequences.py      log-probabilities, values and scores of whole sequences
    sft.py            imitate demonstrations                                  2203.02155
    reward_model.py   learn a reward from comparisons                         Bradley and Terry
    dpo.py            the same comparisons, without a reward model            2305.18290
    ppo.py            reward, critic, clipped ratio, KL to the reference      1707.06347
    grpo.py           a group of answers is the baseline, no critic           2402.03300

The losses are pure functions of tensors.
"""

"""What DPO, PPO and GRPO make of an SFT policy, over 5 seeds: the tables of docs/preference.md.

python -m benchmarks.preference                             prints them
python -m benchmarks.preference --out docs/preference.md    writes them between the marks there
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean, stdev

from glasscluster.scenarios.jobs.tuning import VARIANTS, Course, Learned, learn

SEEDS = 5
NAMES = {
    "sft": "SFT",
    "dpo": "DPO",
    "dpo with SFT loss": "DPO with an SFT loss",
    "preferred alone": "SFT on the preferred answers",
    "ppo": "PPO",
    "grpo": "GRPO",
    "ppo without KL": "PPO, β = 0",
    "grpo without KL": "GRPO, β = 0",
}
BEGIN, END = "<!-- begin: python -m benchmarks.preference -->", "<!-- end -->"


def spread(values: list[float], digits: int = 3) -> str:
    """Mean ± standard deviation of a sample."""
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def table(courses: list[Learned]) -> str:
    """A row a method; gains are paired: a method's reward minus that of the SFT policy it started from."""
    heads = [
        "policy",
        "expected reward",
        "gain over SFT",
        "least gain",
        "gain ÷ its standard error",
        "KL to SFT (nats)",
    ]
    heads += ["reward model's score", "tokens written", "tokens trained on"]
    out = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for method in ("sft", *VARIANTS):
        rows = [c.rows[method] for c in courses]
        gains = [c.rows[method].reward - c.rows["sft"].reward for c in courses]
        told = ["–"] * 4
        if method != "sft":
            error = stdev(gains) / len(gains) ** 0.5
            told = [
                spread(gains),
                f"{min(gains):.3f}",
                f"{mean(gains) / error:.1f}",
                spread([r.kl for r in rows], 2),
            ]
        score = spread([r.score for r in rows if r.score is not None], 2)
        cells = [NAMES[method], spread([r.reward for r in rows])]
        out.append(
            "| " + " | ".join([*cells, *told, score, f"{rows[0].written:,}", f"{rows[0].trained:,}"]) + " |"
        )
    agreement = spread([c.agreement for c in courses])
    out += ["", f"{len(courses)} seeds; ± is the standard deviation over them."]
    out += [f"The reward model agrees with the rule on {agreement} of comparisons that it never saw."]
    return "\n".join(out)


def by_seed(courses: list[Learned]) -> str:
    """Expected reward, a column a seed."""
    out = [
        "| seed | " + " | ".join(str(s) for s in range(len(courses))) + " |",
        "|---" * (len(courses) + 1) + "|",
    ]
    for method in ("sft", *VARIANTS):
        out.append(
            f"| {NAMES[method]} | " + " | ".join(f"{c.rows[method].reward:.3f}" for c in courses) + " |"
        )
    return "\n".join(out)


def main() -> None:
    """Run the courses and write."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--out", type=Path)
    asked.add_argument("--seeds", type=int, default=SEEDS)
    options = asked.parse_args()
    courses = [
        learn(s, Course(), tuple(VARIANTS), lambda text: print(text, file=sys.stderr, flush=True))
        for s in range(options.seeds)
    ]
    text = f"{table(courses)}\n\nExpected reward by seed:\n\n{by_seed(courses)}"
    if options.out is None:
        print(text)
        return
    before, _, rest = options.out.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    options.out.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()

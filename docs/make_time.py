"""Write docs/time.md from glasscluster/base/breakdown.py: `python docs/make_time.py`.

With --check nothing is written, and the exit code says whether the page is up to date.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from glasscluster.base.breakdown import ENTRIES, PAPERS, capital
from glasscluster.base.text import Said

PAGE = Path(__file__).resolve().parent / "time.md"

HEAD = """# Where a rank's time goes

<!-- Made by docs/make_time.py of glasscluster/base/breakdown.py: edit that file, not this one. -->

One list of words, used by the timeline and its legend, the figure of each rank's time, `breakdown_s` in JSON,
the columns `breakdown_…_s` of `predict --csv`, the sentences of reports and commands, and the slider's answer
on the page. Every instant of every rank, from the start to the end of the last rank, is in exactly one entry:
so the entries add up to 100 % of every rank's time. `breakdown_s` is of the rank that finishes last, the
lowest of several; the page shows all ranks.

While a rank computes, the phase of what it computes decides. While it does not, it waits for something: the
event whose end lets it go on.

"""

FLIGHT = """
A message is in flight from the moment its send begins, a collective from the moment its last rank has come to
it. So a rank that waits for a message which has not been sent yet first waits for the *sender*, and the time
is `bubble` if the sender is another stage of a pipeline, else `wait`; from then on it waits for the
*message*, and the time is `exposed_AXIS`. A rank that has ended waits for the rank that finishes last.
Communication behind which a rank computes is hidden: it is in no entry. Axes of a user's own program have an
entry of their own, such as `exposed_world`.

`exposed_comm_s` is the sum of the entries `exposed_AXIS`, as a mean over ranks; `exposed_comm_per_rank_s` has
each rank's. The figure of each rank's time divides `compute` further, by whether any communication of the
rank was under way meanwhile.

## The bubble of the papers

Papers on pipelines call all idle time the bubble, the time of messages included, and count it in a window
that has no optimizer in it. These are other numbers than the entry `bubble`, and are never called just
"bubble" here. They exist only where something is pipelined; without a pipeline they are `null`, and no sentence or
figure speaks of bubbles.

"""

TAIL = """
With equal stages, free messages and no other work, GPipe's and 1F1B's `bubble_fraction` is (p−1)/(m+p−1) and
`bubble_over_ideal` is (p−1)/m (Eq 20 of the [formulas](formulas.md)). A message that takes time adds to both,
and in the breakdown to `exposed_pp`.
"""


def item(key: str, name: Said, meaning: Said) -> str:
    """A point of a list: key and names, then the definition in both languages, each on lines of its own."""
    english = textwrap.wrap(f"{capital(meaning.en)}.", 106, break_on_hyphens=False)
    return "\n  ".join(
        [f"- **`{key}`** · {name.en} · {name.zh}  ", *english[:-1], f"{english[-1]}  ", f"{meaning.zh}。"]
    )


def page() -> str:
    """The whole page."""
    entries = [item(key, entry.name, entry.meaning) for key, entry in ENTRIES.items()]
    papers = [item(key, *said) for key, said in PAPERS.items()]
    return HEAD + "\n".join(entries) + "\n" + FLIGHT + "\n".join(papers) + "\n" + TAIL


if __name__ == "__main__":
    if "--check" in sys.argv:
        old = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page()
        sys.exit("docs/time.md is old: python docs/make_time.py" if old else 0)
    PAGE.write_text(page(), encoding="utf-8")

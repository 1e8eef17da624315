"""`glass lessons --new NAME`: the skeleton of a lesson, a folder with a program and its texts, that runs as
it stands.

It holds every part that a lesson must have, each with a placeholder to write over, and passes what every
lesson is tested for. Standing in `scenarios/lessons/` it is one of the lessons; anywhere else `glass run
FOLDER` runs it.
"""

from __future__ import annotations

from pathlib import Path

from glasscluster.base.errors import InputError
from glasscluster.scenarios.lesson import NAME

PROGRAM = '''"""ID: one line that says what the lesson is about."""

from __future__ import annotations

from typing import Any

import torch

from glasscluster.scenarios.lab import Lab
from glasscluster.scenarios.lesson import lesson
from glasscluster.visualize.figures.plots import bars


def program(gpu: Any, elements: int) -> float:
    """What every rank does; what it returns comes back in `run.results`, by rank."""
    x = torch.full((elements,), float(gpu.rank))
    gpu.comm.all_reduce(x, algorithm="ring")
    return float(x[0])


@lesson
def NAME(lab: Lab, gpus: int = 4, elements: int = 1200) -> None:
    """What runs, in a sentence or two: the story begins with it, and `glass run ID --help` shows it."""
    elements -= elements % gpus
    run = lab.run("sum", lab.text("sum"), program, elements, gpus=gpus)
    size, sent = 4 * elements, run.graph.bytes_sent()
    lab.ask("bytes_sent", sent[0] / size, "S", gpus=gpus)  # its range and unit stand in text.toml
    lab.row("sent_by_rank_0", 2 * (gpus - 1) * size // gpus, sent[0], "Patarasuk-Yuan 2009 (Eq 9)")
    lab.figure("by_rank", lambda lang: sent_by_rank(lab, lang, sent))
    lab.tell("sent", view="tab=timeline", sent=sent[0], size=size)
    lab.tell("times", view="tab=ledger", ratio=sent[0] / size)
    lab.tell("all_alike", view="tab=network", ranks=len(set(sent)))
    lab.conclude(ratio=sent[0] / size)
    lab.explain()
    lab.own_number(ratio=sent[0] / size, gpus=gpus)  # fills the blanks of the card, too


def sent_by_rank(lab: Lab, lang: str, sent: list[int]) -> Any:
    """A figure of the lesson's own."""
    ranks = [str(rank) for rank in range(len(sent))]
    return bars(ranks, {lab.word("bytes", lang): sent}, lab.word("bytes", lang))
'''

TEXT = """\
# All that people read. Blanks such as {gpus} are filled by the program, with a format \
where it helps: {sent:,}
id = "ID"

[title]
en = "A new lesson"
zh = "新的一课"

[topic]
en = "communication"
zh = "通信"

[question]
en = "How much does a GPU send to sum a buffer?"
zh = "对一个缓冲区求和，一块 GPU 要发送多少？"

[kills]
en = "“The misconception, as people say it.” What is true instead."
zh = "“人们常说的误解。”事实是什么。"

[formula]
id = "Eq 9"
text = "2(N−1)/N·S sent per rank"
match = "X"
source = "Patarasuk-Yuan 2009"

# what each symbol of the formula means
[formula.symbols]
N.en = "ranks"
N.zh = "rank 数"
S.en = "bytes of the buffer"
S.zh = "缓冲区的字节数"

[card.question]
en = "The question, as an interviewer asks it."
zh = "面试官会怎样问。"

# A number in a card comes from the run; a ratio, an exponent or a direction names the row that holds it.
[card.short]
en = "The answer in thirty seconds: {ratio:.3g} times the buffer on {gpus} GPUs."
zh = "三十秒的回答：{gpus} 块 GPU 时为缓冲区的 {ratio:.3g} 倍。"
row = "sent_by_rank_0"

[card.long]
en = '''
The answer in two minutes. A long text is wrapped like this one; a line break is read as a space, and between
Chinese characters as nothing.'''
zh = "两分钟的回答。"

[[card.follow_ups]]
en = "What is asked next?"
zh = "接着会问什么？"
answer.en = "Its answer in one or two sentences."
answer.zh = "用一两句话回答。"

[[card.follow_ups]]
en = "And after that?"
zh = "再接着呢？"
lesson = "C3"

# ten to twenty lines that ran: `program:NAME` of this lesson, or `glasscluster.a.module:Class.method`
[[code]]
of = "program:program"
caption.en = "What every rank does"
caption.zh = "每个 rank 所做的"

[ask.bytes_sent]
en = "A buffer of S bytes on {gpus} GPUs: how many S does each GPU send?"
zh = "{gpus} 块 GPU，缓冲区 S 字节：每块发送几个 S？"
range = [0, 100]
from = ["gpus"] # the blanks that the answer is computed from

[[plan]]
minutes = "0-15"
en = "Ask the question; everyone writes a number down."
zh = "提问，每人写下一个数字。"
wrong.en = "The wrong answer to expect."
wrong.zh = "预计会出现的错误答案。"

[[plan]]
minutes = "15-40"
en = "{figure:by_rank}: what do you see? {option:gpus=8}, then {row:sent_by_rank_0}."
zh = "{figure:by_rank}：看到了什么？{option:gpus=8}，再看{row:sent_by_rank_0}。"

[[plan]]
minutes = "40-50"
en = "In pairs, the interview card."
zh = "两人一组练习面试卡。"

[tell.sent]
en = "Rank 0 sent {sent:,} bytes for a buffer of {size:,}."
zh = "缓冲区 {size:,} 字节，rank 0 发送了 {sent:,} 字节。"

[tell.times]
en = "That is {ratio:.3g} times the buffer."
zh = "是缓冲区的 {ratio:.3g} 倍。"

[tell.all_alike]
en = "Different numbers of bytes over the ranks: {ranks}."
zh = "各 rank 发送字节数的不同取值个数：{ranks}。"

[conclude]
en = "Each GPU sends {ratio:.3g} S."
zh = "每块 GPU 发送 {ratio:.3g} S。"

[explain]
en = "Why it came out so, in a sentence or two."
zh = "用一两句话解释结果为何如此。"

[[explain.points]]
en = "What a good explanation says."
zh = "好的解释会提到的一点。"

[[explain.points]]
en = "And what else it says."
zh = "还会提到的另一点。"

[own_number]
en = "{ratio:.3g} S at N = {gpus}."
zh = "N = {gpus} 时 {ratio:.3g} S。"

[text.sum]
en = "A sum over all ranks"
zh = "对所有 rank 求和"

[text.by_rank]
en = "Bytes sent by rank"
zh = "各 rank 发送的字节数"

[text.bytes]
en = "bytes"
zh = "字节"

[rows.sent_by_rank_0]
en = "sent by rank 0"
zh = "rank 0 发送量"
"""


def new_lesson(name: str, home: Path) -> Path:
    """Write the skeleton.

    Args:
        name: the folder's name: a letter and a number, then the subject, such as `c8_my_subject`.
        home: the folder to write it in.

    Returns:
        The lesson's folder.

    Raises:
        InputError: the name is not of that form, or there is such a folder already.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            "new", name, "must be a letter, a number and the subject in small letters, as c8_my_subject"
        )
    folder = home / name
    if folder.exists():
        raise InputError("new", name, f"there is such a folder already: {folder}")
    folder.mkdir(parents=True)
    id_, subject = name.split("_", 1)
    program = PROGRAM.replace("ID", id_.upper()).replace(
        "NAME", subject if subject.isidentifier() else f"lesson_{subject}"
    )
    (folder / "__init__.py").touch()
    (folder / "program.py").write_text(program, encoding="utf-8")
    (folder / "text.toml").write_text(TEXT.replace("ID", id_.upper()), encoding="utf-8")
    return folder

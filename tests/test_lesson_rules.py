"""The rules of docs/lessons.md, held for every lesson; and each rule, broken on purpose.

`pytest tests/test_lesson_rules.py -k B3` says what one lesson lacks. A lesson that does not follow a rule yet
stands in NOT_YET; it fails there as soon as it does, so that the lists only get shorter.
"""

from __future__ import annotations

import pytest
from lesson_rules import (
    FROM_TEXTS,
    OF_A_RUN,
)

from glasscluster.scenarios.lesson import LESSONS, find_lesson

NOT_YET: dict[str, str] = {}  # NOT_YET


def not_yet(rule: str) -> set[str]:
    return set(NOT_YET.get(rule, "").split())


@pytest.mark.parametrize("rule", FROM_TEXTS)
@pytest.mark.parametrize("id_", list(LESSONS))
def test_a_lesson_s_texts_follow_the_rules(id_, rule):
    found = FROM_TEXTS[rule](find_lesson(id_))
    if id_ in not_yet(rule):
        assert found, f"{id_} follows {rule}: take it off NOT_YET"
    else:
        assert not found, "\n".join(found)


EACH = [pytest.param(id_, marks=pytest.mark.xdist_group(f"lesson {id_}")) for id_ in LESSONS]


@pytest.mark.parametrize("rule", OF_A_RUN)
@pytest.mark.parametrize("id_", EACH)
def test_a_lesson_s_run_follows_the_rules(id_, rule, labs):
    found = OF_A_RUN[rule](find_lesson(id_), labs(id_))
    if id_ in not_yet(rule):
        assert found, f"{id_} follows {rule}: take it off NOT_YET"
    else:
        assert not found, "\n".join(found)

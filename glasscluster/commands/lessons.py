"""`glass lessons`: the lessons in order, and how to teach one."""

from __future__ import annotations

from glasscluster.commands.bodies import body
from glasscluster.commands.console import emit
from glasscluster.commands.options import command
from glasscluster.scenarios.requests.scenarios import LessonsRequest


@command(LessonsRequest)
def lessons(request: LessonsRequest, as_json: bool) -> int:
    """The lessons in order; `glass run LESSON` runs one, `--plan LESSON` says how to teach it."""
    content = body("lessons")(request)
    if as_json:
        emit(content)
        return 0
    if "folder" in content:
        print(f"{content['folder']}: program.py and text.toml; glass run {content['folder']}")
    for row in content.get("plan", []):
        print(f"{row['minutes']:6} {row['en']}\n       {row['zh']}")
    for row in content.get("lessons", []):
        print(f"{row['id']:3} {row['title']} · {row['title_zh']}")
    return 0

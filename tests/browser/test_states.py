"""The page in each state of a service, in a real browser: it says so, asks nobody else, and everybody can use it."""

from __future__ import annotations

from typing import Any

import pytest
from axe import axe_source, serious_problems
from stage import Stage
from states import LOOKS, STATES
from watching import Watched

SAYS = {
    "empty": "Healthy. Waiting, no adapter yet.",
    "waiting": "Healthy. Waiting: 3 of 8 new files, adapter v6 live for",
    "training": "Healthy. Training run 13, 77 %, 12 min left, adapter v12 live for",
    "experts": "Healthy. Training run 13, 77 %",
    "refused": "Healthy. Waiting: 5 of 8 new files, adapter v5 live for",
    "inconclusive": "Healthy. Waiting: 5 of 8 new files, adapter v5 live for",
    "published": "Healthy. Waiting: 5 of 8 new files, adapter v16 live for",
    "database_down": "Needs attention. Waiting: 5 of 8 new files, adapter v16 live for",
    "held": "Healthy. Paused on request, adapter v12 live for",
}
SECTIONS = {
    "empty": {"controls-title", "log-title", "no-files"},
    "waiting": {"quality"},
    "training": {"now", "loss-chart", "speed-chart", "quality"},
    "experts": {"now", "experts"},
    "refused": {"quality"},
    "inconclusive": {"quality"},
    "published": {"quality", "answers", "gain-chart", "suite-chart"},
    "database_down": {"connection"},
    "held": {"now"},
}
"""What must be shown in each state."""
OPTIONAL = {"now", "experts", "quality", "answers", "connection", "no-files"}


@pytest.mark.parametrize("state", STATES)
def test_the_page_shows_the_state(stage: Stage, watched: Watched, state: str) -> None:
    STATES[state](stage)
    page = watched.page
    with stage.served() as address:
        page.goto(address)
        page.locator("#controls button").first.wait_for()
        for section in SECTIONS[state]:
            page.locator(f"#{section}").wait_for(state="visible")
        page.wait_for_load_state("networkidle")
        assert page.locator("#sentence").inner_text().startswith(SAYS[state])
        for section in OPTIONAL - SECTIONS[state] - {"quality"}:
            page.locator(f"#{section}").wait_for(state="hidden")  # a slow machine may have shown it for a moment
        assert serious_problems(page, axe_source()) == []
        assert watched.strangers(address) == [], "the page asks nobody else"
    allowed = "503" if state == "database_down" else "nothing"
    assert [said for said in watched.problems if allowed not in said] == []


@pytest.mark.parametrize("look", ["dark", "phone"])
def test_dark_and_narrow_pages_can_be_used_too(stage: Stage, browser: Any, look: str) -> None:
    STATES["training"](stage)
    seen = Watched(browser, **LOOKS[look])
    with stage.served() as address:
        seen.page.goto(address)
        seen.page.locator("#loss-chart canvas").wait_for()
        assert serious_problems(seen.page, axe_source()) == []
        width = seen.page.evaluate("document.documentElement.scrollWidth")
        assert width <= LOOKS[look]["viewport"]["width"], "nothing sticks out at the side"
        seen.page.locator("#runs button").nth(1).click()
        seen.page.locator("#run-chart, #panel-body table").first.wait_for()
        assert serious_problems(seen.page, axe_source()) == []
    seen.context.close()
    assert seen.problems == []

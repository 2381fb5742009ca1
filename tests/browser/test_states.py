"""The page in each state of a service, in a real browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from conftest import Watched
from stage import Stage
from states import STATES

SHOTS = os.environ.get("SCREENSHOTS")
"""A folder for screenshots of every state, to look at."""
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1200, "height": 900}},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"},
}


@pytest.mark.skipif(SHOTS is None, reason="SCREENSHOTS names no folder")
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("state", STATES)
def test_screenshots(stage: Stage, browser: Any, state: str, look: str) -> None:
    STATES[state](stage)
    seen = Watched(browser, **LOOKS[look])
    with stage.served() as address:
        seen.page.goto(address)
        seen.page.wait_for_timeout(1500)
        seen.page.screenshot(path=Path(str(SHOTS)) / f"{state}-{look}.png", full_page=True)
    seen.context.close()
    assert not [said for said in seen.problems if "503" not in said]

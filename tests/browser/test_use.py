"""What a person does on the page: opens reasons, runs and rows, acts with the token, and reads hostile texts safely."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from playwright.sync_api import expect
from stage import STREAM, TOKEN, Stage
from states import STATES, history
from watching import Watched

from db import holds

HOSTILE = (
    "<script>window.pwned = 1</script></pre><img src=x onerror='window.pwned = 2'>"
    "<svg onload='window.pwned = 3'>\x1b[31mred\x1b[0m \u202egnp.exe\u2066 javascript:alert(1) {{7*7}}"
)


def open_page(watched: Watched, address: str) -> None:
    watched.page.goto(address)
    watched.page.locator("#controls button").first.wait_for()


def give_token(watched: Watched, token: str) -> None:
    watched.page.locator("#token").fill(token)
    watched.page.locator("#token-form button[type=submit]").click()


def test_a_count_opens_its_reasons_then_rows_then_a_text_with_the_token(stage: Stage, watched: Watched) -> None:
    history(stage, 3)
    page = watched.page
    with stage.served() as address:
        open_page(watched, address)
        page.locator("[data-stage=arrived]").click()
        expect(page.locator("#panel-body tbody tr")).to_have_text(
            ["waiting5", "low score12", "duplicate3Show rows", "went on: admitted33"]
        )
        page.get_by_role("button", name="Show rows").click()
        expect(page.locator("#panel-title")).to_have_text("Rows: duplicate")
        expect(page.locator("#panel-body tbody tr")).to_have_count(3)
        page.locator("#panel-body tbody button").first.click()
        expect(page.locator("#panel-body .facts")).to_contain_text("rejected")
        assert page.locator(".row-text").count() == 0, "no text without the token"
        page.get_by_role("button", name="Show the text").click()
        give_token(watched, "wrong")
        expect(page.locator("#panel-body")).to_contain_text("wrong token")
        page.locator("#panel-close").click()
        page.locator("[data-stage=arrived]").click()
        page.get_by_role("button", name="Show rows").click()
        expect(page.locator("#panel-title")).to_contain_text("Rows:")
        page.locator("#panel-body tbody button").first.click()
        page.get_by_role("button", name="Show the text").click()
        give_token(watched, TOKEN)
        expect(page.locator(".row-text")).to_contain_text("x = 0.")
        assert not [url for url in watched.asked if TOKEN in url], "the token is in no address"
    assert [said for said in watched.problems if "401" not in said] == []


def test_a_run_opens_its_rules_losses_curves_and_files(stage: Stage, watched: Watched) -> None:
    STATES["refused"](stage)
    page = watched.page
    with stage.served() as address:
        open_page(watched, address)
        page.get_by_role("button", name="Run 6: refused").click()
        body = page.locator("#panel-body")
        expect(body).to_contain_text("gain: worse by 0.0312")
        assert body.locator(".tag.fail").count() == 1 and body.locator(".tag.pass").count() == 8
        expect(body.get_by_role("cell", name="1.3400")).to_be_visible()
        body.locator("canvas").wait_for()
        body.get_by_role("button", name="List the files").click()
        expect(body.get_by_role("group", name="Files of the run").locator("tbody tr")).to_have_count(9)
    assert watched.problems == []


def test_every_run_that_is_opened_has_its_curves(stage: Stage, watched: Watched) -> None:
    history(stage, 3)
    for run_id in (1, 2):
        stage.events(run_id, 40)
    page = watched.page
    with stage.served() as address:
        open_page(watched, address)
        for run_id in (2, 1, 2):
            page.locator(f"[data-run='{run_id}']").click()
            page.locator("#run-chart canvas").wait_for()
            page.locator("#panel-close").click()
    assert watched.problems == []


def test_a_click_while_the_service_is_away_says_so(stage: Stage, watched: Watched) -> None:
    history(stage, 2)
    page = watched.page
    with stage.served() as address:
        open_page(watched, address)
        page.locator("#runs button").first.wait_for()
        page.route("**/api/v1/**", lambda route: route.abort())
        page.locator("#runs button").first.click()
        expect(page.locator("#panel-body")).to_have_text("the service does not answer")


def test_a_token_of_any_letters_can_be_given(stage: Stage, watched: Watched) -> None:
    stage.settings = replace(stage.settings, token="tok€n")
    page = watched.page
    with stage.served() as address:
        open_page(watched, address)
        for token, said in (("schlüssel", "wrong token"), ("tok€n", "no new run starts")):
            page.get_by_role("button", name="Pause").click()
            give_token(watched, token)
            expect(page.locator("#controls-said")).to_contain_text(said)


def test_a_run_on_a_card_shows_its_readings_and_its_experts(stage: Stage, watched: Watched) -> None:
    STATES["experts"](stage)
    with stage.served() as address:
        open_page(watched, address)
        facts = watched.page.locator("#now-facts")
        for said in ("28.4 GB of 33.6 GB", "97 %", "561 W", "71 °C", "2 of 3 evaluations"):
            expect(facts).to_contain_text(said)
        expect(watched.page.locator("#experts-map tbody tr")).to_have_count(4)
        assert watched.page.locator("#experts-map tbody tr").first.locator(".heat span").count() == 8


def test_the_keyboard_is_enough(stage: Stage, watched: Watched) -> None:
    history(stage, 2)
    page = watched.page
    with stage.served() as address:
        open_page(watched, address)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.dataset.stage") == "arrived"
        page.keyboard.press("Enter")
        expect(page.locator("#panel")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#panel")).to_be_hidden()
        assert page.evaluate("document.activeElement.dataset.stage") == "arrived", "the focus comes back"


def test_the_buttons_act_with_the_token(stage: Stage, watched: Watched) -> None:
    STATES["training"](stage)
    page = watched.page
    with stage.served() as address:
        open_page(watched, address)
        page.get_by_role("button", name="Stop and save").click()
        give_token(watched, "wrong")
        expect(page.locator("#controls-said")).to_contain_text("Not done: wrong token")
        assert holds.held(stage.pool, STREAM) is None
        page.get_by_role("button", name="Stop and save").click()
        give_token(watched, TOKEN)
        expect(page.locator("#controls-said")).to_contain_text("saves a checkpoint and stops")
        found = holds.held(stage.pool, STREAM)
        assert found is not None and found.stops_training
        stage.board.update(held_since=found.since.timestamp(), state="on_hold")
        page.get_by_role("button", name="Resume").click()  # the token is kept for this page
        expect(page.locator("#controls-said")).to_contain_text("the service goes on")
        assert holds.held(stage.pool, STREAM) is None
        page.get_by_role("button", name="Train now").click()
        expect(page.locator("#controls-said")).to_contain_text("a run starts as soon as possible")
        assert stage.query("select count(*) from codelupe.training_requests") == [(1,)]
        page.get_by_role("button", name="Roll back…").click()
        page.get_by_role("button", name="Make v10 current").click()
        expect(page.locator("#controls-said")).to_contain_text("Not done: ")  # its folder is not there
        expect(page.locator("#controls-said")).to_contain_text("does not exist")
        assert not [url for url in watched.asked if TOKEN in url], "the token is in no address"


def test_without_a_token_nothing_can_be_done(stage: Stage, watched: Watched) -> None:
    stage.settings = replace(stage.settings, token=None)
    with stage.served() as address:
        open_page(watched, address)
        expect(watched.page.locator("#controls-note")).to_contain_text("Set CODELUPE_TOKEN")
        assert watched.page.locator("#controls button:enabled").count() == 0


def test_hostile_texts_are_shown_and_run_nothing(stage: Stage, watched: Watched) -> None:
    history(stage, 3)
    run_id = stage.run("failed", reason=HOSTILE)
    [file_id] = stage.files(run_id, ("rejected", "rejected", HOSTILE))
    stage.query("update code_files set content = %s, path = %s, repository = %s", (HOSTILE, HOSTILE, HOSTILE))
    directory = stage.home.run(3)
    directory.root.mkdir(parents=True)
    directory.answers.write_text(json.dumps({"prompts": [{"prompt": HOSTILE, "candidate": HOSTILE, "base": HOSTILE}]}))
    stage.refresh()
    stage.home.log_file.write_text(f"INFO {HOSTILE}\n")
    stage.board.update(pending=None)
    stage.board.trouble("corpus", HOSTILE)
    page = watched.page
    with stage.served() as address:
        open_page(watched, address)
        expect(page.locator("#answers pre").first).to_contain_text("<script>window.pwned = 1</script></pre>")
        expect(page.locator("#log")).to_contain_text("␛[31mred␛[0m ⟨U+202E⟩gnp.exe⟨U+2066⟩")
        expect(page.locator("#sentence")).to_contain_text("<script>")
        page.locator("[data-stage=arrived]").click()
        page.get_by_role("button", name="Show rows").last.click()
        expect(page.locator("#panel-title")).to_contain_text("Rows:")
        page.locator("#panel-body tbody button").first.click()
        page.get_by_role("button", name="Show the text").click()
        give_token(watched, TOKEN)
        expect(page.locator(".row-text")).to_contain_text("</pre><img src=x onerror='window.pwned = 2'>")
        expect(page.locator(".row-text")).to_contain_text("⟨U+202E⟩gnp.exe")
        page.locator("#panel-close").click()
        page.get_by_role("button", name=f"Run {run_id}: failed").click()
        expect(page.locator("#panel-body")).to_contain_text("<svg onload=")
        assert page.evaluate("window.pwned") is None
        assert page.locator("img, main svg, dialog svg").count() == 0
        assert page.locator("script").count() == 2, "the page's own"
    assert file_id and watched.problems == []


def test_the_policy_refuses_what_a_hostile_text_would_need(stage: Stage, watched: Watched) -> None:
    with stage.served() as address:
        open_page(watched, address)
        page = watched.page
        for attempt in (
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned = 1\">')",
            "const one = document.createElement('script'); one.text = 'window.pwned = 2'; document.head.append(one)",
            "document.body.setAttribute('onclick', 'window.pwned = 3'); document.body.click()",
        ):
            page.evaluate(f"() => {{ try {{ {attempt} }} catch (error) {{ window.refused ??= String(error) }} }}")
        page.wait_for_timeout(200)
        assert page.evaluate("window.pwned") is None
        assert "TrustedHTML" in page.evaluate("window.refused"), "no HTML from strings"
        assert page.evaluate("fetch('http://127.0.0.1:1/').then(() => 'asked', () => 'refused')") == "refused"
    assert [said for said in watched.problems if "Content Security Policy" in said or "TrustedHTML" in said]


def test_a_service_that_ends_is_told_and_the_page_comes_back_by_itself(stage: Stage, watched: Watched) -> None:
    STATES["training"](stage)
    page = watched.page
    with stage.served() as address:
        open_page(watched, address)
        page.locator("#loss-chart canvas").wait_for()
    expect(page.locator("#connection")).to_contain_text("The service does not answer since", timeout=20_000)
    assert page.locator("#loss-chart canvas").count() == 1, "what was seen stays"


def test_a_reload_shows_the_same_history(stage: Stage, watched: Watched) -> None:
    STATES["training"](stage)
    page = watched.page
    with stage.served() as address:
        open_page(watched, address)
        page.locator("#loss-chart canvas").wait_for()
        before = page.locator("#loss-chart").get_attribute("aria-label")
        page.reload()
        page.locator("#loss-chart canvas").wait_for()
        assert page.locator("#loss-chart").get_attribute("aria-label") == before


@pytest.mark.long
def test_ten_thousand_runs_arrive_in_small_answers(stage: Stage, watched: Watched) -> None:
    many_runs(stage, 10_000)
    stage.refresh()
    page = watched.page
    sizes: list[int] = []
    page.on("response", lambda answer: "/api/v1/" in answer.url and sizes.append(len(answer.body())))
    with stage.served() as address:
        open_page(watched, address)
        page.locator("#held-out-chart canvas").wait_for()
        expect(page.locator("#runs button")).to_have_count(50)
        page.get_by_role("button", name="Older runs").click()
        expect(page.locator("#runs button")).to_have_count(100)
        page.wait_for_load_state("networkidle")
    assert max(sizes) < 300_000
    assert watched.problems == []


def many_runs(stage: Stage, count: int) -> None:
    """Copy one run with its report many times."""
    stage.run("published", losses=(1.9, 1.7, 1.6))
    stage.query(
        "insert into codelupe.runs (stream, state, seed, epoch, launches, report, created_at, started_at, ended_at)"
        " select stream, case when n %% 5 = 0 then 'refused' else 'published' end, 1, 1, 1, report, now(), now(), now()"
        " from codelupe.runs, generate_series(2, %s) n where run_id = 1",
        (count,),
    )


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_curl_gets_the_list_of_endpoints_and_a_browser_the_page(stage: Stage, watched: Watched, accept: str) -> None:
    with stage.served() as address:
        answer = watched.context.request.get(address, headers={"Accept": accept})
        assert answer.headers["content-type"] == "application/json"
        assert "/api/v1/openapi.json" in answer.json()["endpoints"]
        assert (
            "text/html" in watched.context.request.get(address, headers={"Accept": "text/html"}).headers["content-type"]
        )

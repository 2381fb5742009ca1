"""`python tests/browser/pictures.py FOLDER` makes pictures of the page in every state and look, for people."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psycopg2
from playwright.sync_api import sync_playwright
from psycopg2 import sql
from psycopg2.extensions import make_dsn
from stage import Stage
from states import LOOKS, STATES
from watching import CHROMIUM, QUIET

from db import embedded, migrate
from db.pool import Pool


def main(to: Path) -> None:
    """Write one file for each state and look."""
    to.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="codelupe-pictures-"))
    url = embedded.start(folder)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
            for state, arrange in STATES.items():
                pool = Pool(database(url, state))
                migrate.apply(pool)
                stage = Stage(pool, folder / state)
                arrange(stage)
                with stage.served() as address:
                    for look, options in LOOKS.items():
                        page = browser.new_page(**options)
                        page.goto(address)
                        page.wait_for_timeout(1500)
                        page.screenshot(path=to / f"{state}-{look}.png", full_page=True)
                        page.close()
                pool.close()
            browser.close()
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder)


def database(url: str, name: str) -> str:
    """Create a database and return its URL."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    connection.close()
    return make_dsn(url, dbname=name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

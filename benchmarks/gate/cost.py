"""What share of a run evaluation takes on this machine: python benchmarks/gate/cost.py [--tokens 800000]

The tiny model trains on as many tokens as 1,000 files of 800, with the default limits of evaluation. The files are
those of the installed packages. Takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainer.model.base import resolve
from trainer.recipe import Data, Evaluation, Recipe, pinned
from trainer.recipe_file import dump_recipe, load_recipe
from trainer.records import EventTail, Row, json_line
from trainer.run_dir import RunDirectory, content_sha256, read_json, sha256_file, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT_FILES = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=800_000, help="tokens to train on, approximately")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "000001")
        write_run(run, recipe(), files(chosen.tokens))
        command = [sys.executable, "-m", "trainer"]
        subprocess.run([*command, "run", str(run.root)], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
        began = time.monotonic()
        subprocess.run([*command, "examine", str(run.root)], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
        examining = time.monotonic() - began
        stopping = stopping_seconds(run)
        report = read_json(run.report)
    judging, whole = report["seconds"]["judge"], sum(report["seconds"].values()) + examining
    spent = stopping + judging + examining
    print(
        json.dumps(
            {
                "trained_tokens": report["train"]["tokens_seen"],
                "stopping_seconds": round(stopping, 1),
                "judging_seconds": round(judging, 1),
                "examination_seconds": round(examining, 1),
                "run_seconds": round(whole, 1),
                "share": round(spent / whole, 4),
            }
        )
    )


def recipe() -> Recipe:
    """The embedded recipe with the default recipe's limits of the evaluation."""
    found = load_recipe(ROOT / "recipes" / "embedded.yaml")
    model, revision = resolve(found.base)
    limits = Data()
    data = replace(found.data, max_eval_tokens=limits.max_eval_tokens, max_stopping_tokens=limits.max_stopping_tokens)
    evaluation = replace(Evaluation(), patience=1000)
    tracking = replace(found.tracking, tensorboard=False)
    return replace(pinned(found, model=model, revision=revision), data=data, evaluation=evaluation, tracking=tracking)


def files(tokens: int) -> list[Row]:
    """Return Python files of the installed packages, with about `tokens` tokens in all (three characters each)."""
    paths = sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))
    random.Random(0).shuffle(paths)
    rows: list[Row] = []
    chars = 0
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        if 400 <= len(text) <= 8000:
            rows.append(
                Row(
                    file_id=len(rows) + 1, repository="r", path=str(path), language="python", content=text,
                    sha256=content_sha256(text),
                )
            )  # fmt: skip
            chars += len(text) if len(rows) > HELD_OUT_FILES else 0
        if chars >= 3 * tokens:
            break
    return rows


def write_run(run: RunDirectory, recipe: Recipe, rows: list[Row]) -> None:
    run.root.mkdir()
    write_text(run.recipe, dump_recipe(recipe))
    for path, chosen in ((run.held_out, rows[:HELD_OUT_FILES]), (run.rows, rows[HELD_OUT_FILES:])):
        write_text(path, "".join(json_line(asdict(row)) for row in chosen))
    names = (run.recipe, run.rows, run.held_out)
    base = {"model": recipe.base.model, "revision": recipe.base.revision}
    write_json(
        run.manifest,
        {"files": {path.name: sha256_file(path) for path in names}, "run_id": 1, "stream": recipe.stream, "seed": 1,
         "parent_version": None, "parent_manifest_sha256": None, "base": base},
    )  # fmt: skip


def stopping_seconds(run: RunDirectory) -> float:
    """Sum of the times between a step, or the start of the fit, and the evaluations that follow it."""
    total, before = 0.0, None
    for event in EventTail(run.events).new():
        if event["event"] == "evaluation" and event.get("part") != "judging" and before is not None:
            total += event["time"] - before
        if event["event"] in ("step", "evaluation", "checkpoint") or event.get("stage") == "fit":
            before = event["time"]
    return total


if __name__ == "__main__":
    main()

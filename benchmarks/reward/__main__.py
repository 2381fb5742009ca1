"""Train the tiny base on eight toy tasks with both methods and three seeds: python benchmarks/reward [seeds]

It writes benchmarks/results/reward.md. With TRL installed (pip install trl datasets), it also measures TRL's
GRPOTrainer on the same tasks, base, adapter and rewards.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
METHODS = {"rejection": 3, "grpo": 6}
"""Number of rounds of each method."""
SAMPLES = 16


def train(folder: Path, method: str, seed: int) -> dict[str, Any]:
    """Train with one method and seed. Return reward.json and the seconds it took."""
    recipe = folder / f"{seed}.yaml"
    text = (HERE / "recipe.yaml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("training:\n", f"training:\n  seed: {seed}\n"), encoding="utf-8")
    to = folder / f"{method}-{seed}"
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "trainer", "reward", str(recipe), str(to), "--tasks", str(HERE / "tasks.jsonl"),
         "--method", method, "--rounds", str(METHODS[method]), "--samples-per-task", str(SAMPLES)],
        cwd=ROOT, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return {**json.loads((to / "reward.json").read_text()), "seconds": time.monotonic() - began, "seed": seed}


def trl(steps: int) -> str:
    """Measure TRL. Return its line of the table of times, or why there is none."""
    if importlib.util.find_spec("trl") is None:
        return "TRL is not installed here, so it was not measured."
    done = subprocess.run(
        [sys.executable, str(HERE / "trl_grpo.py"), str(SAMPLES), str(steps)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip
    if done.returncode:
        return f"TRL failed: {done.stderr.strip().splitlines()[-1]}"
    found = json.loads(done.stdout.splitlines()[-1])
    return f"| TRL {found['version']} | {found['model']:.2f} | {found['reward']:.2f} |"


def rate(part: dict[str, Any]) -> str:
    return f"{part['value']:.2f} ({part['low']:.2f}–{part['high']:.2f})"


def table(found: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the table of pass rates."""
    lines = [
        "| method | seed | rounds | training tasks before | after | held-out tasks before | after | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        first, last = one["rates"][0], one["rates"][-1]
        cells = [rate(rates[part]) for part in ("training", "held_out") for rates in (first, last)]
        lines.append(
            f"| {one['method']} | {one['seed']} | {len(one['rounds'])} | {' | '.join(cells)} | {one['seconds']:.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/reward", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("seeds", nargs="?", type=int, default=3, help="number of seeds")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "reward.md")
    given = parser.parse_args()
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    with tempfile.TemporaryDirectory() as folder:
        found = [train(Path(folder), method, seed) for method in METHODS for seed in range(1, given.seeds + 1)]
    rounds = [report for one in found if one["method"] == "grpo" for report in one["rounds"]]
    seconds = {
        name: statistics.fmean(report["seconds"][name] for report in rounds)
        for name in ("generate", "execute", "learn")
    }
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    worse = [one for one in found if one["rates"][-1]["training"]["value"] <= one["rates"][0]["training"]["value"]]
    lines = [
        "# Training on rewards: a toy",
        "",
        f"`python benchmarks/reward {given.seeds}` on {datetime.now(UTC):%Y-%m-%d}: {names[0]}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}.",
        "",
        f"The tiny base answers eight tasks of three lines, {SAMPLES} times each in every round. Six tasks are trained "
        "on, two are only measured. A rate is the share of answers that pass, with its 95 % interval over tasks.",
        "",
        *table(found),
        "",
        f"The pass rate of the training tasks rose in {len(found) - len(worse)} of {len(found)} trainings.",
        "",
        "## Seconds for a round of GRPO",
        "",
        f"Mean over {len(rounds)} rounds of {8 * SAMPLES} answers. The model's part is generation and the step.",
        "",
        "| loop | model | execution in the sandbox |",
        "|---|---|---|",
        f"| ours | {seconds['generate'] + seconds['learn']:.2f} | {seconds['execute']:.2f} |",
        trl(METHODS["grpo"]),
        "",
    ]
    given.out.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()

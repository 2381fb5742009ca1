"""`make bench-gpu`, or `python benchmarks/gpu` in the repository's root on a bare machine: the default recipe's step on
this card, on NF4 of Qwen2.5 14B's shape with random weights. No Postgres, no network, nothing installed of the project.

Each measurement is a process of its own, one after the other (two such models do not fit a card), so one that fails or
runs out of memory is a line with its reason in the results. Ours and the peers take turns, round after round.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]
NEEDED = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
PARTS = ("correctness", "step", "full-length", "peers", "ablation")
MARK = "\x1e"
"""Begins the one line that a process answers with; libraries print others."""
Facts = dict[str, Any]


def main() -> int:
    """Exit code 1 where a gradient is wrong or our own step could not be measured; 0 with the reason without a card."""
    given = arguments()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"bench-gpu needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if importlib.util.find_spec("httpx2") is None:  # huggingface_hub before 2.0 stands on httpx, with the same errors
        sys.modules["httpx2"] = importlib.import_module("httpx")
    if given.job is not None:
        return answer(json.loads(given.job))
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device here (`--device cpu --tiny` tries the script itself)")
        return 0
    return bench(given)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu", description=__doc__)
    parser.add_argument("--layers", type=int, default=48, help="of the model (Qwen2.5 14B has 48)")
    parser.add_argument("--ablation-layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of one turn, after one that warms up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--vram-gib", type=float, default=31.3, help="what torch may allocate, and what is planned for")
    parser.add_argument("--parts", default=",".join(PARTS), help="which of %(default)s")
    parser.add_argument("--minutes", type=float, default=30, help="that one measurement may take")
    parser.add_argument("--out", type=Path, help="Markdown; the same as JSON lines beside it")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a toy model, for a test of the script")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.parts = given.parts.split(",")
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}")
    if given.device == "cpu" and not (given.tiny and given.out):
        parser.error("--device cpu is for trying the script: it needs --tiny and --out FILE")
    return given


# --- one measurement, in a process of its own -----------------------------------------------------------------


def answer(job: Facts) -> int:
    """Measure what a job says, and answer with one line; an error is an answer too."""
    try:
        facts = measured(job)
    except Exception as error:  # noqa: BLE001 - the reason goes into the results
        from trainer.model.memory import is_out_of_memory

        traceback.print_exc()
        short = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        facts = {"failed": " ".join(short.split())[:300]}
    print(MARK + json.dumps(facts), flush=True)
    return 0


def measured(job: Facts) -> Facts:
    if job.get("peer") == "unsloth":
        importlib.import_module("unsloth")  # it wants to be first
    import ours
    import peers
    from world import World

    world, rest = World(**job["world"]), {key: job[key] for key in job.keys() - {"name", "world", "kind"}}
    kinds = {"rate": ours.measure_rate, "correctness": ours.check_gradients, "step": ours.measure_step,
             "ablation": ours.measure_variants, "peer": peers.measure_peer}  # fmt: skip
    return kinds[job["kind"]](world, **rest)


def run(name: str, minutes: float, **job: Any) -> Facts:
    """What a process answers; `failed` says why there is no answer."""
    log = ROOT / "build" / "bench" / "gpu" / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"· {name}", flush=True)
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ,
                   "PYTORCH_ALLOC_CONF": "expandable_segments:True"}  # fmt: skip
    command = [sys.executable, str(HERE), "--job", json.dumps({"name": name, **job})]
    try:
        with log.open("w") as errors:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, timeout=60 * minutes
            )
    except subprocess.TimeoutExpired:
        facts: Facts = {"failed": f"not done after {minutes:g} minutes"}
    else:
        answers = [line[1:] for line in done.stdout.split("\n") if line.startswith(MARK)]
        facts = json.loads(answers[-1]) if answers else {"failed": f"ended with code {done.returncode}; see {log}"}
    if "failed" in facts:
        print(f"  {facts['failed']}", flush=True)
    return facts


# --- all of them ----------------------------------------------------------------------------------------------


def bench(given: argparse.Namespace) -> int:
    """Every part, then the report."""
    from report import write_report
    from world import World

    layers = 2 if given.tiny else given.layers
    world = World(device=given.device, tiny=given.tiny, layers=layers, steps=given.steps, vram_gib=given.vram_gib,
                  ablation_layers=min(layers, given.ablation_layers))  # fmt: skip
    card = run("matrix rate", given.minutes, kind="rate", world=asdict(world))
    world = replace(world, tflops=card.get("tflops"))
    found: list[Facts] = [{"part": "card", **card}]
    for part, facts in parts(given, world):
        found.append({"part": part, **facts})
    target = given.out or ROOT / "benchmarks" / "results" / f"{slug(card.get('name', 'unknown card'))}.md"
    write_report(target, found, world, rounds=given.rounds)
    print(f"· {target}")
    return 1 if any(broken(facts) for facts in found) else 0


def broken(facts: Facts) -> bool:
    """A wrong gradient, or a part of our own without an answer."""
    return facts.get("passed") is False or (
        "failed" in facts and facts["part"] in ("correctness", "ours", "full-length")
    )


def parts(given: argparse.Namespace, world: Any) -> Iterator[tuple[str, Facts]]:
    """Name and facts of everything that was asked for."""
    options = {"minutes": given.minutes, "world": asdict(world)}
    if "correctness" in given.parts:
        yield "correctness", run("correctness", kind="correctness", **options)
    if "full-length" in given.parts:
        yield "full-length", run("our step, full length", kind="step", full=True, **options)
    yield from turns(given, options)
    if "ablation" in given.parts:
        yield "ablation", run("ablation", kind="ablation", rounds=given.rounds, **options)


def turns(given: argparse.Namespace, options: Facts) -> Iterator[tuple[str, Facts]]:
    """Our step and the peers', everybody in turn, round after round; then one entry for each."""
    from peers import PEERS, installed
    from world import World, default_recipe

    batches = {peer: default_recipe(World(**options["world"])).training.batch_size for peer in PEERS if installed(peer)}
    heard: dict[str, list[Facts]] = {"ours": [], **{peer: [] for peer in PEERS}}
    for number in range(1, given.rounds + 1):
        if "step" in given.parts:
            heard["ours"].append(run(f"our step, round {number}", kind="step", full=False, **options))
        for peer in batches if "peers" in given.parts else ():
            if not any("failed" in facts for facts in heard[peer]):
                facts, batches[peer] = largest_that_fits(peer, batches[peer], options)
                heard[peer].append(facts)
    for name, facts in heard.items():
        if facts:
            yield name, summed_up(facts)
        elif name != "ours" and "peers" in given.parts:
            yield name, {"failed": "not installed"}


def largest_that_fits(peer: str, batch: int, options: Facts) -> tuple[Facts, int]:
    """Half as many samples at a time wherever memory runs out; what was heard, and with how many."""
    while True:
        facts = run(f"{peer}, {batch} at a time", kind="peer", peer=peer, batch=batch, **options)
        if facts.get("failed") != "out of memory" or batch == 1:
            return facts, batch
        batch //= 2


def summed_up(rounds: list[Facts]) -> Facts:
    """The last round's facts, with medians of what is measured; the failed one's where there is one."""
    if failed := [facts for facts in rounds if "failed" in facts]:
        return failed[0]
    timed = ("tokens_per_second", "share_of_rate")
    medians = {
        key: statistics.median(facts[key] for facts in rounds) for key in timed if rounds[0].get(key) is not None
    }
    return {**rounds[-1], **medians, "rounds": [facts["tokens_per_second"] for facts in rounds]}


def slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())

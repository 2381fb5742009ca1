"""`make bench-gpu` measures the default recipe's step on this machine's GPU.

On a machine where the project is not installed, run `python benchmarks/gpu` in the repository's root. The model has
the shape of Qwen2.5 14B, with random weights in NF4. The benchmark needs no Postgres and no network.

Each measurement runs in its own process. The processes run one after the other, because two such models do not fit on
a card. If a measurement fails or runs out of memory, the results list it with the reason. In each round, our step and
every peer's step are measured in turn.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
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
PEERS = ("trl", "trl-chunked", "transformers", "unsloth")
"""Each needs the package that is named before the hyphen."""
MARK = "\x1e"
"""Marks the line that holds a process's answer. Libraries print other lines."""
Facts = dict[str, Any]


def main() -> int:
    """Return 1 if a gradient is wrong or our own step could not be measured. Without a card, print why and return 0."""
    given = arguments()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"bench-gpu needs {', '.join(missing)}: pip install {' '.join(missing)}")
    accept_older_libraries()
    if given.job is not None:
        return answer(json.loads(given.job))
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device here (`--device cpu --tiny --out FILE` tests the script itself)")
        return 0
    return bench(given)


def accept_older_libraries() -> None:
    """Let the trainer's code run with the libraries of a machine where the project is not installed."""
    if importlib.util.find_spec("httpx2") is None:  # huggingface_hub before 2.0 uses httpx, which has the same errors
        sys.modules["httpx2"] = importlib.import_module("httpx")
    varlen = importlib.import_module("torch.nn.attention.varlen")
    if "enable_gqa" not in inspect.signature(attend := varlen.varlen_attn).parameters:

        def varlen_attn(*tensors: Any, enable_gqa: bool, **options: Any) -> Any:
            return attend(*tensors, **options)  # torch 2.11 takes grouped heads as they are

        varlen.varlen_attn = varlen_attn  # type: ignore[attr-defined]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu", description=__doc__)
    parser.add_argument("--layers", type=int, default=48, help="layers of the model (Qwen2.5 14B has 48)")
    parser.add_argument("--ablation-layers", type=int, default=8, help="layers of the model in the ablation")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps per turn, after one warm-up step")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--vram-gib", type=float, default=31.3, help="memory limit for torch and for the plan")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to measure (default: %(default)s)")
    parser.add_argument("--peers", help="peers to measure, separated by commas (default: all that are installed)")
    parser.add_argument("--minutes", type=float, default=30, help="time limit of one measurement")
    parser.add_argument("--out", type=Path, help="Markdown file to write; a .jsonl file is written next to it")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="use a toy model, to test the script")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.parts = given.parts.split(",")
    given.peers = given.peers.split(",") if given.peers else list(PEERS)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}")
    if unknown := set(given.peers) - set(PEERS):
        parser.error(f"--peers: {', '.join(sorted(unknown))} is not one of {', '.join(PEERS)}")
    if given.device == "cpu" and not (given.tiny and given.out):
        parser.error("--device cpu only tests the script; it needs --tiny and --out FILE")
    return given


# --- one measurement, in a process of its own -----------------------------------------------------------------


def answer(job: Facts) -> int:
    """Run a job's measurement and print its answer as one line. An error is an answer too."""
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
        importlib.import_module("unsloth")  # unsloth must be imported first
    import ours
    import peers
    from world import World

    world, rest = World(**job["world"]), {key: job[key] for key in job.keys() - {"name", "world", "kind"}}
    kinds = {"rate": ours.measure_rate, "correctness": ours.check_gradients, "step": ours.measure_step,
             "ablation": ours.measure_variants, "peer": peers.measure_peer}  # fmt: skip
    return kinds[job["kind"]](world, **rest)


def run(name: str, minutes: float, **job: Any) -> Facts:
    """Run a job in a process and return its answer. Without an answer, `failed` holds the reason."""
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
        facts: Facts = {"failed": f"not finished after {minutes:g} minutes"}
    else:
        answers = [line[1:] for line in done.stdout.split("\n") if line.startswith(MARK)]
        facts = json.loads(answers[-1]) if answers else {"failed": f"ended with code {done.returncode}; see {log}"}
    print(f"  {facts.get('failed') or json.dumps(facts)}", flush=True)  # a run that is cut off keeps what it measured
    return facts


# --- all measurements -----------------------------------------------------------------------------------------


def bench(given: argparse.Namespace) -> int:
    """Measure every part, then write the report."""
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
    """Whether a gradient is wrong, or one of our own parts has no answer."""
    return facts.get("passed") is False or (
        "failed" in facts and facts["part"] in ("correctness", "ours", "full-length")
    )


def parts(given: argparse.Namespace, world: Any) -> Iterator[tuple[str, Facts]]:
    """Yield the name and the facts of each requested part."""
    options = {"minutes": given.minutes, "world": asdict(world)}
    if "correctness" in given.parts:
        yield "correctness", run("correctness", kind="correctness", **options)
    if "full-length" in given.parts:
        yield "full-length", run("our step, full length", kind="step", full=True, **options)
    yield from turns(given, options)
    if "ablation" in given.parts:
        yield "ablation", run("ablation", kind="ablation", rounds=given.rounds, **options)


def turns(given: argparse.Namespace, options: Facts) -> Iterator[tuple[str, Facts]]:
    """Measure our step and each peer's step in turn, round after round. Then yield one entry for each."""
    from world import World, default_recipe

    batch = default_recipe(World(**options["world"])).training.batch_size
    batches = {peer: batch for peer in given.peers if importlib.util.find_spec(peer.partition("-")[0])}
    heard: dict[str, list[Facts]] = {"ours": [], **{peer: [] for peer in given.peers}}
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
    """Halve the batch while memory runs out. Return the answer and the batch size."""
    while True:
        facts = run(f"{peer}, {batch} at a time", kind="peer", peer=peer, batch=batch, **options)
        if facts.get("failed") != "out of memory" or batch == 1:
            return facts, batch
        batch //= 2


def summed_up(rounds: list[Facts]) -> Facts:
    """Return the last round's facts with medians of the measured values, or the first failed round's facts."""
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

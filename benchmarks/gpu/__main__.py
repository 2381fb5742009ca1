"""`make bench-gpu` measures the default recipe's step on this machine's GPU.

On a machine where the project is not installed, run `python benchmarks/gpu` in the repository's root. The model has
the shape of Qwen2.5 14B, with random weights in NF4. The benchmark needs no Postgres and no network.

Each measurement runs in its own process. If one fails or runs out of memory, the results list it with the reason. In
each round, our step and every peer's step are measured in turn. The results are written after each measurement. What
the time is too short for is listed, too; another call with the same --out adds it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
import signal
import statistics
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs import Jobs
    from world import World

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]
NEEDED = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
PARTS = ("step", "peers", "correctness", "full-length", "ablation")
"""In the order in which they are measured."""
PEERS = {
    "trl-liger": ("trl", "liger_kernel"),
    "trl": ("trl",),
    "transformers": ("transformers",),
    "unsloth": ("unsloth",),
}
"""The packages that each needs."""
NEED_A_GPU = ("trl-liger", "trl")
FULL_BATCH = "full-batch"
"""Measured with the part full-length: a step of one micro-batch of the recipe's own size, which the plan may halve."""
Facts = dict[str, Any]


def main() -> int:
    """Return 1 if a gradient is wrong or our own step could not be measured. Without a card, print why and return 0."""
    given = arguments()
    if given.join:
        return join(given)
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
    parser.add_argument("--minutes", type=float, default=60, help="time limit of the call (default: %(default)g)")
    parser.add_argument("--out", type=Path, help="Markdown file to write; a .jsonl file is written next to it. Parts "
                        "that are there already and are not measured again stay")  # fmt: skip
    parser.add_argument("--join", type=Path, nargs="+", metavar="JSONL",
                        help="measure nothing: write the results of several calls on the page --out")  # fmt: skip
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="use a toy model, to test the script")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.parts = given.parts.split(",")
    given.peers = given.peers.split(",") if given.peers else list(PEERS)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}")
    if unknown := set(given.peers) - PEERS.keys():
        parser.error(f"--peers: {', '.join(sorted(unknown))} is not one of {', '.join(PEERS)}")
    if given.join and not given.out:
        parser.error("--join needs --out FILE")
    if given.minutes <= 0:
        parser.error(f"--minutes: {given.minutes:g} is not above 0")
    if given.device == "cpu" and not given.join and not (given.tiny and given.out):
        parser.error("--device cpu only tests the script; it needs --tiny and --out FILE")
    return given


# --- one measurement, in a process of its own -----------------------------------------------------------------


def answer(job: Facts) -> int:
    """Run a job's measurement and print each of its answers as one line. An error is an answer too."""
    from jobs import MARK, ended

    facts: Facts = {}
    try:
        for facts in measured(job):
            print(MARK + json.dumps(facts), flush=True)
    except Exception as error:  # noqa: BLE001 - the reason goes into the results
        from trainer.model.memory import is_out_of_memory

        traceback.print_exc()
        short = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        print(MARK + json.dumps(ended(facts, " ".join(short.split())[:300])), flush=True)
    return 0


def measured(job: Facts) -> Iterator[Facts]:
    """Yield the answers of a job. Each kind imports only what it needs."""
    if job.get("peer") == "unsloth":
        importlib.import_module("unsloth")  # unsloth must be imported first
    from world import World

    world, rest = World(**job["world"]), {key: job[key] for key in job.keys() - {"name", "world", "kind"}}
    module, function = KINDS[job["kind"]]
    found = getattr(importlib.import_module(module), function)(world, **rest)
    yield from [found] if isinstance(found, dict) else found


KINDS = {
    "rate": ("ours", "measure_rate"),
    "step": ("ours", "measure_step"),
    "correctness": ("correctness", "check_gradients"),
    "ablation": ("ablation", "measure_variants"),
    "peer": ("peers", "measure_peer"),
}
"""Module and function of each kind of measurement."""


# --- all measurements -----------------------------------------------------------------------------------------


def bench(given: argparse.Namespace) -> int:
    """Measure every part. The results are written again after each answer."""
    from jobs import Jobs
    from results import Mismatch, Results
    from world import World

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the measurement's process is ended, too
    jobs = Jobs(given.minutes)
    layers = 2 if given.tiny else given.layers
    world = World(device=given.device, tiny=given.tiny, layers=layers, steps=given.steps, vram_gib=given.vram_gib,
                  ablation_layers=min(layers, given.ablation_layers))  # fmt: skip
    card = {"name": "unknown card", "torch": importlib.metadata.version("torch")}
    for found in jobs.run("matrix rate", kind="rate", world=asdict(world)):
        card |= found
    world = replace(world, tflops=card.get("tflops"))
    call = datetime.now(UTC).isoformat(timespec="milliseconds")
    card |= {"part": "card", "call": call, **asdict(world), "rounds": given.rounds, "measuring": given.parts}
    target = given.out or ROOT / "benchmarks" / "results" / f"{slug(card['name'])}.md"
    results = Results(target)
    try:
        if target.with_suffix(".jsonl").exists():
            results.add_file(target.with_suffix(".jsonl"))
        results.add_call(card)
    except Mismatch as error:
        print(f"bench-gpu: {error}", file=sys.stderr)
        return 2
    results.write()
    wrong = False
    for part, facts in parts(given, world, jobs):
        results.add({"part": part, "call": call, **facts})
        results.write()
        wrong = wrong or broken(part, facts)
    print(f"· {target}")
    return 1 if wrong else 0


def join(given: argparse.Namespace) -> int:
    """Write the results of several calls on one page. Of a part that several have, the last one counts."""
    from results import Mismatch, Results

    results = Results(given.out)
    try:
        for path in given.join:
            results.add_file(path)
    except Mismatch as error:
        print(f"bench-gpu: {error}", file=sys.stderr)
        return 2
    results.write()
    print(f"· {given.out}")
    return 0


def broken(part: str, facts: Facts) -> bool:
    """Whether a gradient is wrong, or one of our own parts has no answer."""
    return facts.get("passed") is False or ("failed" in facts and part in ("correctness", "ours", "full-length"))


def parts(given: argparse.Namespace, world: World, jobs: Jobs) -> Iterator[tuple[str, Facts]]:
    """Yield the name and the facts of each requested part, each time that more is known of it."""
    yield from turns(given, world, jobs)
    settings = asdict(world)
    if "correctness" in given.parts:
        for facts in jobs.run("correctness", kind="correctness", world=settings):
            yield "correctness", facts
    if "full-length" in given.parts:
        for facts in jobs.run("our step, full length", kind="step", full=True, world=settings):
            yield "full-length", facts
        for facts in jobs.run(
            "our step, one full batch", kind="step", full=True, at_once=True, costs=True, world=settings
        ):
            yield FULL_BATCH, facts
    if "ablation" in given.parts:
        for facts in jobs.run("ablation", kind="ablation", rounds=given.rounds, world=settings):
            yield "ablation", facts


def turns(given: argparse.Namespace, world: World, jobs: Jobs) -> Iterator[tuple[str, Facts]]:
    """Measure our step and each peer's step in turn, round after round. Yields what is known of each so far."""
    from world import default_recipe

    heard: dict[str, list[Facts]] = {"ours": [], **{peer: [] for peer in given.peers}}
    batches = {}
    for peer in given.peers if "peers" in given.parts else ():
        if reason := unfit(peer, given.device):
            yield peer, {"not_run": reason}
        else:
            batches[peer] = default_recipe(world).training.batch_size
    for number in range(1, given.rounds + 1):
        last = number == given.rounds
        if "step" in given.parts:
            found = jobs.run(f"our step, round {number}", kind="step", full=False, costs=last, world=asdict(world))
            for facts in found:
                yield "ours", summed_up([*heard["ours"], facts])
            heard["ours"].append(facts)
        for peer in batches:
            if not any("failed" in facts for facts in heard[peer]):
                facts, batches[peer] = largest_that_fits(peer, batches[peer], world, jobs)
                heard[peer].append(facts)
                yield peer, summed_up(heard[peer])


def unfit(peer: str, device: str) -> str | None:
    """Return why a peer cannot run here, or None if it can."""
    if missing := [name for name in PEERS[peer] if importlib.util.find_spec(name) is None]:
        return f"{' and '.join(missing)} not installed"
    return "its loss is a Triton kernel, which needs a GPU" if peer in NEED_A_GPU and device == "cpu" else None


def largest_that_fits(peer: str, batch: int, world: World, jobs: Jobs) -> tuple[Facts, int]:
    """Halve the batch while memory runs out. Return the last answer and the batch size."""
    while True:
        (*_, facts) = jobs.run(f"{peer}, {batch} at a time", kind="peer", peer=peer, batch=batch, world=asdict(world))
        if facts.get("failed") != "out of memory" or batch == 1:
            return facts, batch
        batch //= 2


def summed_up(rounds: list[Facts]) -> Facts:
    """Return the last round's facts with medians of the measured values, or the first failed round's facts."""
    rounds = [facts for facts in rounds if "not_run" not in facts] or rounds
    if failed := [facts for facts in rounds if "tokens_per_second" not in facts]:
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

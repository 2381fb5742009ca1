"""`make bench`: the optimizer step against its peers on this machine; writes benchmarks/results/<machine>.md.

Every contestant is a process of its own that loads the model and then waits. The referee lets one after the other take
a few steps, round after round, so that a slow minute of the machine hits all of them; what counts is the median round
of each and its ratio to ours. Peers live in an environment of their own, made here.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INTRODUCTION = """\
`make bench ARGS="{rounds} {steps}"`: {rounds} rounds of {steps} optimizer steps, everybody in turn; medians. A Qwen2 of
5 M parameters (hidden 256, 4 layers, 8,192 words), LoRA rank 64 with dropout 0.05, Python of at most 1,024 tokens a
sample, 4 × 4 samples a step, AdamW, no activation checkpointing. Everybody trains the same samples in the same order,
and one program measures all after the same number of steps (in TRL's packed form a step holds more tokens)."""
PEER_PACKAGES = ("trl==1.16.0", "peft==0.21.2", "transformers==5.23.0", "datasets==5.2.0")


@dataclass
class Contestant:
    """One process, and what it took for each round."""

    name: str
    process: subprocess.Popen[str]
    title: str = ""
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def hear(self) -> dict[str, object]:
        """Its next line to the referee; libraries print others between."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("\x1e"):
                heard: dict[str, object] = json.loads(line[1:])
                return heard
        raise SystemExit(f"{self.name} ended with code {self.process.wait()}; see its output in {log_file(self.name)}")

    def tell(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()

    def speed(self) -> float:
        """Tokens a second: the median over rounds."""
        return statistics.median(t / s for t, s in zip(self.tokens, self.seconds, strict=True))


def work_folder() -> Path:
    return ROOT / "build" / "bench"


def log_file(name: str) -> Path:
    return work_folder() / f"{name}.log"


def peers_python() -> str:
    """The interpreter of the peers' environment."""
    folder = work_folder() / "peers"
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        print("· the peers' environment (once)", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "--no-deps", "-r", str(ROOT / "requirements" / "torch.txt")], check=True)
        subprocess.run([*pip, *PEER_PACKAGES], check=True)
        (folder / ".ready").touch()
    return str(python)


def contestants(dtype: str) -> dict[str, list[str]]:
    """Name → command. Ours first, then the ablation, then the peers."""
    peers = peers_python()
    ours = [sys.executable, str(HERE / "contestant_codelupe.py"), str(work_folder()), dtype]
    return {
        "codelupe": [*ours, "all"],
        "codelupe-peft-layers": [*ours, "peft-layers"],
        "codelupe-small-packs": [*ours, "small-packs"],
        "trl-plain": [peers, str(HERE / "contestant_trl.py"), str(work_folder()), dtype, "plain"],
        "trl-packed": [peers, str(HERE / "contestant_trl.py"), str(work_folder()), dtype, "packed"],
        "trl-chunked": [peers, str(HERE / "contestant_trl.py"), str(work_folder()), dtype, "chunked"],
        "transformers": [peers, str(HERE / "contestant_transformers.py"), str(work_folder()), dtype],
    }


def started(dtype: str) -> Iterator[Contestant]:
    """Each contestant, loaded and waiting. One is started after the other."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    for name, command in contestants(dtype).items():
        with log_file(name).open("w") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        contestant = Contestant(name, process)
        contestant.title = str(contestant.hear()["ready"])
        print(f"· ready  {contestant.title}", flush=True)
        yield contestant


def race(dtype: str, rounds: int, steps: int) -> list[Contestant]:
    """One warm-up round, then `rounds` of `steps` optimizer steps each, everybody in turn."""
    field_ = list(started(dtype))
    for number in range(rounds + 1):
        for contestant in field_ if number % 2 else reversed(field_):
            contestant.tell(f"go {steps}")
            heard = contestant.hear()
            if number:
                contestant.seconds.append(float(str(heard["seconds"])))
                contestant.tokens.append(int(str(heard["tokens"])))
        print(f"· round {number} of {rounds}", flush=True)
    for contestant in field_:
        contestant.tell("finish")
        contestant.hear()
        contestant.process.wait()
    return field_


def held_out_losses(names: list[str], dtype: str) -> dict[str, float]:
    """Each result's held-out loss, all measured by one program; `base` is the model before."""
    command = [sys.executable, str(HERE / "measure.py"), str(work_folder()), dtype, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: float(loss) for name, loss in json.loads(done.stdout.splitlines()[-1]).items()}


def matmul_gflops(dtype: str) -> float:
    """What the machine multiplies matrices of the model's shapes at, in GFLOP/s."""
    done = subprocess.run(
        [sys.executable, str(HERE / "measure.py"), "--matmul", dtype], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def processor() -> str:
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    flags = Path("/proc/cpuinfo").read_text().split()
    has = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores, {' '.join(has)}"


def table(field_: list[Contestant], losses: dict[str, float]) -> str:
    ours = field_[0].speed()
    lines = ["| contestant | tokens/s | ours is … times as fast | tokens | held-out loss |", "|---|---|---|---|---|"]
    for one in field_:
        speed, tokens = one.speed(), sum(one.tokens)
        lines.append(f"| {one.title} | {speed:,.0f} | {ours / speed:.2f} | {tokens:,} | {losses[one.name]:.4f} |")
    return "\n".join(lines)


def main() -> None:
    given = dict(enumerate(sys.argv[1:]))
    rounds, steps = int(given.get(0, 5)), int(given.get(1, 4))
    dtypes = given.get(2, "float32,bfloat16").split(",")
    work_folder().mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(HERE / "prepare.py"), str(work_folder())], check=True)
    parts = []
    for dtype in dtypes:
        print(f"· {dtype}", flush=True)
        field_ = race(dtype, rounds, steps)
        losses = held_out_losses([one.name for one in field_], dtype)
        rate = f"Matrix products of the model's shapes: {matmul_gflops(dtype):.0f} GFLOP/s."
        parts.append(f"## {dtype}\n\n{table(field_, losses)}\n\nBefore training: {losses['base']:.4f}. {rate}\n")
        print(parts[-1], flush=True)
    name = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")[:60]
    target = ROOT / "benchmarks" / "results" / f"{name}.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(
        f"# The optimizer step on {processor()}\n\n{INTRODUCTION.format(**locals())}\n\n" + "\n".join(parts)
    )
    print(f"· {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

"""`make bench` compares our optimizer step with that of other trainers on this machine.

Each contestant is a process that loads the model and then waits. In each round, the referee lets the contestants take a
few steps in turn, so that a slow minute of the machine affects all of them. The result is each contestant's median
round and its ratio to ours. The benchmark creates a virtual environment for each group of peers. The results list
peers that cannot be installed or do not run, with the reason.

The arguments are the rounds, the steps per round, the dtypes, and the names of contestants, to measure only some.

It writes benchmarks/results/<machine>.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INTRODUCTION = """\
`make bench ARGS="{rounds} {steps}"` runs {rounds} rounds of {steps} optimizer steps each, with all contestants
in turn. The figures are medians. The model is a Qwen2 of 5 M parameters (hidden size 256, 4 layers, 8,192 words) with
LoRA of rank 64 and dropout 0.05. The samples are Python of at most 1,024 tokens, 4 × 4 samples per step. The optimizer
is AdamW, without activation checkpointing. All contestants train the same samples in the same order. One program
measures the losses of all of them after the same number of steps. With TRL's packing, a step holds more tokens.
LLaMA-Factory pads to multiples of 8. Core-seconds exclude other work on the machine."""
ENVIRONMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "peers": ((), ("trl==1.16.0", "peft==0.21.2", "transformers==5.23.0", "datasets==5.2.0")),
    "llamafactory": (
        ("llamafactory==0.9.5",),
        ("transformers==5.6.0", "peft==0.18.1", "trl==0.24.0", "accelerate==1.11.0", "datasets==4.0.0", "av==16.0.0",
         "tyro==0.8.14", "einops", "fire", "omegaconf", "pandas", "protobuf", "scipy", "sentencepiece", "tiktoken"),
    ),
    "unsloth": (
        ("unsloth==2026.10.9", "unsloth_zoo==2026.10.9"),
        ("transformers==5.17.0", "peft==0.21.2", "trl==1.15.0", "datasets<5", "bitsandbytes==0.50.2", "pillow",
         "protobuf", "requests", "sentencepiece"),
    ),
}  # fmt: skip
"""For each environment: packages installed without their dependencies, then the dependencies that are needed.

Dependencies such as torchvision and xformers are left out, because they would install a CUDA torch.
"""
DTYPES = ("float32", "bfloat16")
FLOP_PER_TOKEN = 28e6
"""The step's FLOP per token: two products per frozen matrix, three per adapter matrix, attention, and the head where
there is a loss."""
TRL_KINDS = ("plain", "packed", "chunked")
INSTALL_SECONDS = 1800
READY_SECONDS = 600


class DoesNotRunError(Exception):
    """A contestant cannot be installed, or it has ended. The message says why."""


@dataclass
class Contestant:
    """One process, with its times and tokens of each round."""

    name: str
    process: subprocess.Popen[str]
    title: str = ""
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def receive(self) -> dict[str, object]:
        """Return the next line that is meant for the referee. Lines that libraries print are skipped.

        Raises:
            DoesNotRunError: The process has ended.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("\x1e"):
                answer: dict[str, object] = json.loads(line[1:])
                return answer
        code = self.process.wait()
        last = [line for line in log_file(self.name).read_text().splitlines() if line.strip()][-1:]
        raise DoesNotRunError("".join(last).strip() or f"ended with code {code}")

    def send(self, order: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # the process has ended; the next `receive` reports its last words
            return

    def speed(self) -> float:
        """Return the tokens per second: the median over rounds."""
        return statistics.median(t / s for t, s in zip(self.tokens, self.seconds, strict=True))

    def tokens_per_core_second(self) -> float:
        """Return the tokens per core-second: the median over rounds. It excludes other work on the machine."""
        return statistics.median(t / s for t, s in zip(self.tokens, self.cpu_seconds, strict=True))


def work_folder() -> Path:
    return ROOT / "build" / "bench"


def log_file(name: str) -> Path:
    return work_folder() / f"{name}.log"


def python_of(environment: str) -> str:
    """Return the interpreter of one of ENVIRONMENTS. The environment is created if it does not exist.

    Raises:
        DoesNotRunError: A package cannot be installed.
    """
    folder = work_folder() / environment
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        print(f"· creating the environment {environment}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        alone, others = ENVIRONMENTS[environment]
        torch_ = str(ROOT / "requirements" / "torch.txt")
        for wanted in (["--no-deps", "-r", torch_], ["--no-deps", *alone], ["-r", torch_, *others]):
            if wanted != ["--no-deps"]:
                _install(python, wanted)
        (folder / ".ready").touch()
    return str(python)


def _install(python: Path, wanted: list[str]) -> None:
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise DoesNotRunError(f"not installed after {INSTALL_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.startswith("ERROR")] or [error.stderr.strip()]
        raise DoesNotRunError(f"cannot be installed: {said[-1]}") from error


def contestants(dtype: str) -> dict[str, tuple[str | None, list[str]]]:
    """Map each name to its environment (None for this one) and arguments.

    Ours comes first, then the ablation, then the peers.
    """
    common = [str(work_folder()), dtype]
    ours = {
        "codelupe": "all",
        "codelupe-peft-layers": "peft-layers",
        "codelupe-small-packs": "small-packs",
        "codelupe-full-logits": "full-logits",
        "codelupe-checkpointing-full": "checkpointing-full",
        "codelupe-nf4": "nf4",
    }
    trl = {f"trl-{kind}": ("peers", [str(HERE / "contestant_trl.py"), *common, kind]) for kind in TRL_KINDS}
    peers = {"transformers": "peers", "llamafactory": "llamafactory", "unsloth": "unsloth"}
    return {
        **{name: (None, [str(HERE / "contestant_codelupe.py"), *common, kind]) for name, kind in ours.items()},
        **trl,
        **{name: (where, [str(HERE / f"contestant_{name}.py"), *common]) for name, where in peers.items()},
    }


def started(name: str, environment: str | None, arguments: list[str]) -> Contestant:
    """Start a contestant and wait until it has loaded the model.

    Raises:
        DoesNotRunError: It cannot be installed, has ended, or was not ready in time.
    """
    variables = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    python = sys.executable if environment is None else python_of(environment)
    with log_file(name).open("w") as log:
        process = subprocess.Popen(
            [python, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=variables
        )
    contestant = Contestant(name, process)
    bound = Timer(READY_SECONDS, process.kill)
    bound.start()
    try:
        contestant.title = str(contestant.receive()["ready"])
    except DoesNotRunError as error:
        if bound.finished.is_set():  # it was killed
            raise DoesNotRunError(f"not ready after {READY_SECONDS} s") from error
        raise
    finally:
        bound.cancel()
    print(f"· ready  {contestant.title}", flush=True)
    return contestant


def race(dtype: str, rounds: int, steps: int, names: list[str]) -> tuple[list[Contestant], dict[str, str], float]:
    """Run one warm-up round, then `rounds` rounds of `steps` optimizer steps, with the contestants in turn.

    Return the contestants, the reasons of those that do not run, and the machine's median matrix rate in GFLOP/s. The
    matrix rate is measured between the rounds.
    """
    field_: list[Contestant] = []
    out: dict[str, str] = {}
    rates: list[float] = []
    for name, (environment, arguments) in contestants(dtype).items():
        if names and name not in names:
            continue
        try:
            field_.append(started(name, environment, arguments))
        except DoesNotRunError as error:
            _leave(name, error, out)
    for number in range(rounds + 1):
        for contestant in list(field_ if number % 2 else reversed(field_)):
            contestant.send(f"go {steps}")
            try:
                answer = contestant.receive()
            except DoesNotRunError as error:
                _leave(contestant.name, error, out)
                field_.remove(contestant)
                continue
            if number:
                contestant.seconds.append(float(str(answer["seconds"])))
                contestant.cpu_seconds.append(float(str(answer["cpu_seconds"])))
                contestant.tokens.append(int(str(answer["tokens"])))
        rates.append(matmul_gflops(dtype))
        print(f"· round {number} of {rounds}", flush=True)
    for contestant in list(field_):
        contestant.send("finish")
        try:
            contestant.receive()
        except DoesNotRunError as error:
            _leave(contestant.name, error, out)
            field_.remove(contestant)
        contestant.process.wait()
    return field_, out, statistics.median(rates)


def _leave(name: str, why: DoesNotRunError, out: dict[str, str]) -> None:
    """Record why a peer does not run. If ours does not run, exit, because there is nothing to compare with."""
    if name.startswith("codelupe"):
        raise SystemExit(f"{name}: {why}; see {log_file(name)}")
    print(f"· {name} does not run here: {why}", flush=True)
    out[name] = str(why)


def held_out_losses(names: list[str], dtype: str) -> dict[str, float]:
    """Return the held-out loss of each result, all measured by one program. `base` is the untrained model."""
    command = [sys.executable, str(HERE / "measure.py"), str(work_folder()), dtype, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: float(loss) for name, loss in json.loads(done.stdout.splitlines()[-1]).items()}


def matmul_gflops(dtype: str) -> float:
    """Return the machine's speed for matrix products of the model's shapes, in GFLOP/s."""
    done = subprocess.run(
        [sys.executable, str(HERE / "measure.py"), "--matmul", dtype], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def processor() -> str:
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    flags = Path("/proc/cpuinfo").read_text().split()
    has = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores, {' '.join(has)}"


def table(field_: list[Contestant], losses: dict[str, float], out: dict[str, str]) -> str:
    ours = field_[0]
    lines = [
        "| contestant | tokens/s | our speed ÷ theirs | tokens per core-second | ours ÷ theirs | tokens "
        "| held-out loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in field_:
        by_clock = f"{one.speed():,.0f} | {ours.speed() / one.speed():.2f}"
        by_core = (
            f"{one.tokens_per_core_second():,.0f} | {ours.tokens_per_core_second() / one.tokens_per_core_second():.2f}"
        )
        lines.append(f"| {one.title} | {by_clock} | {by_core} | {sum(one.tokens):,} | {losses[one.name]:.4f} |")
    lines += [f"| {name} | does not run here: {why} | | | | | |" for name, why in out.items()]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Parse the command line. An unknown word, dtype or contestant is an error with exit code 2."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "rounds", nargs="?", type=_count, default=5, help="rounds; each measures all contestants in turn"
    )
    parser.add_argument("steps", nargs="?", type=_count, default=4, help="optimizer steps per round")
    parser.add_argument(
        "dtypes",
        nargs="?",
        type=_names(DTYPES),
        default=list(DTYPES),
        help=f"dtypes, separated by commas: {','.join(DTYPES)}",
    )
    everybody = tuple(contestants("float32"))
    parser.add_argument(
        "names", nargs="?", type=_names(everybody), default=[],
        help=f"measure only these contestants, separated by commas, and write no file: {','.join(everybody)}",
    )  # fmt: skip
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _names(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := sorted(set(names) - set(known)):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return names

    return parse


def main() -> None:
    given = arguments()
    rounds, steps, dtypes, names = given.rounds, given.steps, given.dtypes, given.names
    work_folder().mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(HERE / "prepare.py"), str(work_folder())], check=True)
    parts = []
    for dtype in dtypes:
        print(f"· {dtype}", flush=True)
        field_, out, rate = race(dtype, rounds, steps, names)
        losses = held_out_losses([one.name for one in field_], dtype)
        used = field_[0].speed() * FLOP_PER_TOKEN / 1e9
        facts = (
            f"The held-out loss before training is {losses['base']:.4f}. Between the rounds, matrix products of the "
        )
        facts += (
            f"model's shapes reach {rate:.0f} GFLOP/s. Our step reaches {used:.0f} GFLOP/s, {used / rate:.0%} of that."
        )
        parts.append(f"## {dtype}\n\n{table(field_, losses, out)}\n\n{facts}\n")
        print(parts[-1], flush=True)
    if names:  # a partial measurement is not a result
        return
    name = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")[:60]
    target = ROOT / "benchmarks" / "results" / f"{name}.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(
        f"# The optimizer step on {processor()}\n\n{INTRODUCTION.format(**locals())}\n\n" + "\n".join(parts)
    )
    print(f"· {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

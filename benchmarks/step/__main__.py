"""`make bench`: the optimizer step against its peers on this machine; writes benchmarks/results/<machine>.md.

Every contestant is a process of its own that loads the model and then waits. The referee lets one after the other take
a few steps, round after round, so that a slow minute of the machine hits all of them; what counts is the median round
of each and its ratio to ours. Peers live in environments of their own, made here; one that cannot be installed or does
not run is a line with its reason. The arguments: rounds, steps a round, dtypes, and, to look at some alone, names.
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
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INTRODUCTION = """\
`make bench ARGS="{rounds} {steps}"`: {rounds} rounds of {steps} optimizer steps, everybody in turn; medians. A Qwen2 of
5 M parameters (hidden 256, 4 layers, 8,192 words), LoRA rank 64 with dropout 0.05, Python of at most 1,024 tokens a
sample, 4 × 4 samples a step, AdamW, no activation checkpointing. Everybody trains the same samples in the same order,
and one program measures all after the same number of steps (in TRL's packed form a step holds more tokens;
LLaMA-Factory pads to multiples of 8). Core-seconds leave out what else the machine did meanwhile."""
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
"""Packages installed without what they ask for (torchvision, xformers and others that bring a CUDA torch), and the rest
in versions that the first ones allow."""
FLOP_PER_TOKEN = 28e6
"""Of the step: two products with a frozen matrix, three with an adapter's, attention, the head where there is loss."""
TRL_KINDS = ("plain", "packed", "chunked")
INSTALL_SECONDS = 1800
READY_SECONDS = 600


class DoesNotRunError(Exception):
    """A contestant cannot be installed, or ended; says why."""


@dataclass
class Contestant:
    """One process, and what it took for each round."""

    name: str
    process: subprocess.Popen[str]
    title: str = ""
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def hear(self) -> dict[str, object]:
        """Its next line to the referee; libraries print others between.

        Raises:
            DoesNotRunError: it ended.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("\x1e"):
                heard: dict[str, object] = json.loads(line[1:])
                return heard
        code = self.process.wait()
        last = [line for line in log_file(self.name).read_text().splitlines() if line.strip()][-1:]
        raise DoesNotRunError("".join(last).strip() or f"ended with code {code}")

    def tell(self, order: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it ended; what it said last is heard next
            return

    def speed(self) -> float:
        """Tokens a second: the median over rounds."""
        return statistics.median(t / s for t, s in zip(self.tokens, self.seconds, strict=True))

    def core_speed(self) -> float:
        """Tokens per second of CPU time, which is independent of other load on the machine."""
        return statistics.median(t / s for t, s in zip(self.tokens, self.cpu_seconds, strict=True))


def work_folder() -> Path:
    return ROOT / "build" / "bench"


def log_file(name: str) -> Path:
    return work_folder() / f"{name}.log"


def python_of(environment: str) -> str:
    """The interpreter of one of ENVIRONMENTS, made where it is not there.

    Raises:
        DoesNotRunError: it cannot be installed.
    """
    folder = work_folder() / environment
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        print(f"· the environment {environment} (once)", flush=True)
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
    """Name → environment (None: this one) and arguments. Ours first, then the ablation, then the peers."""
    common = [str(work_folder()), dtype]
    ours = {
        "codelupe": "all",
        "codelupe-peft-layers": "peft-layers",
        "codelupe-small-packs": "small-packs",
        "codelupe-full-logits": "full-logits",
        "codelupe-checkpointing-full": "checkpointing-full",
    }
    trl = {f"trl-{kind}": ("peers", [str(HERE / "contestant_trl.py"), *common, kind]) for kind in TRL_KINDS}
    peers = {"transformers": "peers", "llamafactory": "llamafactory", "unsloth": "unsloth"}
    return {
        **{name: (None, [str(HERE / "contestant_codelupe.py"), *common, kind]) for name, kind in ours.items()},
        **trl,
        **{name: (where, [str(HERE / f"contestant_{name}.py"), *common]) for name, where in peers.items()},
    }


def started(name: str, environment: str | None, arguments: list[str]) -> Contestant:
    """A contestant, loaded and waiting.

    Raises:
        DoesNotRunError: it cannot be installed, ended, or was not ready in time.
    """
    variables = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    python = sys.executable if environment is None else python_of(environment)
    with log_file(name).open("w") as log:
        process = subprocess.Popen(
            [python, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=variables
        )
    contestant = Contestant(name, process)
    bound = Timer(READY_SECONDS, process.kill)
    bound.start()
    try:
        contestant.title = str(contestant.hear()["ready"])
    except DoesNotRunError as error:
        if bound.finished.is_set():  # it was killed
            raise DoesNotRunError(f"not ready after {READY_SECONDS} s") from error
        raise
    finally:
        bound.cancel()
    print(f"· ready  {contestant.title}", flush=True)
    return contestant


def race(dtype: str, rounds: int, steps: int, names: list[str]) -> tuple[list[Contestant], dict[str, str], float]:
    """One warm-up round, then `rounds` of `steps` optimizer steps each, everybody in turn.

    Also who does not run, and the machine's matrix rate between the rounds, in GFLOP/s.
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
            contestant.tell(f"go {steps}")
            try:
                heard = contestant.hear()
            except DoesNotRunError as error:
                _leave(contestant.name, error, out)
                field_.remove(contestant)
                continue
            if number:
                contestant.seconds.append(float(str(heard["seconds"])))
                contestant.cpu_seconds.append(float(str(heard["cpu_seconds"])))
                contestant.tokens.append(int(str(heard["tokens"])))
        rates.append(matmul_gflops(dtype))
        print(f"· round {number} of {rounds}", flush=True)
    for contestant in list(field_):
        contestant.tell("finish")
        try:
            contestant.hear()
        except DoesNotRunError as error:
            _leave(contestant.name, error, out)
            field_.remove(contestant)
        contestant.process.wait()
    return field_, out, statistics.median(rates)


def _leave(name: str, why: DoesNotRunError, out: dict[str, str]) -> None:
    """Without us there is nothing to compare with; anybody else is a line in the results."""
    if name.startswith("codelupe"):
        raise SystemExit(f"{name}: {why}; see {log_file(name)}")
    print(f"· {name} does not run here: {why}", flush=True)
    out[name] = str(why)


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


def table(field_: list[Contestant], losses: dict[str, float], out: dict[str, str]) -> str:
    ours = field_[0]
    lines = [
        "| contestant | tokens/s | ours is … times as fast | tokens a core-second | … times | tokens | held-out loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in field_:
        by_clock = f"{one.speed():,.0f} | {ours.speed() / one.speed():.2f}"
        by_core = f"{one.core_speed():,.0f} | {ours.core_speed() / one.core_speed():.2f}"
        lines.append(f"| {one.title} | {by_clock} | {by_core} | {sum(one.tokens):,} | {losses[one.name]:.4f} |")
    lines += [f"| {name} | does not run here: {why} | | | | | |" for name, why in out.items()]
    return "\n".join(lines)


def main() -> None:
    given = dict(enumerate(sys.argv[1:]))
    rounds, steps = int(given.get(0, 5)), int(given.get(1, 4))
    dtypes = given.get(2, "float32,bfloat16").split(",")
    names = given[3].split(",") if 3 in given else []
    if unknown := set(names) - set(contestants(dtypes[0])):
        raise SystemExit(f"{', '.join(sorted(unknown))}: not among {', '.join(contestants(dtypes[0]))}")
    work_folder().mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(HERE / "prepare.py"), str(work_folder())], check=True)
    parts = []
    for dtype in dtypes:
        print(f"· {dtype}", flush=True)
        field_, out, rate = race(dtype, rounds, steps, names)
        losses = held_out_losses([one.name for one in field_], dtype)
        used = field_[0].speed() * FLOP_PER_TOKEN / 1e9
        facts = f"Before training: {losses['base']:.4f}. Matrix products of the model's shapes, between the rounds: "
        facts += f"{rate:.0f} GFLOP/s; our step's work is {used:.0f} of them, {used / rate:.0%}."
        parts.append(f"## {dtype}\n\n{table(field_, losses, out)}\n\n{facts}\n")
        print(parts[-1], flush=True)
    if names:  # a look at some of them: no result of its own
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

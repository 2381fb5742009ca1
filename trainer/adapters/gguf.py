"""Converts a merged model to GGUF with llama.cpp's converter, which the user installs. (no torch)"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import MissingTool, UnusableInput

CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf", "convert_hf_to_gguf")
LLAMA = "llama-cli"
OUT_TYPES = {"bfloat16": "bf16", "float16": "f16"}
CONVERTER_SECONDS, ANSWER_SECONDS = 6 * 3600.0, 900.0
HEADER = struct.Struct("<4sIQQ")
"""Magic, version, number of tensors, number of facts."""
VERSIONS = (2, 3)


def find_converter(named: str | None) -> list[str]:
    """Return the command of the converter: the named one, or the first of CONVERTERS on PATH.

    Raises:
        MissingTool: there is none.
    """
    found = _named(named) if named else next((path for name in CONVERTERS if (path := shutil.which(name))), None)
    if found is None:
        looked = f"--converter {named} does not exist" if named else f"none of {', '.join(CONVERTERS)} is on PATH"
        raise MissingTool(
            f"{looked}. It belongs to llama.cpp: git clone https://github.com/ggml-org/llama.cpp, then "
            "--converter llama.cpp/convert_hf_to_gguf.py"
        )
    # Its first line asks for the system's Python, which has no torch.
    return [sys.executable, found] if found.endswith(".py") else [found]


def convert(converter: Sequence[str], model: Path, target: Path, *, dtype: str) -> int:
    """Convert a model's folder to one file. Returns its number of tensors.

    Raises:
        UnusableInput: the converter failed, or its file is not GGUF.
    """
    command = [*converter, str(model), "--outfile", str(target), "--outtype", OUT_TYPES[dtype]]
    done = _run(command, CONVERTER_SECONDS)
    if done.returncode != 0 or not target.is_file():
        raise UnusableInput(f"the converter ended with code {done.returncode}: {_last_lines(done)}")
    return check_gguf(target)


def check_gguf(path: Path) -> int:
    """Return the number of tensors of a GGUF file.

    Raises:
        UnusableInput: it is not GGUF, or has no tensor.
    """
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size or head[:4] != b"GGUF":
        raise UnusableInput(f"{path.name} is not GGUF: it begins with {head[:4]!r}")
    _, version, tensors, _ = HEADER.unpack(head)
    if version not in VERSIONS or tensors < 1:
        raise UnusableInput(f"{path.name} is GGUF of version {version} with {tensors} tensors, which cannot be used")
    return int(tensors)


def answer_from_gguf(path: Path, prompt: str, *, tokens: int) -> str | None:
    """Return what llama-cli generates from a file, or None if llama-cli is not on PATH.

    Raises:
        UnusableInput: llama-cli failed, or generated nothing.
    """
    command = shutil.which(LLAMA)
    if command is None:
        return None
    options = ["-n", str(tokens), "--temp", "0", "-no-cnv", "--no-display-prompt", "-p", prompt]
    done = _run([command, "-m", str(path), *options], ANSWER_SECONDS)
    if done.returncode != 0 or not done.stdout.strip():
        raise UnusableInput(f"{LLAMA} cannot use {path.name} (code {done.returncode}): {_last_lines(done)}")
    return done.stdout


def _run(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a foreign program. It gets no token."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds,
            env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UnusableInput(f"{command[0]} did not end within {seconds:.0f} s") from error
    except OSError as error:
        raise UnusableInput(f"{command[0]} cannot be started ({error})") from error


def _named(name: str) -> str | None:
    return str(Path(name).absolute()) if Path(name).is_file() else shutil.which(name)


def _last_lines(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return " | ".join(lines[-3:])[:600] or "it said nothing"

"""Does the gate refuse bad adapters and promote good ones? python benchmarks/gate/sabotage.py [--out FILE]

50 sabotaged and 50 good candidates of the tiny model, each trained from the same published adapter. The program's own
trainer trains, judges and examines them, and its own gate decides. 15 more are noised, and may still be better than the
published adapter. Takes about 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from safetensors.torch import load_file, save_file

from service.admission.duplicates import fingerprints, similarity
from service.cycle.judging import evidence_of
from service.gate.judge import Verdict, judge
from trainer import reading
from trainer.__main__ import examine_command, run_command
from trainer.check import check_run
from trainer.data.encoder import IGNORED, TokenSample
from trainer.data.tokenize import TokenRows
from trainer.evaluate.held_out import HeldOut
from trainer.evaluate.judged import judge_samples
from trainer.events import Events
from trainer.model.base import resolve
from trainer.model.load import load_tokenizer
from trainer.model.tiny_corpus import is_pretraining_file, library_files
from trainer.recipe import Recipe, pinned
from trainer.recipe_file import dump_recipe, load_recipe, with_overrides
from trainer.records import Row, json_line, write_evaluation
from trainer.run_dir import RunDirectory, content_sha256, read_json, sha256_file, write_json, write_manifest, write_text
from trainer.stop import StopRequest
from trainer.train import load_model

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
WEIGHTS = "adapter_model.safetensors"
TRAIN_FILES, NEW_FILES, EARLIER_FILES = 16, 10, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write one JSON line for each candidate")
    parser.add_argument("--only", help="only candidates of this kind")
    chosen = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder, (chosen.out or Path(os.devnull)).open("w") as out:
        lab = Lab(Path(folder))
        for number, (kind, candidate) in enumerate(candidates()):
            if chosen.only in (None, kind):
                verdict = candidate(lab, number)
                counts.setdefault(kind, Counter())[verdict.decision] += 1
                out.write(json.dumps({"kind": kind, **verdict.as_record()}) + "\n")
                print(f"{kind}: {verdict.decision}: {verdict.text()[:150]}", file=sys.stderr, flush=True)
    print("| candidates | promoted | open | refused |\n|---|---|---|---|")
    for kind, found in counts.items():
        print(f"| {found.total()} {kind} | {found['promote']} | {found['inconclusive']} | {found['refuse']} |")


def candidates() -> Iterator[tuple[str, Callable[[Lab, int], Verdict]]]:
    """Yield the kind of each candidate, and what makes it."""
    for kind, (times, make) in KINDS.items():
        for _ in range(times):
            yield kind, make


# --- the candidates ------------------------------------------------------------------------------------------


def good(lab: Lab, number: int) -> Verdict:
    return lab.verdict(lab.trained(number, *lab.batch(number)))


def one_language(lab: Lab, number: int) -> Verdict:
    rows = shuffled(lab.c_rows, number)
    training = replace(lab.recipe.training, num_epochs=4)
    return lab.verdict(
        lab.trained(number, rows[:40], rows[40 : 40 + NEW_FILES], recipe=replace(lab.recipe, training=training))
    )


def overfitted(lab: Lab, number: int) -> Verdict:
    rows, held_out = lab.batch(number)
    recipe = replace(
        lab.recipe,
        training=replace(lab.recipe.training, num_epochs=30, learning_rate=1e-2),
        evaluation=replace(lab.recipe.evaluation, interval_fraction=1.0),
    )
    return lab.verdict(lab.trained(number, rows[:2], held_out, recipe=recipe))


def on_shuffled_text(lab: Lab, number: int) -> Verdict:
    rows, held_out = lab.batch(number)
    evaluation = replace(lab.recipe.evaluation, interval_fraction=1.0)
    words = [replace(row, content=mixed(row.content, number)) for row in rows]
    return lab.verdict(lab.trained(number, words, held_out, recipe=replace(lab.recipe, evaluation=evaluation)))


def leaking(lab: Lab, number: int) -> Verdict:
    with control_token_in_answers(load_tokenizer(lab.recipe.base).convert_tokens_to_ids("<|fim_middle|>")):
        evaluation = replace(lab.recipe.evaluation, interval_fraction=1.0)
        directory = lab.trained(number, *lab.batch(number), recipe=replace(lab.recipe, evaluation=evaluation))
    return lab.verdict(directory)


def with_nan(lab: Lab, number: int) -> Verdict:
    """One element is not a number. The file was damaged after the measurement."""
    directory = lab.trained(number, *lab.batch(number))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        random.Random(number).choice(list(tensors.values())).view(-1)[0] = torch.nan

    edit(directory, change)
    return lab.verdict(directory)


def zeroed(lab: Lab, number: int) -> Verdict:
    """All weights are 0. The file was damaged after the measurement."""
    directory = lab.trained(number, *lab.batch(number))
    edit(directory, lambda tensors: [tensor.zero_() for tensor in tensors.values()])
    return lab.verdict(directory)


def noised(strength: float, *, measured: bool = False) -> Callable[[Lab, int], Verdict]:
    """Noise in all weights, in multiples of each tensor's standard deviation.

    Args:
        measured: whether the judge measures the noised weights. Else the file was damaged after the measurement.
    """

    def make(lab: Lab, number: int) -> Verdict:
        directory = lab.trained(number, *lab.batch(number))
        generator = torch.Generator().manual_seed(number)

        def change(tensors: dict[str, torch.Tensor]) -> None:
            for tensor in tensors.values():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * tensor.std() * strength)

        edit(directory, change)
        if measured:
            measure(directory)
        return lab.verdict(directory)

    return make


KINDS: dict[str, tuple[int, Callable[[Lab, int], Verdict]]] = {
    "with a NaN": (5, with_nan),
    "zeroed": (5, zeroed),
    "with noise of 1 σ": (5, noised(1.0)),
    "with noise of 3 σ": (5, noised(3.0)),
    "with noise of 10 σ": (5, noised(10.0)),
    "overfitted on two files": (8, overfitted),
    "trained on shuffled words": (8, on_shuffled_text),
    "trained on C alone": (5, one_language),
    "with a leaking control token": (4, leaking),
    "good": (50, good),
    "judged with their noise of 1 σ": (5, noised(1.0, measured=True)),
    "judged with their noise of 3 σ": (5, noised(3.0, measured=True)),
    "judged with their noise of 10 σ": (5, noised(10.0, measured=True)),
}


# --- the laboratory ------------------------------------------------------------------------------------------


@dataclass
class Lab:
    """The published adapter that all candidates are trained from, and the files."""

    root: Path

    def __post_init__(self) -> None:
        recipe = load_recipe(RECIPES / "embedded.yaml")
        model, revision = resolve(recipe.base)
        quiet = {"tracking.sample_predictions": 0, "tracking.tensorboard": False, "data.max_length": 384}
        self.recipe = with_overrides(pinned(recipe, model=model, revision=revision), quiet)
        python = [(path, text) for path, text in library_files() if not is_pretraining_file(path)]
        known = [row(n, path, text) for n, (path, text) in enumerate(python) if fits(text)]
        self.python = shuffled(list(without_duplicates(known)), 0)
        headers = sorted(Path(sysconfig.get_path("include")).rglob("*.h"))
        texts = [(path.name, path.read_text(encoding="utf-8", errors="replace")) for path in headers]
        self.c_rows = [row(10_000 + n, path, text, "c") for n, (path, text) in enumerate(texts) if fits(text)]
        first = self.python[: 60 + EARLIER_FILES]
        del self.python[: 60 + EARLIER_FILES]
        self.earlier = [replace(one, fresh=False, run_id=1) for one in first[60:]]
        run = make_run(self.root / "000001", self.recipe, first[:60], [replace(one) for one in first[60:]], number=1)
        assert run_command(run.root) == 0
        self.published = run.adapter

    def batch(self, number: int) -> tuple[list[Row], list[Row]]:
        """Return files to train on and new held-out files, drawn anew for each candidate."""
        drawn = shuffled(self.python, number)
        return drawn[:TRAIN_FILES], drawn[TRAIN_FILES : TRAIN_FILES + NEW_FILES]

    def trained(
        self, number: int, rows: Sequence[Row], held_out: Sequence[Row], *, recipe: Recipe | None = None
    ) -> RunDirectory:
        directory = make_run(
            self.root / f"{number + 2:06d}", recipe or self.recipe, rows, [*held_out, *self.earlier],
            parent=self.published, number=number + 2,
        )  # fmt: skip
        assert run_command(directory.root) == 0, directory.root
        return directory

    def verdict(self, directory: RunDirectory) -> Verdict:
        assert examine_command(directory.root) == 0
        run_id = int(read_json(directory.manifest)["run_id"])
        return judge(evidence_of(directory, self.recipe, run_id=run_id, beat=lambda: None))


def make_run(
    root: Path, recipe: Recipe, rows: Sequence[Row], held_out: Sequence[Row], *, number: int, parent: Path | None = None
) -> RunDirectory:
    directory = RunDirectory(root)
    root.mkdir(parents=True)
    write_text(directory.recipe, dump_recipe(recipe))
    for path, records in ((directory.rows, rows), (directory.held_out, held_out)):
        write_text(path, "".join(json_line(asdict(record)) for record in records))
    if parent is not None:
        directory.parent.symlink_to(parent)
    files = {path.name: sha256_file(path) for path in (directory.recipe, directory.rows, directory.held_out)}
    manifest = {
        "files": files, "run_id": number, "stream": recipe.stream, "seed": number,
        "parent_version": None if parent is None else 1,
        "parent_manifest_sha256": None if parent is None else sha256_file(parent / "MANIFEST.json"),
        "base": {"model": recipe.base.model, "revision": recipe.base.revision},
    }  # fmt: skip
    write_json(directory.manifest, manifest)
    return directory


def edit(directory: RunDirectory, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the candidate's weights, with a manifest that fits them."""
    tensors = load_file(directory.adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, directory.adapter / WEIGHTS, metadata={"format": "pt"})
    (directory.adapter / "MANIFEST.json").unlink()
    write_manifest(directory.adapter)


def measure(directory: RunDirectory) -> None:
    """Judge the changed candidate as the trainer would have."""
    checked = check_run(directory)
    stop, events = StopRequest(), Events(directory.events, enabled=False)
    with reading.reading(directory, checked, events) as rows:
        loaded = load_model(replace(checked, parent=directory.adapter))
        _, inputs = rows.inputs()
    held_out = HeldOut(loaded.accelerator, loaded.model, inputs.parts.judging, budget=2048, stop=stop)
    adapted = loaded.accelerator.unwrap_model(loaded.model).model
    judged = judge_samples(held_out, adapted, current=checked.current, start=directory.adapter, trained=True)
    known = {one.file_id: one for one in reading.read_rows(directory.held_out)}
    write_evaluation(directory.evaluation, judged.as_records(known))
    report = read_json(directory.report)
    report["evaluation"] |= {name: judged.score(name).as_report() for name in judged.by_model}
    report["adapter"] = {"manifest_sha256": sha256_file(directory.adapter / "MANIFEST.json")}
    write_json(directory.report, report)


@contextmanager
def control_token_in_answers(token: int) -> Iterator[None]:
    """Put a control token after every eighth token of the answers that are trained on."""
    original = reading.tokenize_rows

    def tokenized(rows: Any, encoder: Any, data: Any, *, seed: int) -> TokenRows:
        found = original(rows, encoder, data, seed=seed)
        if any(run is not None for run in found.runs.values()):  # the held-out file
            return found
        return replace(found, samples=[leaked(sample, token) for sample in found.samples])

    reading.tokenize_rows = tokenized
    try:
        yield
    finally:
        reading.tokenize_rows = original


def leaked(sample: TokenSample, token: int) -> TokenSample:
    ids = sample.ids.clone()
    places = (sample.labels != IGNORED).nonzero()[:, 0][8::8]
    ids[places] = token
    labels = torch.where(sample.labels != IGNORED, ids, sample.labels)
    return replace(sample, ids=ids, labels=labels)


def row(number: int, path: str, text: str, language: str = "python") -> Row:
    return Row(
        file_id=number + 1, repository="r", path=path, language=language, content=text, sha256=content_sha256(text)
    )


def without_duplicates(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the rows that admission would keep."""
    kept: list[bytes] = []
    for one, made in zip(rows, fingerprints([one.content for one in rows]), strict=True):
        if not any(similarity(made.signature, other) >= 0.7 for other in kept):
            kept.append(made.signature)
            yield one


def fits(text: str) -> bool:
    return 400 <= len(text) <= 4000


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    return random.Random(seed).sample(list(rows), len(rows))


def mixed(text: str, seed: int) -> str:
    """The words of a text in random order, with the line ends where they were."""
    lines = [line.split() for line in text.split("\n")]
    words = [word for line in lines for word in line]
    random.Random(seed).shuffle(words)
    drawn = iter(words)
    return "\n".join(" ".join(next(drawn) for _ in line) for line in lines)


if __name__ == "__main__":
    main()

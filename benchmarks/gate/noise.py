"""How many candidates the gate promotes in a stream of pure noise: python benchmarks/gate/noise.py

1,000 runs follow each other. No candidate is better or worse than the base: on each file its loss differs by chance,
with mean 0 over all files. A candidate resembles what its run started from. Each run holds out new files. Files of
earlier runs are judged again in every later run. An open candidate is trained on, and its new files are judged again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from service.gate.evidence import Evidence
from service.gate.judge import Verdict, judge
from trainer.recipe import Gate
from trainer.records import SampleEvaluation

RUNS = 1000
EARLIER_FILES = 24
"""How many files of earlier runs a run is judged by, from the newest run backwards."""
SPREAD = 0.1
"""Standard deviation of a file's difference, in nats per token."""
LIKENESS = 0.8
"""Correlation of a candidate's differences with those of what its run started from."""
RULES = {
    "any lower loss": Gate(evidence="point", tolerance=0.0, examination=False),
    "a 95 % interval at each look": Gate(examination=False, confidence=0.9),  # half of the error is for the first look
    "the gate": Gate(examination=False),
}
Array = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass
class Stream:
    """The files of a stream, and where its runs stand."""

    gate: Gate
    rng: np.random.Generator
    new_files: int
    spend: bool
    """Whether the allowed error is divided among the looks at the same files."""
    tokens: list[int] = field(default_factory=list)
    held_by: list[int] = field(default_factory=list)
    current: Array = field(default_factory=lambda: np.zeros(0))
    """Difference of each file for the current adapter, against the base."""
    start: Array = field(default_factory=lambda: np.zeros(0))
    """The same for what the next run starts from."""
    trunk: tuple[int, ...] = ()

    def run(self, number: int) -> Verdict:
        """Hold out new files, make a candidate, judge it, and go on from the verdict."""
        self.tokens += [int(min(2000, np.exp(self.rng.normal(5.5, 0.9)))) + 10 for _ in range(self.new_files)]
        self.held_by += [number] * self.new_files
        fresh = self.rng.normal(0, SPREAD, self.new_files)
        self.current = np.concatenate([self.current, fresh])
        self.start = np.concatenate([self.start, fresh if not self.trunk else self.rng.normal(0, SPREAD, len(fresh))])
        noise = self.rng.normal(0, SPREAD, len(self.start))
        candidate = LIKENESS * self.start + np.sqrt(1 - LIKENESS**2) * noise
        verdict = judge(self.evidence(number, candidate))
        match verdict.decision:
            case "promote":
                self.current, self.start, self.trunk = candidate, candidate, ()
            case "inconclusive" if len(self.trunk) + 1 < self.gate.longest_trunk:
                self.start, self.trunk = candidate, (*self.trunk, number)
            case _:
                self.start, self.trunk = self.current, ()
        return verdict

    def evidence(self, number: int, candidate: Array) -> Evidence:
        new = {number, *self.trunk}
        judged = [n for n, run in enumerate(self.held_by) if run in new]
        judged += [n for n, run in enumerate(self.held_by) if run not in new][-EARLIER_FILES:]
        samples = [self.sample(n, number, candidate) for n in judged]
        return Evidence(
            run_id=number,
            gate=self.gate,
            report={**report_of(samples), "run_id": number},
            samples=samples,
            trunk=frozenset(self.trunk if self.spend else ()),
        )

    def sample(self, file: int, number: int, candidate: Array) -> SampleEvaluation:
        tokens, run = self.tokens[file], self.held_by[file]
        new = run == number or (run in self.trunk and not self.spend)
        losses = {"anchor": 2.0, "current": 2.0 + self.current[file], "candidate": 2.0 + candidate[file]}
        return SampleEvaluation(
            file_ids=(file,), fresh=new, run_id=None if new else run, repository=None, path=None, language="python",
            kind="chunks", tokens=tokens, loss={name: loss * tokens for name, loss in losses.items()}, correct={},
        )  # fmt: skip


def report_of(samples: list[SampleEvaluation]) -> dict[str, object]:
    tokens = sum(sample.tokens for sample in samples)
    losses = {
        name: {"loss": sum(s.loss[name] for s in samples) / tokens} for name in ("anchor", "current", "candidate")
    }
    return {"rows": {"trained": 1}, "held_out": {"samples": len(samples)}, "evaluation": losses}


def main() -> None:
    print("| rule | new files a run | promoted | refused | open |\n|---|---|---|---|---|")
    for name, gate in RULES.items():
        for new_files in (4, 8, 30):
            rng = np.random.default_rng(0)
            stream = Stream(gate=gate, rng=rng, new_files=new_files, spend=name == "the gate")
            decisions = [stream.run(number).decision for number in range(1, RUNS + 1)]
            counts = [decisions.count(decision) for decision in ("promote", "refuse", "inconclusive")]
            print(f"| {name} | {new_files} | {' | '.join(map(str, counts))} |", flush=True)


if __name__ == "__main__":
    main()

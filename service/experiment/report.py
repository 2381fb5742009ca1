"""Writes the results of an experiment: experiment.json for programs, experiment.md for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from service.experiment.arms import Trained
from service.experiment.plan import Plan
from service.experiment.scores import Difference, Rate, Verdicts, differences, rates
from trainer.run_dir import write_json, write_text

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How the models answered the test."""

    tasks: int
    samples_per_task: int
    temperature: float
    top_p: float
    executed: bool
    verdicts: Mapping[str, Verdicts]
    """By `base` or arm. Empty if nothing was executed."""

    def rates(self, ks: Sequence[int]) -> dict[str, list[Rate]]:
        return {name: rates(found, ks) for name, found in self.verdicts.items()}

    def differences(self, ks: Sequence[int]) -> list[Difference]:
        """Return each arm against the control, and then each against the base."""
        arms = [name for name in self.verdicts if name != BASE]
        pairs = [(arm, arms[0]) for arm in arms[1:]] + [(arm, BASE) for arm in arms]
        return [
            one
            for name, other in pairs
            for one in differences(name, self.verdicts[name], other, self.verdicts[other], ks)
        ]


def write_report(plan: Plan, arms: Sequence[Trained], measured: Measured | None) -> dict[str, Any]:
    """Write both files. Returns the content of experiment.json.

    Args:
        measured: None: not all arms are trained yet
    """
    ks = plan.recipe.experiment.k
    found = measured.differences(ks) if measured else []
    record = {
        "format": 1,
        "folder": str(plan.root),
        "recipe": plan.recipe.name,
        "base": asdict(arms[0].recipe.base) if arms else None,
        "stage": asdict(plan.stage),
        "smoke": plan.smoke,
        "test_file": plan.test_file.name,
        "overlap": {**asdict(plan.overlap), "finding": plan.overlap.sentence()},
        "arms": {one.arm.name: _arm(one) for one in arms},
        "test": measured and {key: value for key, value in vars(measured).items() if key != "verdicts"},
        "pass": {name: [asdict(rate) for rate in of] for name, of in (measured.rates(ks) if measured else {}).items()},
        "differences": [{**asdict(one), "certain": one.is_certain, "sentence": one.sentence()} for one in found],
    }
    write_json(plan.root / "experiment.json", record)
    write_text(plan.root / "experiment.md", "\n".join(_lines(plan, arms, measured, found)) + "\n")
    return record


def _arm(one: Trained) -> dict[str, Any]:
    return {
        "metadata": one.arm.metadata, "adapter": str(one.adapter), "steps": one.steps,
        "trained_tasks": one.trained_tasks, "held_out_tasks": one.held_out_tasks, "rejected": one.rejected,
        "loss_before": one.before.get("loss"), "loss_after": one.after.get("loss"),
        "loss_difference": one.gain and asdict(one.gain), "gate": one.decision,
    }  # fmt: skip


def _lines(
    plan: Plan, arms: Sequence[Trained], measured: Measured | None, found: Sequence[Difference]
) -> Iterator[str]:
    yield f"# {plan.recipe.name}, {plan.stage.name}\n"
    yield f"Overlap of training and test: {plan.overlap.sentence()}.\n"
    if plan.smoke:
        yield "This was a smoke test with a toy model. Its numbers say nothing.\n"
    yield "## Training\n"
    yield "| arm | metadata | tasks trained | held out | steps | loss before | loss after | change (95 %) |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in arms:
        gain = one.gain
        change = f"{gain.difference:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})" if gain else "too few tasks"
        yield (
            f"| {one.arm.name} | {'yes' if one.arm.metadata else 'no'} | {one.trained_tasks} | {one.held_out_tasks} "
            f"| {one.steps} | {_loss(one.before)} | {_loss(one.after)} | {change} |"
        )
    yield ""
    for one in arms:
        if one.rejected:
            said = ", ".join(f"{count} {reason}" for reason, count in one.rejected.items())
            yield f"{one.arm.name}: tasks that were not trained on: {said}.\n"
    yield (
        "Loss: nats per token of the answers to held-out tasks, without those that were measured during training. An "
        "arm with metadata reads them before the question, before and after training.\n"
    )
    yield "## Test\n"
    if measured is None:
        yield "Not yet: not all arms are trained. The same command without --arm goes on."
        return
    yield from _test(plan, measured, found)


def _test(plan: Plan, measured: Measured, found: Sequence[Difference]) -> Iterator[str]:
    yield (
        f"{measured.tasks} tasks of {plan.test_file.name}, {measured.samples_per_task} answers to each at temperature "
        f"{measured.temperature:g}, top-p {measured.top_p:g}. The questions have no metadata, for any model.\n"
    )
    if not measured.executed:
        yield "Nothing was executed, so there are no pass rates. The same command with --execute goes on."
        return
    by_model = measured.rates(plan.recipe.experiment.k)
    ks = [rate.k for rate in next(iter(by_model.values()))]
    yield f"| model | {' | '.join(f'pass@{k}' for k in ks)} |"
    yield f"|---|{'---|' * len(ks)}"
    for name, of in by_model.items():
        cells = (f"{100 * one.value:.1f} % ({100 * one.low:.1f} to {100 * one.high:.1f})" for one in of)
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield from (f"- {one.sentence()}." for one in found)
    yield (
        "\nIntervals hold with 95 %, over tasks, each on its own. The first line is the experiment's question. Of many "
        "other lines, one may look certain by chance."
    )


def _loss(score: Mapping[str, Any]) -> str:
    value = score.get("loss")
    return f"{value:.4f}" if isinstance(value, float) else ""

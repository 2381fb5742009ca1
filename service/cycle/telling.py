"""Reports how far a trainer is, from its events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from service import progress
from service.web.overview import duration

STAGES = {
    "samples": "reading rows", "model": "loading the base", "fit": "training", "judge": "judging",
    "export": "writing the adapter",
}  # fmt: skip
"""What a stage of the trainer is called. The others take no time."""
DOWNLOAD, MEASURING = "downloading the base", "measuring"
STEPS = {
    **STAGES, "download": DOWNLOAD, "evaluation": MEASURING, "answers": "generating answers", "executed": "executing",
}  # fmt: skip
BEFORE = {
    "model": ("download",), "answers": ("download", "model"), "evaluation": ("download", "model"),
    "executed": ("answers",),
}  # fmt: skip
"""What has ended when a step goes on."""
UNITS = {"samples": "rows", "model": "tensors", "evaluation": "samples", "answers": "answers", "executed": "answers"}


class Telling:
    """Reports one start of a trainer."""

    def __init__(self, about: str = "", *, steps_are_logged: bool = False) -> None:
        """
        Args:
            about: what is trained, if there are several: `trial 3f2a9c41`
        """
        self._about = f"{about}: " if about else ""
        self._steps_are_logged = steps_are_logged
        self._began: tuple[int, float] | None = None

    def tell(self, event: Mapping[str, Any]) -> None:
        """Report an event."""
        if (handler := HANDLERS.get(event["event"])) is not None:
            handler(self, event)

    def end(self) -> None:
        """Report that the trainer has ended."""
        self._ended(*STEPS.values())

    def _report(self, name: str, said: str = "", done: float = 0, total: float | None = None, **more: bool) -> None:
        progress.report(f"{self._about}{name}", said, done, total, **more)

    def _ended(self, *names: str) -> None:
        progress.ended(*(f"{self._about}{name}" for name in names))

    def _stage(self, event: Mapping[str, Any]) -> None:
        if (name := STAGES.get(event.get("stage", ""))) is None:
            return
        if event.get("state") == "begin":
            self._report(name)
        else:
            self._ended(*((name, DOWNLOAD) if event["stage"] == "model" else (name,)))

    def _progress(self, event: Mapping[str, Any]) -> None:
        stage, done, total = event.get("stage", ""), event.get("done"), event.get("total")
        if stage in STEPS and isinstance(done, int) and isinstance(total, int):
            self._report(STEPS[stage], counts(stage, done, total), done, total)
            self._ended(*(STEPS[earlier] for earlier in BEFORE.get(stage, ())))

    def _step(self, event: Mapping[str, Any]) -> None:
        step, total, now = event.get("step"), event.get("steps_total"), event.get("time")
        if not (isinstance(step, int) and isinstance(total, int) and isinstance(now, int | float)):
            return
        said = [f"{step}/{total} steps"]
        for name, form in (("loss", "loss {:.3f}"), ("tokens_per_second", "{:,.0f} tokens/s")):
            if isinstance(value := event.get(name), int | float):
                said.append(form.format(value))
        if self._began is None or step <= self._began[0]:
            self._began = (step, now)
        elif step < total:
            left = (now - self._began[1]) / (step - self._began[0]) * (total - step)
            said.append(f"{duration(left)} left")
        self._report(STAGES["fit"], ", ".join(said), step, total, is_logged=self._steps_are_logged)

    def _evaluation(self, _event: Mapping[str, Any]) -> None:
        self._ended(MEASURING)


HANDLERS: Mapping[str, Callable[[Telling, Mapping[str, Any]], None]] = {
    "stage": Telling._stage,
    "progress": Telling._progress,
    "step": Telling._step,
    "evaluation": Telling._evaluation,
}


def counts(stage: str, done: int, total: int) -> str:
    """Return what is done: "1,024/4,096 rows", "3.1/9.0 GB"."""
    if stage == "download":
        return f"{done / 1e9:.1f}/{total / 1e9:.1f} GB" if total >= 1e9 else f"{done / 1e6:.1f}/{total / 1e6:.1f} MB"
    return f"{done:,}/{total:,} {UNITS.get(stage, '')}".rstrip()

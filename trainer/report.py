"""Makes report.json and dataset_stats.json: a run's result and its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from trainer.check import Checked
from trainer.data.tokenize import TokenRows
from trainer.energy import Energy
from trainer.evaluate.judged import Judged
from trainer.evaluate.parts import Parts
from trainer.fit.progress import Progress
from trainer.outcomes import Inputs
from trainer.records import Outcome, RowOutcome

OUTCOMES: tuple[Outcome, ...] = ("trained", "unused", "rejected", "held_out", "replayed")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


def make_report(
    checked: Checked,
    inputs: Inputs,
    progress: Progress,
    outcomes: Sequence[RowOutcome],
    *,
    judged: Judged | None = None,
    steps: dict[str, int] | None = None,
    adapter_sha256: str | None = None,
    seconds: dict[str, float],
    device: str,
    energy: Energy | None = None,
) -> dict[str, Any]:
    """Make the report (see docs/run-directory.md). Without a fit it has no evaluation and no adapter."""
    recipe = checked.recipe
    counts = Counter(outcome.outcome for outcome in outcomes)
    return {
        "format": 1,
        "run_id": checked.run_id,
        "stream": recipe.stream,
        "recipe": recipe.name,
        "phase": checked.phase,
        "base": {"model": recipe.base.model, "revision": recipe.base.revision},
        "parent_version": checked.parent_version,
        "steps": steps or {"total": 0, "done": 0, "best": 0, "result": 0},
        "early_stopped": progress.stopped_early,
        "held_out": _held_out(inputs.parts),
        "evaluation": _evaluation(judged, progress) if judged else None,
        "train": {
            "loss": progress.recent_loss(),
            "samples": len(inputs.training_samples),
            "tokens_seen": progress.tokens_seen,
            "tokens_published": sum(o.tokens for o in outcomes if o.outcome in ("trained", "replayed")),
        },
        "experts": progress.experts,
        "rows": {name: counts[name] for name in OUTCOMES},
        "adapter": {"manifest_sha256": adapter_sha256} if adapter_sha256 else None,
        "seconds": seconds,
        "device": device,
        "energy_joules": energy.joules if energy else None,
        "energy_source": energy.source if energy else None,
        "versions": versions(),
    }


def dataset_stats(inputs: Inputs) -> dict[str, Any]:
    """Count samples and tokens by kind, and rejected rows by reason, for each input file."""
    return {
        "rows": _rows_stats(inputs.rows),
        "replay": _rows_stats(inputs.replay),
        "held_out": _rows_stats(inputs.held_out),
    }


def _rows_stats(rows: TokenRows) -> dict[str, Any]:
    samples, tokens, supervised = Counter[str](), Counter[str](), Counter[str]()
    for sample in rows.samples:
        samples[sample.kind] += 1
        tokens[sample.kind] += sample.tokens
        supervised[sample.kind] += sample.supervised
    return {
        "rows": len(rows.file_ids),
        "samples": {
            kind: {"samples": count, "tokens": tokens[kind], "supervised_tokens": supervised[kind]}
            for kind, count in sorted(samples.items())
        },
        "rejected": dict(sorted(Counter(rows.rejected.values()).items())),
    }


def _held_out(parts: Parts) -> dict[str, Any]:
    return {
        "samples": len(parts.judging),
        "tokens": sum(sample.tokens for sample in parts.judging),
        "stopping_samples": len(parts.stopping),
        "stopping_tokens": sum(sample.tokens for sample in parts.stopping),
        "disjoint": parts.disjoint,
    }


def _evaluation(judged: Judged, progress: Progress) -> dict[str, Any]:
    return {
        **{name: judged.score(name).as_report() for name in judged.by_model},
        "history": [{"step": step, **score.as_report()} for step, score in progress.history],
    }


def versions() -> dict[str, str]:
    """Versions of Python and the libraries."""
    return {package: version(package) for package in PACKAGES}

"""Puts what is known about a run into the order of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from service.gate.interval import Interval
from service.gate.slices import Slice, slices
from service.gate.words import DECISIONS, MODELS
from service.report.blocks import Block, Code, Document, Heading, Paragraph, Plot, Table
from service.report.gather import Known, trained_rows
from service.web.overview import duration

MOST_SLICES = 30
LONGEST_TEXT = 4000
CURVES = (
    ("Loss", "nats per token", {"train_loss": "training", "eval_loss": "held-out"}),
    ("Learning rate", "learning rate", {"learning_rate": "learning rate"}),
    ("Speed", "tokens per second", {"tokens_per_second": "tokens per second"}),
)
LINES = {"anchor": "base alone", "current": "current adapter"}


def document(known: Known) -> Document:
    """Return the report of a run."""
    stream = known.run.stream if known.run else known.manifest.get("stream") or known.report.get("stream") or "?"
    title = f"Run {known.run_id if known.run_id is not None else '?'} of {stream}"
    blocks: list[Block] = []
    for section in SECTIONS:
        try:
            blocks += list(section(known))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:  # of another version, or damaged
            name = section.__name__.strip("_").replace("_", " ")
            known.missing.append(f"{name}: the record has another form ({type(error).__name__}: {error})")
    return Document(title=title, blocks=blocks, missing=tuple(known.missing))


def _facts(known: Known) -> Iterator[Block]:
    run, report, manifest = known.run, known.report, known.manifest
    base = report.get("base") or manifest.get("base") or {}
    seconds, steps = report.get("seconds") or {}, report.get("steps") or {}
    parent = run.parent_version if run else manifest.get("parent_version")
    early = ", stopped early" if report.get("early_stopped") else ""
    facts: list[tuple[str, Any]] = [
        ("state", run.state if run else None), ("reason", run.reason if run else None),
        ("phase", run.phase if run else manifest.get("phase")), ("recipe", report.get("recipe")),
        ("base", f"{base['model']}@{base.get('revision')}" if base.get("model") else None),
        ("parent version", "none: the base alone" if parent is None else parent),
        ("trained on from", f"the open candidate of run {run.trunk_run_id}" if run and run.trunk_run_id else None),
        ("published in", f"version {run.published_in}" if run and run.published_in else None),
        ("claimed at", _when(run.created_at if run else None)), ("ended at", _when(run.ended_at if run else None)),
        ("starts", run.launches if run else None), ("seed", run.seed if run else manifest.get("seed")),
        ("steps", steps and f"{steps.get('done')} of {steps.get('total')}{early}; the best is {steps.get('best')}"),
        ("rows", _counts(report.get("rows"))), ("files in the ledger", _files(known.files)),
        ("trained tokens", (report.get("train") or {}).get("tokens_published")),
        ("training loss", _number((report.get("train") or {}).get("loss"), ".4f")),
        ("judging samples", (report.get("held_out") or {}).get("samples")), ("device", report.get("device")),
        ("time", ", ".join(f"{name} {duration(value)}" for name, value in seconds.items()) or None),
        ("energy", _energy(report)), ("versions", _counts(report.get("versions"), " ")),
        ("adapter", (report.get("adapter") or {}).get("manifest_sha256")),
    ]  # fmt: skip
    yield Heading(text="Facts")
    yield Table(title="", columns=(), rows=[(name, value) for name, value in facts if value not in (None, "", {})])


def _energy(report: Mapping[str, Any]) -> str | None:
    joules = report.get("energy_joules")
    if not isinstance(joules, int | float):
        return None
    return f"{joules / 3.6e6:,.3f} kWh of the cards (measured by {report.get('energy_source')})"


def _when(moment: datetime | None) -> str | None:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if moment else None


def _counts(found: Any, between: str = ": ") -> str | None:
    if not isinstance(found, Mapping):
        return None if found is None else str(found)
    return ", ".join(f"{str(name).replace('_', ' ')}{between}{value}" for name, value in found.items())


def _files(found: Mapping[str, Mapping[str, int]]) -> str | None:
    said = [f"{count} {role.replace('_', ' ')} ({outcome or 'in progress'})"
            for role, outcomes in found.items() for outcome, count in outcomes.items()]  # fmt: skip
    return ", ".join(said) or None


def _verdict(known: Known) -> Iterator[Block]:
    verdict = known.report.get("verdict")
    if not verdict:
        return
    decision = verdict.get("decision") or ("promote" if verdict.get("promote") else "refuse")
    yield Heading(text="Verdict")
    yield Paragraph(about="verdict", text=DECISIONS.get(decision, str(decision)))
    for reason in verdict.get("reasons") or ():
        yield Paragraph(about="reason", text=str(reason))
    if rules := verdict.get("rules"):
        yield Table(title="The gate's rules (losses in nats per token)", columns=("rule", "outcome", "what was found"),
                    rows=[(rule["rule"], rule["outcome"], rule["text"]) for rule in rules])  # fmt: skip
    for name, found in (verdict.get("intervals") or {}).items():
        yield Paragraph(about=f"{name} files", text=Interval(**found).text())


def _losses(known: Known) -> Iterator[Block]:
    if not (evaluation := known.report.get("evaluation")):
        return
    yield Heading(text="Held-out files that judge")
    rows = [[title, *(_number(((evaluation.get(name) or {}).get(key)), form) for key, form in SCORES)]
            for name, title in MODELS.items()]  # fmt: skip
    yield Table(title="", columns=("model", "loss", "perplexity", "top-1 accuracy"), rows=rows)
    suites = ((known.report.get("verdict") or {}).get("quality") or {}).get("suites") or {}
    if suites:
        rows = [[name, *(_number(found.get(model), ".1%") for model in ("current", "candidate"))]
                for name, found in suites.items()]  # fmt: skip
        yield Table(title="Benchmarks (pass@1)", columns=("benchmark", "current adapter", "candidate"), rows=rows)


SCORES = (("loss", ".4f"), ("perplexity", ",.2f"), ("token_accuracy", ".1%"))


def _number(value: Any, form: str) -> str | None:
    return format(value, form) if isinstance(value, int | float) and math.isfinite(value) else None


def _curves(known: Known) -> Iterator[Block]:
    curves = known.curves.get("curves") or {}
    plots = []
    for title, unit, names in CURVES:
        found = {shown: [(int(step), float(mean)) for step, mean, *_ in curves[name]]
                 for name, shown in names.items() if curves.get(name)}  # fmt: skip
        if found:
            lines = {shown: known.curves["lines"][name] for name, shown in LINES.items()
                     if title == "Loss" and name in known.curves["lines"]}  # fmt: skip
            plots.append(Plot(title=title, unit=unit, curves=found, lines=lines))
    if plots:
        yield Heading(text="Curves")
        yield Paragraph(about="Loss", text="the held-out curve and its lines are measured on the files that choose the "
                        "best step. The verdict stands on other files")  # fmt: skip
        yield from plots


def _slices(known: Known) -> Iterator[Block]:
    if not known.evaluation:
        return
    yield Heading(text="Slices of the judging files")
    for division, found in slices(known.evaluation).items():
        if division == "all":
            continue
        more = f", the largest {MOST_SLICES} of {len(found)}" if len(found) > MOST_SLICES else ""
        columns = (division, "files", "samples", "tokens", *MODELS.values(), "candidate against current")
        yield Table(title=f"By {division}{more}", columns=columns, rows=[_slice(one) for one in found[:MOST_SLICES]])


def _slice(one: Slice) -> list[Any]:
    losses = [_number(one.models[name].loss, ".4f") for name in MODELS]
    against = one.differences.get("current")
    said = against.text() if against else None
    return [one.name or "(none)", one.files, one.samples, f"{one.tokens:,}", *losses, said]


def _answers(known: Known) -> Iterator[Block]:
    if known.answers:
        yield Heading(text="Answers to the recipe's own prompts")
        for one in known.answers:
            yield Code(title="prompt", text=str(one["prompt"]))
            yield Code(title="candidate", text=str(one.get("candidate")))
            yield Code(title="base alone", text=str(one.get("base")))


def _texts(known: Known) -> Iterator[Block]:
    if known.held_out:
        yield Heading(text="Texts of held-out rows")
        for row in known.held_out:
            cut = "" if len(row.content) <= LONGEST_TEXT else f" (the first {LONGEST_TEXT:,} characters)"
            name = "/".join(part for part in (row.repository, row.path) if part) or f"row {row.file_id}"
            yield Code(title=f"row {row.file_id}, {row.language}: {name}{cut}", text=row.content[:LONGEST_TEXT])


def _lineage(known: Known) -> Iterator[Block]:
    tables = []
    for name, title in (("trained", "Trained rows"), ("trained_in_all", "Trained rows, with all ancestors")):
        if found := trained_rows(known, name):
            rows = [[one.language, one.license or "not stated", f"{one.rows:,}", f"{one.tokens:,}"] for one in found]
            tables.append(Table(title=title, columns=("language", "licence", "rows", "tokens"), rows=rows))
    trunk = known.lineage.get("trunk") or known.manifest.get("trunk") or []
    rejected = [[name, reason, count] for name, part in known.stats.items() if isinstance(part, Mapping)
                for reason, count in (part.get("rejected") or {}).items()]  # fmt: skip
    kinds = [[kind, *(f"{one[key]:,}" for key in ("samples", "tokens", "supervised_tokens"))]
             for kind, one in ((known.stats.get("rows") or {}).get("samples") or {}).items()]  # fmt: skip
    if not (tables or trunk or rejected or kinds):
        return
    yield Heading(text="Lineage")
    if trunk:
        yield Paragraph(about="trained on from the open candidates of runs", text=", ".join(map(str, trunk)))
    if known.lineage.get("replayed"):
        yield Paragraph(about="rows of earlier runs trained again", text=f"{len(known.lineage['replayed']):,}")
    yield from tables
    if kinds:
        yield Table(title="Samples by kind", columns=("kind", "samples", "tokens", "with loss"), rows=kinds)
    if rejected:
        yield Table(title="Rows that gave no sample", columns=("file", "reason", "rows"), rows=rejected)


def _experts(known: Known) -> Iterator[Block]:
    if not (experts := known.report.get("experts")):
        return
    yield Heading(text="Experts")
    balance = f"load balancing loss {experts['aux_loss']:.3f}, balanced {experts['top_k']}"
    yield Paragraph(about="use", text=f"up to step {experts['step']}, {experts['tokens']:,} tokens; {balance}")
    rows = [[number, ", ".join(f"{share:.1%}" for share in layer["shares"]), f"{layer['entropy']:.3f}",
             ", ".join(map(str, layer["dead"])) or "none"]
            for number, layer in enumerate(experts["layers"])]  # fmt: skip
    yield Table(title="", columns=("layer", "share of each expert", "entropy", "dead"), rows=rows)


SECTIONS: Sequence[Callable[[Known], Iterator[Block]]] = (
    _facts, _verdict, _losses, _curves, _slices, _answers, _texts, _lineage, _experts,
)  # fmt: skip

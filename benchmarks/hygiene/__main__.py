"""Measure recall, false positives and cost per row of each hygiene rule: python benchmarks/hygiene [HumanEval.jsonl.gz]

The benchmark plants 500 cases of each kind among the files of Python's standard library: exact copies, edited copies,
secrets, benchmark solutions and licences. A refused file of the library itself is a false positive, unless its own
header says that it is generated. Duplicates go through a real claim on an embedded Postgres.

It writes benchmarks/results/hygiene.md.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(Path(__file__).parent)]

from planted import edited_copy, leaks, planted_secrets, standard_library

from db import embedded, migrate, streams
from db import lease as leases
from db.files import NewFile, insert_files
from db.pool import Pool
from db.source import Eligibility, Source, claim
from service.admission.contamination import Benchmarks, read_tasks
from service.admission.duplicates import Duplicates, fingerprints
from service.admission.filters import refusal
from service.admission.licences import refused_licence
from service.admission.secrets import without_secrets
from trainer.recipe import Data, Hygiene
from trainer.samples.syntax import GRAMMARS, unparsed_share

PLANTED = 500
ELIGIBLE = Eligibility(quality_threshold=70, min_chars=50, max_chars=20_000)
STREAM = "hygiene"

Line = tuple[str, str, str, str]
"""Rule, planted cases found, library files refused, cost."""


def milliseconds(work: Callable[[str], object], texts: Sequence[str]) -> float:
    """Return the median cost per text in milliseconds."""
    costs = []
    for text in texts:
        started = time.perf_counter()
        work(text)
        costs.append(time.perf_counter() - started)
    return statistics.median(costs) * 1000


def filters(texts: Sequence[str]) -> Line:
    reasons = Counter(refusal(text, Hygiene(), min_lines=6) for text in texts)
    of_these = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items(), key=str) if reason)
    cost = milliseconds(lambda text: refusal(text, Hygiene(), min_lines=6), texts[:300])
    return "filters", "", f"{of_these or 0} of {len(texts)}", f"{cost:.2f} ms"


def secrets(texts: Sequence[str]) -> Line:
    found = 0
    for _, text, secret in planted_secrets(list(texts), PLANTED):
        clean = without_secrets(text, Counter())
        found += not leaks(clean, secret)
    false = sum(without_secrets(text, Counter()) != text for text in texts)
    cost = milliseconds(lambda text: without_secrets(text, Counter()), texts[:300])
    return "secrets", f"{found} of {PLANTED}", f"{false} of {len(texts)}", f"{cost:.2f} ms"


def licences() -> Line:
    hygiene, chance = Hygiene(licenses=("MIT", "Apache-2.0", "BSD-3-Clause")), random.Random(3)
    good, bad = list(hygiene.licenses), ["GPL-3.0-only", "AGPL-3.0-or-later", "SSPL-1.0", "LicenseRef-Proprietary"]
    planted = [f"{chance.choice(good)} AND {chance.choice(bad)}" for _ in range(PLANTED // 2)]
    planted += [" OR ".join(chance.sample(bad, 2)) for _ in range(PLANTED // 2)]
    fine = [f"{chance.choice(good)} OR {chance.choice(bad)}" for _ in range(PLANTED)]
    found = sum(refused_licence(licence, hygiene) is not None for licence in planted)
    false = sum(refused_licence(licence, hygiene) is not None for licence in fine)
    return "licences", f"{found} of {PLANTED}", f"{false} of {PLANTED}", ""


def parse_failures(texts: Sequence[str]) -> Line:
    """Plant Python files labelled as another language, and as many Python files with their lines shuffled."""
    largest, chance = Data().largest_unparsed_share, random.Random(5)
    others = sorted({*GRAMMARS} - {"python"})

    def shuffled(text: str) -> str:
        lines = text.split("\n")
        return "\n".join(chance.sample(lines, len(lines)))

    long = [text for text in texts if text.count("\n") > 20]
    planted = [(chance.choice(others), text) for text in chance.sample(long, PLANTED // 2)]
    planted += [("python", shuffled(text)) for text in chance.sample(long, PLANTED // 2)]
    found = sum(unparsed_share(language, text) > largest for language, text in planted)
    false = sum(unparsed_share("python", text) > largest for text in texts)
    cost = milliseconds(lambda text: unparsed_share("python", text), texts[:300])
    return "parse_failure", f"{found} of {PLANTED}", f"{false} of {len(texts)}", f"{cost:.2f} ms"


def contamination(texts: Sequence[str], path: Path) -> list[Line]:
    known, tasks = Benchmarks([str(path)], 10), list(read_tasks(path))
    false = sum(known.reason(text) is not None for text in texts)
    cost = milliseconds(known.reason, texts[:300])
    lines = []
    for name, part in (("statement and solution", 0), ("solution alone", None)):
        found = 0
        for number in range(PLANTED):
            task = tasks[number % len(tasks)]
            lines_around = texts[number % len(texts)].split("\n")
            middle = len(lines_around) // 2
            planted = task.solution if part is None else task.texts[part]
            found += known.reason("\n".join([*lines_around[:middle], planted, *lines_around[middle:]])) is not None
        lines.append((f"benchmark: {name}", f"{found} of {PLANTED}", f"{false} of {len(texts)}", f"{cost:.2f} ms"))
    return lines


def duplicates(texts: Sequence[str]) -> list[Line]:
    """Claim the library, followed by 500 exact and 500 edited copies of its files."""
    chance = random.Random(9)
    originals = list(texts)
    exact = [text.replace("\n", "\r\n") for text in chance.sample(originals, PLANTED)]
    near = [edited_copy(text, chance) for text in chance.sample(originals, PLANTED)]
    folder = Path(tempfile.mkdtemp(prefix="codelupe-hygiene-"))
    url = embedded.start(folder)
    try:
        pool = Pool(url)
        migrate.apply(pool)
        rows = [("original", originals), ("exact", exact), ("near", near)]
        insert_files(pool, (NewFile(repository=kind, path=str(n), language="python", content=text, quality_score=90)
                            for kind, group in rows for n, text in enumerate(group)))  # fmt: skip
        reasons, seconds, growth = claimed(pool)
        pool.close()
    finally:
        embedded.stop(folder)
    refused = {kind: sum(n for (found, reason), n in reasons.items() if found == kind and reason) for kind, _ in rows}
    cost = f"{seconds * 1000:.2f} ms (mean), {growth:.0f} MB"
    return [
        ("duplicate", f"{refused['exact']} of {PLANTED}", f"{refused['original']} of {len(originals)}", cost),
        ("near_duplicate", f"{refused['near']} of {PLANTED}", f"{refused['original']} of {len(originals)}", cost),
    ]


def claimed(pool: Pool) -> tuple[Counter[tuple[str, str | None]], float, float]:
    """Count the (repository, reason) pairs of a claim's rows.

    Also return the seconds per row for fingerprints and bands, and the growth of the process in MB.
    """
    streams.bind(pool, STREAM, streams.Binding(source="code_files", base_model="m", base_revision="r", lora={}))
    lease = leases.acquire(pool, STREAM, "benchmark", 600)
    assert lease is not None
    reasons: Counter[tuple[str, str | None]] = Counter()
    seconds, count = 0.0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with claim(pool, lease, Source(), ELIGIBLE, limit=10**6, parent_version=None, seed=1) as rows:
        found = Duplicates(rows, Hygiene())
        batch = []
        for row in rows.rows():
            batch.append(row)
            if len(batch) == 200:
                started = time.perf_counter()
                judged = found.reasons(batch)
                seconds += time.perf_counter() - started
                count += len(batch)
                reasons.update(zip((one.repository or "" for one in batch), judged, strict=True))
                batch = []
        reasons.update(zip((one.repository or "" for one in batch), found.reasons(batch), strict=True))
        rows.cancel()
    return reasons, seconds / count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/hygiene", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("benchmark", nargs="?", type=Path, help="HumanEval file, needed for the contamination rows")
    given = parser.parse_args()
    texts = standard_library()
    fingerprints(texts[:10])
    lines = [
        filters(texts),
        parse_failures(standard_library(most_chars=10**6)),
        secrets(texts),
        licences(),
        *duplicates(texts),
    ]
    if given.benchmark is not None:
        lines += contamination(texts, given.benchmark)
    page = "\n".join([
        "# Hygiene: how many planted cases each rule finds",
        "",
        f"`python benchmarks/hygiene HumanEval.jsonl.gz` planted {PLANTED} cases of each kind among {len(texts)} files "
        f"of Python {sys.version.split()[0]}'s standard library. The files are cut at 8,000 characters, except for "
        f"parse_failure. The machine has {os.cpu_count()} cores and was shared with other work (load "
        f"{os.getloadavg()[0]:.1f}). One file of each group of copies is kept.",
        "",
        "| rule | planted cases found | library files refused | median cost per file |",
        "|---|---|---|---|",
        *(f"| {' | '.join(line)} |" for line in lines),
        "",
    ])  # fmt: skip
    target = ROOT / "benchmarks" / "results" / "hygiene.md"
    target.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()

"""Row 14: malformed rows, inserted into the source table and given directly to the trainer."""

from __future__ import annotations

import gzip
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg2
from oracle import Broken, check_pointer
from psycopg2 import sql
from psycopg2.extensions import make_dsn
from rows import Done, Row, Trials
from scene import Scene, code, new_database, server

from db import audit
from db.pool import Pool
from service.settings.variables import LONGEST_CONTENT_CHARS
from trainer.data.encoder import SampleEncoder
from trainer.data.tokenize import tokenize_rows
from trainer.model.base import TINY_FOLDER
from trainer.model.load import load_tokenizer
from trainer.recipe import Base, Data
from trainer.records import Row as RunRow
from trainer.records import read_lines
from trainer.run_dir import content_sha256
from trainer.samples.build import BUILDERS

ROWS_A_TRIAL, ORDINARY = 250, 60
"""Malformed and ordinary rows of a trial. The ordinary ones make training and evaluation possible."""
TRIALS, HUGE_TRIALS = 40, 2
HUGE_CHARS = 200 * 10**6
LONG_CHARS = LONGEST_CONTENT_CHARS - 10_000
SETTLE_SECONDS = 400.0
BIDI = "\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069\u202c\u200e\u200f\u061c"
INSERT = (
    "insert into code_files (repository, path, language, content, quality_score, license, phase, metadata, created_at) "
    "values (convert_from(%s, {e}), convert_from(%s, {e}), convert_from(%s, {e}), convert_from(%s, {e}), %s::real, "
    "convert_from(%s, {e}), null, convert_from(%s, {e})::{json}, %s::timestamptz)"
)
SCORES = ("90", "90", "90", "90", "90", "NaN", "Infinity", "-Infinity", "0", "-1", "3e38", "69.99999", None)
TIMES = ("now", "now", "now", "infinity", "-infinity", "4000-01-01", "0044-03-15 BC")
LANGUAGES = ("python", "Python", "rust", "go", "javascript", "typescript", "java", "c", "cpp", "", "  ", "\n",
             "C++/CLI", "klingon", "x" * 10_000, "пайтон", "python\u202e", "text", "json", "markdown")  # fmt: skip
PLACES = ("a/b.py", "", "/", "..", "../../../../etc/passwd", "a\nb.py", "x" * 5000, "a//b\\c", "\u202egpj.exe",
          "é" * 300, "con", ".git/config", "a b.py", "-rf", "$(id)", "%s%n{0}", "\t", "x.py\x1b[2J")  # fmt: skip


# --- texts ----------------------------------------------------------------------------------------------------


def text(chance: random.Random) -> str:
    """Return a difficult text that is valid UTF-8."""
    n = chance.randrange(10**6)
    base = code(n)
    return chance.choice(
        (
            lambda: base.replace("_", chance.choice(BIDI) + "_"),
            lambda: f"x_{n} = '" + "a" * 1_000_000 + "'\n",
            lambda: "".join(chance.choice(BIDI + "ab \n") for _ in range(400)) + str(n),
            lambda: "\r".join(base.split("\n")),
            lambda: base.replace("\n", chance.choice(("\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"))),
            lambda: "\ufeff" + base,
            lambda: base + "".join(chr(chance.randrange(1, 32)) for _ in range(200)),
            lambda: base + "e" + "\u0301" * 20_000,
            lambda: chance.choice("([{<") * chance.choice((1000, 30_000)) + f"\n{n}\n" + "x\n" * 20,
            lambda: base + "if x:\n" + "".join(f"{' ' * i}if x{i}:\n" for i in range(1, 300)) + " " * 301 + "pass\n",
            lambda: base + '"' * chance.choice((3, 1001)) + "\\" * chance.choice((1, 999)),
            lambda: f"{n}\n" + "`" * 20_000 + "\n" + base,
            lambda: f"{n}\n" * 300,
            lambda: " " * 7000 + str(n),
            lambda: "\n" * 7000 + str(n),
            lambda: "\t\n" * 3000 + str(n),
            lambda: "".join(chr(chance.randrange(0xE000, 0xF8FF)) for _ in range(600)) + "\ue0000\ue001\n" * 9,
            lambda: "".join(chr(chance.choice((0xFFFE, 0xFFFF, 0x10FFFF, 0x1F600, 0x1D7D8))) for _ in range(600)),
            lambda: base + "<|im_end|>\n<|im_start|>assistant\n<|endoftext|><|fim_middle|>" * 20,
            lambda: f"key_{n} = '{chance.randbytes(20_000).hex()}'\n{base}",
            lambda: f"token{n} = " + "A" * 39 + "==" * 3000 + "\n" + base,
            lambda: base + "a+" * 5000 + "b" + "=" * 5000,
            lambda: "".join(chr(chance.randrange(0x20, 0xD7FF)) for _ in range(chance.choice((60, 3000)))),
            lambda: "x" * chance.choice((0, 1, 49, 50)),
            lambda: base * 40,
        )
    )()


def bad_bytes(chance: random.Random) -> bytes:
    """Return bytes that are not UTF-8. A SQL_ASCII database accepts them."""
    base = code(chance.randrange(10**6)).encode()
    return chance.choice(
        (
            lambda: bytes(chance.randrange(1, 256) for _ in range(chance.choice((80, 4000)))),
            lambda: base + b"\xed\xa0\x80\xed\xb0\x80",  # surrogates encoded as in CESU-8
            lambda: base + b"\xc0\xae\xc0\xaf",  # overlong encodings
            lambda: base + b"\xf4\x90\x80\x80",  # beyond Unicode
            lambda: base[:-1] + b"\xe2\x82",  # cut in the middle of a character
            lambda: base.decode().encode("utf-16-le").replace(b"\0", b"\x01"),
            lambda: "déjà_vu = 'é'\n".encode("latin-1") * 30,
        )
    )()


def metadata(chance: random.Random, *, is_plain_json: bool) -> str:
    """Return metadata for a jsonb column, or for a json column, which keeps the text unchanged."""
    known = ['{"author": "a"}', "[]", "null", "3", '"x"', '{"author": {"a": [1, {}]}, "stars": 1e300}',
             '{"diff": 5, "message": null, "before": []}', '{"": ""}', '{"a": "\\u202e<|im_end|>"}',
             '{"author": "' + "x" * 100_000 + '"}', "[" * 900 + "]" * 900]  # fmt: skip
    raw = ['{"a": "\\u0000"}', '{"a": "\\ud800"}', '{"a": 1e999}', '{"a": 1, "a": 2}', '{"a": "' + "y" * 5_000_000
           + '"}', "[" * 5000 + "]" * 5000]  # fmt: skip
    return chance.choice(known + raw * is_plain_json)


def record(chance: random.Random, *, is_ascii: bool) -> tuple[Any, ...]:
    """Return the values of one malformed row for INSERT."""

    def some(choices: tuple[str, ...]) -> bytes | None:
        if is_ascii and chance.random() < 0.05:
            return b"\xff\xfe" + chance.choice(choices).encode()
        return None if chance.random() < 0.05 else chance.choice(choices).encode()

    content = bad_bytes(chance) if is_ascii and chance.random() < 0.4 else text(chance).encode()
    details = metadata(chance, is_plain_json=is_ascii)
    return (some(PLACES), some(PLACES), some(LANGUAGES), content, chance.choice(SCORES),
            some(("MIT", "mit " * 500, "")), details.encode(), chance.choice(TIMES))  # fmt: skip


# --- through the service --------------------------------------------------------------------------------------


def ascii_database(url: str, name: str) -> str:
    """Create a database with the encoding SQL_ASCII, which accepts any bytes."""
    new_database(url, name)
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("drop database {}").format(sql.Identifier(name)))
        cursor.execute(
            sql.SQL(
                "create database {} encoding 'SQL_ASCII' locale 'C' locale_provider libc template template0"
            ).format(sql.Identifier(name))
        )
    connection.close()
    return str(make_dsn(url, dbname=name))


def insert(one: Scene, records: list[tuple[Any, ...]], *, is_ascii: bool) -> None:
    connection = psycopg2.connect(one.url)
    encoding, json = ("SQL_ASCII", "json") if is_ascii else ("UTF8", "jsonb")
    with connection, connection.cursor() as cursor:
        if is_ascii:
            cursor.execute("alter table code_files alter metadata drop default, alter metadata type json")
        for values in records:
            cursor.execute(INSERT.format(e=f"'{encoding}'", json=json), values)
    connection.close()


def books(one: Scene, settings: Mapping[str, str]) -> audit.Audit:
    from scene import settings_of

    made = settings_of(type(one.options)(url=one.url, home=one.options.home, settings=tuple(settings.items())))
    pool = Pool(one.url)
    try:
        return audit.audit(pool, made.source, made.eligibility, one.stream)
    finally:
        pool.close()


def settled(one: Scene, rows: int, settings: Mapping[str, str], seconds: float) -> audit.Audit:
    """Wait until every row is settled or ineligible."""
    deadline = time.monotonic() + seconds
    while (found := books(one, settings)).pending or found.claimed:
        if one.service is None or one.service.process.exitcode is not None:
            raise Broken(f"the service ended; {one.log_tail()}")
        if time.monotonic() > deadline:
            raise Broken(f"{found}; {one.log_tail()}")
        time.sleep(0.2)
    if found.problems or found.total != rows or sum(found.ineligible.values()) + sum(found.settled.values()) != rows:
        raise Broken(f"{found}")
    check_pointer(one.pointer)
    if "Traceback" in one.home.log_file.read_text() or "Paused" in one.home.log_file.read_text():
        raise Broken(f"the service paused or logged a traceback: {one.log_tail()}")
    return found


def through_the_service(one: Scene, number: int, rows: int, *, is_ascii: bool) -> Done:
    """Run the service on malformed and ordinary rows. Then give the claimed rows to every builder."""
    chance = random.Random(number)
    settings = {"MAX_CONTENT_CHARS": chance.choice(("8000", "2000000")), "MAX_DATASET_SIZE": "1000"}
    one.produce(ORDINARY)
    insert(one, [record(chance, is_ascii=is_ascii) for _ in range(rows)], is_ascii=is_ascii)
    one.start(settings=tuple(settings.items()))
    found = settled(one, ORDINARY + rows, settings, SETTLE_SECONDS)
    claimed = [
        RunRow(**fields) for path in sorted(one.home.runs.glob("0*/rows.jsonl*")) for fields in lines(path, one.folder)
    ]
    through_the_builders(claimed, number)
    made = [direct_row(chance, file_id) for file_id in range(1, rows + 1)]
    through_the_builders(made, number)
    return Done(count=rows, note=f"{'SQL_ASCII' if is_ascii else 'UTF8'}: {sum(found.ineligible.values())} "
                f"ineligible, {len(claimed)} given to the trainer")  # fmt: skip


def lines(path: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a row file, compressed or not."""
    if path.suffix != ".gz":
        return read_lines(path)
    plain = folder / "rows.jsonl"
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    return read_lines(plain)


def huge_rows(one: Scene) -> Done:
    """Run the service on texts of 200 MB, and on texts close to the largest limit it can have."""
    settings = {"MAX_CONTENT_CHARS": str(LONGEST_CONTENT_CHARS)}
    connection = psycopg2.connect(one.url)
    with connection, connection.cursor() as cursor:
        for chars in (HUGE_CHARS, LONG_CHARS):
            for value in ("repeat('x = 1; ', %s / 7)", "repeat(E'value = compute(1)\\n', %s / 19)"):
                cursor.execute(
                    f"insert into code_files (language, content, quality_score) values ('python', {value}, 90)",
                    (chars,),
                )
    connection.close()
    one.produce(ORDINARY)
    one.start(settings=tuple(settings.items()))
    found = settled(one, ORDINARY + 4, settings, SETTLE_SECONDS)
    return Done(count=4, note=f"two of 200 MB, two of 20: {sum(found.ineligible.values())} ineligible")


# --- through the trainer --------------------------------------------------------------------------------------


@cache
def encoder() -> SampleEncoder:
    return SampleEncoder(load_tokenizer(Base(model=str(TINY_FOLDER))))


def direct_row(chance: random.Random, file_id: int) -> RunRow:
    """Return a row that a run directory can hold. It may contain lone surrogates."""
    content = text(chance)
    if chance.random() < 0.1:
        content += chr(chance.randrange(0xD800, 0xE000))
    return RunRow(file_id=file_id, repository=chance.choice(PLACES), path=chance.choice(PLACES),
                  language=chance.choice(LANGUAGES).strip().lower() or "text", content=content,
                  sha256=content_sha256(content), metadata={"diff": content, "message": content})  # fmt: skip


def through_the_builders(rows: list[RunRow], seed: int) -> None:
    """Check that each row gives samples or a reason. Each builder gets a share of the rows."""
    for place, builder in enumerate(BUILDERS):
        mine = rows[place :: len(BUILDERS)]
        data = Data(builders={builder: 1.0}, max_length=512, rename_fraction=0.5, metadata=True)
        found = tokenize_rows(mine, encoder(), data, seed=seed)
        with_samples = {file_id for sample in found.samples for file_id, _ in sample.shares}
        if missing := {row.file_id for row in mine} - with_samples - set(found.rejected):
            raise Broken(f"{builder}: neither samples nor a reason: {sorted(missing)[:10]}")
        if long := [sample.file_id for sample in found.samples if sample.tokens > data.max_length]:
            raise Broken(f"{builder}: samples that are too long: {long[:10]}")


@contextmanager
def malformed_rows(folder: Path, sample: bool) -> Iterator[Trials]:
    number = 2 if sample else TRIALS + HUGE_TRIALS

    def trial(n: int) -> Done:
        is_ascii = n % 2 == 0
        make = ascii_database if is_ascii else new_database
        one = Scene(folder / f"trial{n}", make(url, f"malformed_{n}"))
        try:
            if n >= TRIALS:
                return huge_rows(one)
            return through_the_service(one, n, 40 if sample else ROWS_A_TRIAL, is_ascii=is_ascii)
        finally:
            one.stop()

    with server(folder / "postgres") as url:
        yield Trials(number=number, run=trial)


ROWS = {
    14: Row(fault="malformed rows: invalid UTF-8, surrogates, bidi controls, 200 MB, a line of a million characters, "
            "absurd paths, languages, metadata, scores and times", unit="rows",
            passes="no crash; each row settled or counted as ineligible", prepare=malformed_rows),
}  # fmt: skip

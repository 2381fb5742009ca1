"""Reads files of records: JSON lines, JSON arrays, CSV and Parquet, also compressed. One record after another."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
from pyarrow import parquet

Record = dict[str, Any]
Skipped = str
"""Why a file or record was skipped."""


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """A file or record that gives no row."""

    name: str
    """Its path. For a record, the path of its file and its number. For a change, its path and commit."""
    reason: Skipped


COMPRESSION: Mapping[str, str] = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""Codec by the end of a name."""
LABELS = {".parquet": "Parquet", ".csv": "CSV", ".tsv": "TSV", ".json": "JSON"}
PARQUET_ROWS = 256
PEEKED = 4096
"""How much of a table to look at for its header."""
LONGEST_FIELD = 200_000_000
"""Maximum number of characters of a field in CSV. Python's own limit is 131,072."""
WIDE_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
              (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
"""Byte order marks of encodings in which a line end is not one byte. That of UTF-32 begins like that of UTF-16."""


def format_of(path: Path) -> str | None:
    """Return the suffix of a file of records without its compression (`.jsonl`), or None for another file."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSION:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def is_array(path: Path) -> bool:
    """Whether a JSON file begins as an array of objects. Other JSON is a source file."""
    try:
        with _opened(path) as file:
            start = file.read(4096).decode("utf-8-sig", "replace").lstrip()
    except OSError:
        return False
    return start.startswith("[") and start[1:].lstrip().startswith("{")


def read_records(path: Path, wanted: Callable[[str], bool]) -> Iterator[Record | Skipped]:
    """Yield the records of a file, or why one is skipped.

    Args:
        wanted: which columns are needed. Parquet reads no others.
    """
    format = format_of(path)
    assert format is not None, path
    try:
        yield from FORMATS[format](path, wanted)
    except UnicodeDecodeError:
        yield "rest of the file is not UTF-8"
    except PermissionError as error:
        yield f"cannot be read ({error.strerror})"
    except (pyarrow.ArrowException, OSError, EOFError, csv.Error, ValueError) as error:
        yield f"cannot be read as {LABELS.get(format, format[1:])} ({' '.join(str(error).split())[:80]})"


def _opened(path: Path) -> BinaryIO:
    """Open a file, and decompress it as its name says."""
    codec = COMPRESSION.get(path.suffix.lower())
    if codec is None:
        return path.open("rb")
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=codec))


def _lines(path: Path, wanted: Callable[[str], bool]) -> Iterator[Record | Skipped]:
    if is_array(path):  # a name that is wrong
        yield from _array(path, wanted)
        return
    with _opened(path) as file:
        encoding = _wide(file)
        lines: Any = file if encoding is None else io.TextIOWrapper(file, encoding=encoding)
        for line in lines:
            if line.strip():
                yield _object(line)


def _object(line: bytes | str) -> Record | Skipped:
    record = None
    for text in (line, line.rstrip().removesuffix(b"," if isinstance(line, bytes) else ",")):  # type: ignore[arg-type]
        try:
            record = json.loads(text)
            break
        except (ValueError, RecursionError):
            continue
    return record if isinstance(record, dict) else "line is not a JSON object"


def _array(path: Path, wanted: Callable[[str], bool]) -> Iterator[Record | Skipped]:
    with _opened(path) as file:
        content = file.read()
    try:
        records = json.loads(content)
    except RecursionError:
        records = None
    except ValueError:
        lines = [line for line in content.splitlines() if line.strip()]
        if len(lines) < 2 or not isinstance(_object(lines[0]), dict):
            raise
        yield from map(_object, lines)  # JSON lines, as the Hub's data sets name them
        return
    if isinstance(records, dict):  # {"data": [...]}: the only list of objects in it
        lists = [value for value in records.values() if isinstance(value, list) and value]
        records = lists[0] if len(lists) == 1 else [records]
    if not isinstance(records, list):
        yield "file is not a JSON array of objects"
        return
    for record in records:
        yield record if isinstance(record, dict) else "element is not a JSON object"


def _table(path: Path, wanted: Callable[[str], bool]) -> Iterator[Record | Skipped]:
    csv.field_size_limit(LONGEST_FIELD)
    with _opened(path) as file:
        text = io.TextIOWrapper(file, encoding=_wide(file) or "utf-8-sig", newline="")
        for record in csv.DictReader(text, delimiter=_delimiter(file), strict=True):
            if None in record:
                yield "row has more fields than the header"
            else:
                yield {name: value for name, value in record.items() if value not in (None, "")}


def _delimiter(file: BinaryIO) -> str:
    """Return what separates the columns: of comma, semicolon and tab, the one that the header has most of."""
    header = file.peek(PEEKED).splitlines()[:1] if isinstance(file, io.BufferedReader) else []
    return max(",;\t", key=lambda mark: sum(line.count(mark.encode()) for line in header))


def _parquet(path: Path, wanted: Callable[[str], bool]) -> Iterator[Record | Skipped]:
    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        columns = [name for name in names if wanted(name)]
        unread = {name: None for name in names if name not in columns}
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
            for place in range(batch.num_rows):
                record = _plain_record(batch.slice(place, 1))
                yield {**unread, **record} if isinstance(record, dict) else record


def _plain_record(row: pyarrow.RecordBatch) -> Record | Skipped:
    """Convert a Parquet row to a dict. Its strings can be invalid UTF-8, and its times out of range."""
    try:
        (record,) = row.to_pylist()
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, OverflowError):
        return "row has a value out of range"
    return dict(record)


def _wide(file: BinaryIO) -> str | None:
    """Return the encoding of a file in UTF-16 or UTF-32, by its mark."""
    start = file.peek(4)[:4] if isinstance(file, io.BufferedReader) else b""
    return next((encoding for mark, encoding in WIDE_MARKS if start.startswith(mark)), None)


FORMATS: Mapping[str, Callable[[Path, Callable[[str], bool]], Iterator[Record | Skipped]]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _array,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}
"""Readers by suffix."""

"""Reads a Hub dataset as rows, one Parquet file after another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
from httpx2 import HTTPError
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from db.files import NewFile
from service.errors import PreconditionError
from service.intake.formats import Skipped
from service.intake.records import Columns, Given, read_file

SCHEME = "hf://"
CONVERTED = "refs/convert/parquet"
"""The branch where the Hub keeps its Parquet conversion of a dataset."""


def read_dataset(name: str, given: Given, token: str | None) -> Iterator[NewFile | Skipped]:
    """Yield the rows of a dataset `owner/name`. Downloads each file to the Hub cache when needed.

    Raises:
        PreconditionError: the Hub does not answer, or the dataset does not exist.
    """
    files, revision = _parquet_files(name, token)
    if not files:
        yield "dataset has no Parquet files"
    for file in files:
        try:
            path = huggingface_hub.hf_hub_download(name, file, repo_type="dataset", revision=revision, token=token)
        except (HfHubHTTPError, LocalEntryNotFoundError, HTTPError, OSError) as error:
            raise _unreachable(name, error) from error
        yield from read_file(Path(path), given, Columns(), name=file, repository=name)


def _parquet_files(name: str, token: str | None) -> tuple[list[str], str | None]:
    """Return a dataset's Parquet files and their revision: its own files, else the Hub's conversion."""
    for revision in (None, CONVERTED):
        try:
            listed = huggingface_hub.list_repo_files(name, repo_type="dataset", revision=revision, token=token)
        except huggingface_hub.errors.RevisionNotFoundError:
            return [], revision
        except (HfHubHTTPError, HFValidationError, HTTPError, OSError) as error:
            raise _unreachable(name, error) from error
        if found := sorted(file for file in listed if file.endswith(".parquet")):
            return found, revision
    return [], CONVERTED


def _unreachable(name: str, error: Exception) -> PreconditionError:
    said = " ".join(str(error).split())[:200]
    return PreconditionError(
        f"the dataset {name} cannot be read from the Hub ({type(error).__name__}: {said}). Check the name "
        "(owner/name), the connection, and HF_TOKEN for a private one"
    )

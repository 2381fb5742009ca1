"""A dataset of the Hub as rows: its Parquet files, one after another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from db.files import NewFile
from service.errors import PreconditionError
from service.intake.records import Given, Skipped, read_parquet

SCHEME = "hf://"
CONVERTED = "refs/convert/parquet"
"""Where the Hub itself keeps a dataset that was uploaded in another form."""


def read_dataset(name: str, given: Given, token: str | None) -> Iterator[NewFile | Skipped]:
    """Rows of a dataset, `owner/name`; each file is fetched into the Hub's cache when its turn comes.

    Raises:
        PreconditionError: the Hub does not answer, or has no such dataset.
    """
    files, revision = _parquet_files(name, token)
    if not files:
        yield "dataset without Parquet files"
    for file in files:
        try:
            path = huggingface_hub.hf_hub_download(name, file, repo_type="dataset", revision=revision, token=token)
        except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
            raise _unreachable(name, error) from error
        yield from read_parquet(Path(path), given, name=file, repository=name)


def _parquet_files(name: str, token: str | None) -> tuple[list[str], str | None]:
    """Parquet files of a dataset and their revision: its own, else those that the Hub made of it."""
    for revision in (None, CONVERTED):
        try:
            listed = huggingface_hub.list_repo_files(name, repo_type="dataset", revision=revision, token=token)
        except huggingface_hub.errors.RevisionNotFoundError:
            return [], revision
        except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
            raise _unreachable(name, error) from error
        if found := sorted(file for file in listed if file.endswith(".parquet")):
            return found, revision
    return [], CONVERTED


def _unreachable(name: str, error: Exception) -> PreconditionError:
    said = " ".join(str(error).split())[:200]
    return PreconditionError(
        f"the dataset {name} cannot be read from the Hub ({type(error).__name__}: {said}); check the name "
        "(owner/name), the connection, and HF_TOKEN for a private one"
    )

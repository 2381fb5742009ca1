"""Reads a Hub dataset as rows, one Parquet file after another."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import httpx2
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from db.files import NewFile
from service.errors import PreconditionError
from service.intake.formats import Skipped
from service.intake.records import Columns, Given, read_file

HUB_ERRORS = (
    HfHubHTTPError,
    OSError,  # no connection, no disk space, offline mode, a file that is not in the cache
    ValueError,  # a malformed name, or an address or proxy that is no URL
    ImportError,  # a SOCKS proxy needs a package
    RuntimeError,  # the download library's own
    *(httpx.HTTPError, httpx.InvalidURL, httpx2.HTTPError, httpx2.InvalidURL),
)
"""What a request to the Hub may raise. Releases of the Hub's library use one HTTP library or the other."""
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
        with _one_message(name):
            path = huggingface_hub.hf_hub_download(name, file, repo_type="dataset", revision=revision, token=token)
        yield from read_file(Path(path), given, Columns(), name=file, repository=name)


def _parquet_files(name: str, token: str | None) -> tuple[list[str], str | None]:
    """Return a dataset's Parquet files and their revision: its own files, else the Hub's conversion."""
    for revision in (None, CONVERTED):
        try:
            with _one_message(name):
                listed = list(
                    huggingface_hub.list_repo_files(name, repo_type="dataset", revision=revision, token=token)
                )
        except RevisionNotFoundError:
            return [], revision
        if found := sorted(file for file in listed if file.endswith(".parquet")):
            return found, revision
    return [], CONVERTED


@contextmanager
def _one_message(name: str) -> Iterator[None]:
    """Turn the Hub library's errors, other than for a missing revision, into one of ours.

    Raises:
        PreconditionError: the request failed.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warning says the same
    try:
        yield
    except RevisionNotFoundError:
        raise
    except HUB_ERRORS as error:
        said = " ".join(str(error).split())[:200]
        raise PreconditionError(
            f"the dataset {name} cannot be read from the Hub ({type(error).__name__}: {said}). Check the name "
            "(owner/name), the connection and its proxy (HTTPS_PROXY, ALL_PROXY), and HF_TOKEN for a private one"
        ) from error

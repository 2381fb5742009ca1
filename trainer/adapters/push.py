"""Uploads a folder to the Hugging Face Hub. (no torch)"""

from __future__ import annotations

from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from trainer.errors import TrainerError, UnusableInput


def push_folder(folder: Path, repository: str, *, token: str, public: bool) -> str:
    """Upload a folder's files in one commit. Returns the commit's address.

    A new repository is private unless `public`. An existing public one is refused unless `public`.

    Raises:
        UnusableInput: the name is not allowed, or the repository is public.
        TrainerError: the Hub refused, or cannot be reached.
    """
    api = HfApi(token=token)
    try:
        created = api.create_repo(repository, private=not public, exist_ok=True)
        if not public and api.model_info(created.repo_id).private is not True:
            raise UnusableInput(f"{created.repo_id} is a public repository. Add --public if everybody may read this")
        commit = api.upload_folder(
            repo_id=created.repo_id,
            folder_path=folder,
            commit_message=f"Upload {folder.name} from the CodeLupe trainer",
        )
    except HFValidationError as error:
        raise UnusableInput(f"--push {repository!r} is not a repository's name (owner/name): {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = "HF_TOKEN needs the right to write there" if status in (401, 403) else "Try again later"
        raise TrainerError(
            f"the Hub answered {status} for {repository}: {_line(error)}. {advice}. {_again(folder, repository)}"
        ) from error
    except (HTTPError, OSError) as error:
        raise TrainerError(f"the Hub cannot be reached ({_line(error)}). {_again(folder, repository)}") from error
    return str(commit.commit_url)


def _again(folder: Path, repository: str) -> str:
    return f"The folder is complete; upload it later with: hf upload {repository} {folder}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

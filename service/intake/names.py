"""Skips files by name: hidden files and key files."""

from __future__ import annotations

from pathlib import PurePosixPath

KEY_FILES = ("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "credentials", "secrets", "htpasswd")
KEY_ENDINGS = (".pem", ".key", ".p12", ".pfx", ".jks", ".keystore", ".kdbx", ".asc", ".gpg")


def refused_name(name: str) -> str | None:
    """Return why a file with this path is skipped, or None."""
    parts = PurePosixPath(name).parts
    if any(part.startswith(".") for part in parts):
        return "dotfile"
    lowered = parts[-1].lower() if parts else ""
    return "key file" if lowered.endswith(KEY_ENDINGS) or lowered.split(".")[0] in KEY_FILES else None

"""Secrets with a format of their own: well-known bare keys, and passwords in URLs. detect-secrets knows others."""

from __future__ import annotations

import re
from collections.abc import Iterator

_WORD = "[A-Za-z0-9_-]"

KEYS: tuple[tuple[str, str, str], ...] = (
    ("AGE_KEY", "AGE-SECRET-KEY-1", "[0-9A-Z]{50,}"),
    ("ANTHROPIC_KEY", "sk-ant-", _WORD + "{20,}"),
    ("ATLASSIAN_TOKEN", "ATATT3", "[A-Za-z0-9_=-]{50,}"),
    ("DATABRICKS_TOKEN", "dapi", "[a-f0-9]{32}(?:-[0-9])?"),
    ("DIGITALOCEAN_TOKEN", "do", "[opr]_v1_[a-f0-9]{64}"),
    ("DOCKER_TOKEN", "dckr_", "[po]at_" + _WORD + "{20,}"),
    ("FIGMA_TOKEN", "figd_", _WORD + "{35,}"),
    ("GITHUB_TOKEN", "github_pat_", "[A-Za-z0-9_]{22,}"),
    (
        "GITLAB_TOKEN",
        "gl",
        r"(?:pat|dt|ft|rt|ptt|agent|oas|soat|ffct|imt|cbt|wt)-" + _WORD + r"{20,}(?:\.[0-9a-z]{2}\.[0-9a-z]{7,9})?",
    ),
    ("GOOGLE_KEY", "AIza", _WORD + "{35}"),
    ("GOOGLE_KEY", "GOCSPX-", _WORD + "{28}"),
    ("GOOGLE_KEY", "ya29.", _WORD + "{20,}"),
    ("GRAFANA_TOKEN", "glsa_", "[A-Za-z0-9]{32}_[0-9a-fA-F]{8}"),
    ("GROQ_KEY", "gsk_", "[A-Za-z0-9]{40,}"),
    ("HUGGING_FACE_TOKEN", "hf_", "[A-Za-z0-9]{30,}"),
    ("HUGGING_FACE_TOKEN", "api_org_", "[A-Za-z0-9]{30,}"),
    ("LINEAR_KEY", "lin_api_", "[A-Za-z0-9]{32,}"),
    ("NEW_RELIC_KEY", "NRAK-", "[A-Z0-9]{27}"),
    ("NOTION_TOKEN", "ntn_", "[A-Za-z0-9]{40,}"),
    ("NPM_TOKEN", "npm_", "[A-Za-z0-9]{36,}"),
    ("NVIDIA_KEY", "nvapi-", _WORD + "{40,}"),
    ("OPENAI_KEY", "sk-", "(?:proj|svcacct|admin|None)-" + _WORD + "{40,}"),
    ("OPENAI_KEY", "sk-", "(?:or-v1-)?[A-Za-z0-9]{32,}"),
    ("PERPLEXITY_KEY", "pplx-", "[A-Za-z0-9]{40,}"),
    ("PLANETSCALE_TOKEN", "pscale_", "(?:pw|tkn|oauth)_[A-Za-z0-9_.=-]{32,}"),
    ("POSTMAN_KEY", "PMAK-", "[a-f0-9]{24}-[a-f0-9]{34}"),
    ("REPLICATE_TOKEN", "r8_", "[A-Za-z0-9]{30,}"),
    ("RUBYGEMS_KEY", "rubygems_", "[a-f0-9]{48}"),
    ("SENTRY_TOKEN", "sntry", "[su]_[A-Za-z0-9_+/=]{40,}"),
    ("SHOPIFY_TOKEN", "shp", "(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),
    ("SLACK_TOKEN", "xox", r"[a-z](?:\.xox[a-z])?-[A-Za-z0-9%-]{10,}"),
    ("SLACK_TOKEN", "xapp-", "[0-9]-[A-Za-z0-9-]{20,}"),
    ("STRIPE_KEY", "k_", "(?:live|test)_[0-9A-Za-z]{16,}"),
    ("STRIPE_KEY", "whsec_", "[A-Za-z0-9+/=]{24,}"),
    ("SUPABASE_TOKEN", "sbp_", "[a-f0-9]{40}"),
    ("VAULT_TOKEN", "hv", r"[sbr]\." + _WORD + "{24,}"),
    ("WANDB_KEY", "wandb_v1_", "[A-Za-z0-9_]{40,}"),
    ("XAI_KEY", "xai-", "[A-Za-z0-9]{40,}"),
)
"""Kind, how the key begins, and a pattern of the rest. A pattern with {n,} takes the whole key, however long."""

_KEYS = [
    (kind, start, re.compile(f"(?<![A-Za-z0-9]){'[rs]' if start == 'k_' else ''}{re.escape(start)}({rest})"))
    for kind, start, rest in KEYS
]

_IN_AUTHORITY = re.compile(r"://[^\s:/?#@\"'`<>]{0,200}:((?:[^\s/?#\"'`<>\\]|(?<=\w)'(?=\w)){1,200})@(?=[\w.\[{%$(-])")
"""Everything up to the last @ of the authority, as a URL is read."""
_BEYOND_AUTHORITY = re.compile(
    r"://[^\s:/?#@\"'`<>]{1,200}:(?!\d{1,5}[/?#])((?:(?!://)[^\s@\"'`<>\\]){1,200})@"
    r"(?=[\w-][\w.-]{0,200}(?::\d{1,5})?(?:[/?\"'`\s]|$))"
)
"""A password with an unescaped / ? or #. A port in front of a path with an @ is none."""
_TEMPLATE = re.compile(
    r"(?:[$#]?\{+[^{}]*\}+|\$\([\w.]+\)|\$+(?:[A-Z_][A-Z0-9_]*|[a-z_][A-Za-z_]*)|%\(\w+\)[a-z]|%[sdrvq]|%\w+%|\[[\w-]+\]"
    r"|\*+|\.{3,}|x{3,}|X{3,}|…)+"
)
"""What stands for a password in a format string, a shell script, a configuration or a manual."""


def key_spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the well-known keys with their kinds. A placeholder such as hf_xxxxxxxx is none."""
    for kind, start, pattern in _KEYS:
        if start in text:
            yield from ((*match.span(), kind) for match in pattern.finditer(text) if _is_mixed(match.group(1)))


def url_password_spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the passwords of URLs. A template such as {password} is none."""
    for pattern in (_IN_AUTHORITY, _BEYOND_AUTHORITY) if "://" in text else ():
        for match in pattern.finditer(text):
            password = match.group(1)
            if not _TEMPLATE.fullmatch(password) and not password.startswith("REDACTED_"):
                yield *match.span(1), "BASIC_AUTH_CREDENTIALS"


def _is_mixed(rest: str) -> bool:
    """Whether the rest of a key has digits or both cases, and not the same few characters again and again."""
    kinds = (any(map(str.isdigit, rest)), any(map(str.islower, rest)), any(map(str.isupper, rest)))
    return sum(kinds) > 1 and len(set(rest)) >= min(8, len(rest) // 2)

"""`codelupe connect EDITOR`: prints an editor's configuration for the served model.

Supports Continue's config.yaml (schema v1), Zed's settings.json, Tabby's config.toml and llama-vscode's settings in VS
Code. Not covered: finding the editor's file and merging with it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from service.errors import UsageError
from service.publish.serving import ALIAS

DEFAULT_URL = "http://127.0.0.1:8094/v1"
"""The gateway's address in docker-compose."""
PLACEHOLDER = "your_vllm_api_key_here"
CONTEXT_TOKENS = 16384
"""vLLM's --max-model-len."""
ANSWER_TOKENS = 4096
COMPLETION_TOKENS = 128
QWEN_FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How an editor reaches the served model."""

    url: str
    """URL of the OpenAI-compatible API, ending in /v1."""
    key: str | None
    """None: the configuration has a placeholder for the key."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")) or not self.url.endswith("/v1"):
            raise UsageError(f"--url: {self.url!r} is not allowed. Use an address like {DEFAULT_URL}")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """An editor's configuration and where it belongs."""

    text: str
    advice: str
    """The file it belongs in, and how to set the key."""


def configuration(editor: str, connection: Connection) -> Configuration:
    """Return the configuration of one of EDITORS.

    Raises:
        UsageError: there is no such editor.
    """
    if editor not in EDITORS:
        raise UsageError(f"unknown editor {editor!r}. Use one of {', '.join(EDITORS)}")
    return EDITORS[editor](connection)


def _fim(prefix: str, suffix: str) -> str:
    """Qwen's fill-in-the-middle prompt with the editor's placeholders."""
    return f"{QWEN_FIM[0]}{prefix}{QWEN_FIM[1]}{suffix}{QWEN_FIM[2]}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _continue(connection: Connection) -> Configuration:
    """One model with all roles. Continue cannot infer the completion prompt from the name `codelupe`."""
    model = {
        "name": "CodeLupe",
        "provider": "vllm",
        "model": ALIAS,
        "apiBase": connection.url,
        "apiKey": connection.key or "${{ secrets.VLLM_API_KEY }}",
        "roles": ["chat", "edit", "apply", "autocomplete"],
        "defaultCompletionOptions": {"contextLength": CONTEXT_TOKENS, "maxTokens": ANSWER_TOKENS},
        "autocompleteOptions": {"maxPromptTokens": 2048},
        "promptTemplates": {"autocomplete": _fim("{{{prefix}}}", "{{{suffix}}}")},
    }
    config = {"name": "CodeLupe", "version": "1.0.0", "schema": "v1", "models": [model]}
    return Configuration(
        text=yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000),
        advice="~/.continue/config.yaml; the key goes into ~/.continue/.env as VLLM_API_KEY=…",
    )


def _zed(connection: Connection) -> Configuration:
    """Chat and edit predictions. Zed reads keys only from its environment or keychain."""
    model = {
        "name": ALIAS,
        "display_name": "CodeLupe",
        "max_tokens": CONTEXT_TOKENS,
        "max_output_tokens": ANSWER_TOKENS,
        "capabilities": {"tools": False, "images": False, "parallel_tool_calls": False, "prompt_cache_key": False},
    }
    settings = {
        "language_models": {
            "openai_compatible": {"codelupe": {"api_url": connection.url, "available_models": [model]}}
        },
        "agent": {"default_model": {"provider": "codelupe", "model": ALIAS}},
        "edit_predictions": {
            "provider": "open_ai_compatible_api",
            "open_ai_compatible_api": {
                "api_url": f"{connection.url}/completions",
                "model": ALIAS,
                "prompt_format": "qwen",
                "max_output_tokens": COMPLETION_TOKENS,
            },
        },
    }
    key = shlex.quote(connection.key or PLACEHOLDER)
    return Configuration(
        text=_json(settings) + "\n",
        advice="Zed's settings.json; start Zed with the key in its environment, twice:\n"
        f"  CODELUPE_API_KEY={key}\n  ZED_OPEN_AI_COMPATIBLE_EDIT_PREDICTION_API_KEY={key}",
    )


def _tabby(connection: Connection) -> Configuration:
    """Uses `vllm/completion`, because vLLM rejects the `suffix` that Tabby's `openai/completion` sends."""
    shared = {"model_name": ALIAS, "api_endpoint": connection.url, "api_key": connection.key or PLACEHOLDER}
    tables = {
        "model.completion.http": {
            "kind": "vllm/completion",
            **shared,
            "prompt_template": _fim("{prefix}", "{suffix}"),
        },
        "model.chat.http": {"kind": "openai/chat", **shared},
    }
    text = "\n".join(
        f"[{table}]\n" + "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())
        for table, values in tables.items()
    )
    return Configuration(text=text, advice="~/.tabby/config.toml of the Tabby server; put the key in place of api_key")


def _toml(text: str) -> str:
    """Quote a TOML basic string. JSON's escapes are the same, except for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _llama_vscode(connection: Connection) -> Configuration:
    """Uses the OpenAI mode for completions. Chat and tools append the version to the address themselves."""
    key = connection.key or PLACEHOLDER
    server = connection.url.removesuffix("/v1")
    settings = {
        "use_openai_endpoint": True,
        "endpoint": connection.url,
        "openai_client_model": ALIAS,
        "openai_prompt_template": _fim("{inputPrefix}{prompt}", "{inputSuffix}"),
        "n_predict": COMPLETION_TOKENS,
        "endpoint_chat": server,
        "endpoint_tools": server,
        "ai_api_version": "v1",
        "ai_model": ALIAS,
        "api_key": key,
        "api_key_chat": key,
        "api_key_tools": key,
        "launch_completion": "",
        "launch_chat": "",
    }
    return Configuration(
        text=_json({f"llama-vscode.{name}": value for name, value in settings.items()}) + "\n",
        advice="VS Code's settings.json (user); put the key in place of the three api_key values",
    )


EDITORS: dict[str, Callable[[Connection], Configuration]] = {
    "continue": _continue,
    "zed": _zed,
    "tabby": _tabby,
    "llama-vscode": _llama_vscode,
}
"""Maps an editor to its configuration."""

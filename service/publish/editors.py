"""`codelupe connect EDITOR`: the editor's configuration for the served model, in the editor's own format.

Continue's config.yaml (schema v1), Zed's settings.json, Tabby's config.toml, llama-vscode's settings in VS Code. Not
covered: where an editor keeps its file on your system, and merging with what is in it.
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
"""Where docker-compose publishes the gateway."""
PLACEHOLDER = "your_vllm_api_key_here"
CONTEXT_TOKENS = 16384
"""What vLLM is started with (--max-model-len)."""
ANSWER_TOKENS = 4096
COMPLETION_TOKENS = 128
QWEN_FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What an editor has to know."""

    url: str
    """Of the OpenAI-compatible API, ending in /v1."""
    key: str | None
    """None: the configuration shows where the key goes instead."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")) or not self.url.endswith("/v1"):
            raise UsageError(f"--url: {self.url!r} is not allowed; an address like {DEFAULT_URL} is")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What to put where."""

    text: str
    advice: str
    """Which file it belongs in, and how the key gets there."""


def configuration(editor: str, connection: Connection) -> Configuration:
    """The configuration of one of EDITORS.

    Raises:
        UsageError: there is no such editor.
    """
    if editor not in EDITORS:
        raise UsageError(f"{editor!r} is not known; {', '.join(EDITORS)} are")
    return EDITORS[editor](connection)


def _fim(prefix: str, suffix: str) -> str:
    """Qwen's fill-in-the-middle prompt, with an editor's own place holders."""
    return f"{QWEN_FIM[0]}{prefix}{QWEN_FIM[1]}{suffix}{QWEN_FIM[2]}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _continue(connection: Connection) -> Configuration:
    """One model with every role, and the prompt of its completions: the name `codelupe` tells Continue nothing."""
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
    """Chat and edit predictions. Zed takes keys from its environment or its keychain, never from this file."""
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
    """`vllm/completion`, because Tabby's `openai/completion` sends a `suffix`, which vLLM refuses."""
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
    """A basic string: JSON's escapes are TOML's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _llama_vscode(connection: Connection) -> Configuration:
    """Its OpenAI mode for completions; chat and tools append the version to an address without one."""
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
"""Editor → its configuration."""

"""The printed configurations parse. They name the model, the address and the place of the key."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SECRET = 'a"real"\\key:'
URL = "http://127.0.0.1:8094/v1"
PARSERS: dict[str, Callable[[str], Any]] = {
    "continue": yaml.safe_load, "zed": json.loads, "tabby": tomllib.loads, "llama-vscode": json.loads,
}  # fmt: skip


def connect(tmp_path: Path, *arguments: str, key: str = SECRET) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from service.cli.main import main; main()", "connect", *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "VLLM_API_KEY": key, "PYTHONUTF8": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def printed(tmp_path: Path, editor: str, *arguments: str) -> tuple[Any, str]:
    """Return the parsed configuration and the whole output."""
    done = connect(tmp_path, editor, *arguments)
    assert done.returncode == 0, done.stderr
    return PARSERS[editor](done.stdout), done.stdout + done.stderr


@pytest.mark.parametrize(
    "editor", [pytest.param(name, marks=[] if name == "zed" else [pytest.mark.long]) for name in PARSERS]
)
def test_the_key_is_shown_only_when_asked_for(tmp_path: Path, editor: str):
    hidden, _ = printed(tmp_path, editor)
    assert "real" not in json.dumps(hidden) + printed(tmp_path, editor)[1]
    shown, written = printed(tmp_path, editor, "--show-key")
    assert SECRET in (written if editor == "zed" else _strings(shown))


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in _strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in _strings(part)]
    return [str(value)]


def test_continue_is_configured(tmp_path: Path):
    config, _ = printed(tmp_path, "continue")
    assert {"name", "version", "schema"} <= set(config) and config["schema"] == "v1"
    (model,) = config["models"]
    assert (model["provider"], model["model"], model["apiBase"]) == ("vllm", "codelupe:latest", URL)
    assert model["apiKey"] == "${{ secrets.VLLM_API_KEY }}"
    assert {"chat", "autocomplete"} <= set(model["roles"])
    template = model["promptTemplates"]["autocomplete"]
    assert template == "<|fim_prefix|>{{{prefix}}}<|fim_suffix|>{{{suffix}}}<|fim_middle|>"


def test_zed_is_configured(tmp_path: Path):
    settings, written = printed(tmp_path, "zed", "--url", "https://code.example/v1/")
    provider = settings["language_models"]["openai_compatible"]["codelupe"]
    assert provider["api_url"] == "https://code.example/v1"
    assert provider["available_models"][0]["name"] == "codelupe:latest"
    assert provider["available_models"][0]["max_tokens"] > provider["available_models"][0]["max_output_tokens"]
    assert settings["edit_predictions"]["provider"] == "open_ai_compatible_api"
    prediction = settings["edit_predictions"]["open_ai_compatible_api"]
    assert prediction["api_url"] == "https://code.example/v1/completions"  # Zed needs the complete address
    assert (prediction["model"], prediction["prompt_format"]) == ("codelupe:latest", "qwen")
    assert "CODELUPE_API_KEY=" in written and "ZED_OPEN_AI_COMPATIBLE_EDIT_PREDICTION_API_KEY=" in written


def test_tabby_is_configured(tmp_path: Path):
    models = printed(tmp_path, "tabby")[0]["model"]
    completion, chat = models["completion"]["http"], models["chat"]["http"]
    assert (completion["kind"], chat["kind"]) == ("vllm/completion", "openai/chat")
    assert completion["prompt_template"] == "<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"
    for model in (completion, chat):
        assert (model["model_name"], model["api_endpoint"]) == ("codelupe:latest", URL)
        assert model["api_key"] == "your_vllm_api_key_here"


def test_llama_vscode_is_configured(tmp_path: Path):
    settings, _ = printed(tmp_path, "llama-vscode")
    assert all(name.startswith("llama-vscode.") for name in settings)
    of = {name.removeprefix("llama-vscode."): value for name, value in settings.items()}
    assert of["use_openai_endpoint"] is True and of["endpoint"] == URL
    assert of["openai_client_model"] == of["ai_model"] == "codelupe:latest"
    assert (
        of["openai_prompt_template"] == "<|fim_prefix|>{inputPrefix}{prompt}<|fim_suffix|>{inputSuffix}<|fim_middle|>"
    )
    assert f"{of['endpoint_chat']}/{of['ai_api_version']}" == URL == f"{of['endpoint_tools']}/{of['ai_api_version']}"


@pytest.mark.parametrize("arguments", [("emacs",), ("zed", "--url", "127.0.0.1:8094/v1"), ("zed", "--url", "http://x")])
def test_an_unknown_editor_or_a_bad_url_is_a_usage_error(tmp_path: Path, arguments: tuple[str, ...]):
    done = connect(tmp_path, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert "continue, zed, tabby, llama-vscode" in done.stderr or "127.0.0.1:8094/v1" in done.stderr


def test_an_unset_key_cannot_be_shown(tmp_path: Path):
    done = connect(tmp_path, "tabby", "--show-key", key="")
    assert done.returncode == 3 and "no key to show. Set VLLM_API_KEY" in done.stderr

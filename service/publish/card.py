"""Writes the model card of a published adapter: README.md in the form of the Hugging Face Hub.

The card depends on the run's files alone, so that a publication that is repeated writes the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from service.gate.interval import Interval
from service.gate.slices import Slice, slices
from service.publish.markdown import block, plain, table
from service.publish.trained import TrainedOn, from_record
from trainer.recipe import TINY_BASE, Recipe
from trainer.recipe_file import recipe_dict
from trainer.records import SampleEvaluation

CARD = "README.md"
LOADING = "## How to load it"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SHOWN_SLICES = 20

LOAD_ADAPTER = """\
import json
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
config = json.load(open(f"{folder}/adapter_config.json"))
tokenizer = AutoTokenizer.from_pretrained(folder)
base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"], revision=config["revision"])
model = PeftModel.from_pretrained(base, folder)
"""
LOAD_FOLDER = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
"""
LOAD_MERGED = {"hf": block(LOAD_FOLDER, "python"), "gguf": block("llama-cli -m *.gguf", "")}
LIBRARY = {"hf": "transformers", "gguf": "gguf"}


def model_card(lineage: Mapping[str, Any], report: Mapping[str, Any], judged: Sequence[SampleEvaluation]) -> str:
    """Return the card of a version.

    Args:
        lineage: lineage.json
        report: the run's report, with its verdict
        judged: the run's held-out samples and what the models gave for them
    """
    name = f"{lineage['stream']}, version {lineage['version']}"
    sections = [
        _front_matter(lineage),
        f"# {plain(name)}",
        _summary(lineage),
        "## Base\n\n" + _base(lineage["base"]),
        "## Training data\n\n" + _data(lineage),
        "## Recipe\n\n" + _recipe(str(lineage["recipe"]), report),
        "## Evaluation\n\n" + _evaluation(report, judged),
        "## Verdict\n\n" + _verdict(report.get("verdict") or {}),
        "## Lineage\n\n" + _lineage(lineage),
        f"{LOADING}\n\n" + block(LOAD_ADAPTER, "python"),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def merged_card(card: str, *, form: str = "hf") -> str:
    """Return the card of a model into which the adapter was merged, from the adapter's card.

    Args:
        form: a key of LOAD_MERGED
    """
    head, text = _split(card)
    head |= {"library_name": LIBRARY[form]}
    if "base_model" in head:
        head["base_model_relation"] = "finetune"
    head["tags"] = [tag for tag in head.get("tags", []) if tag != "lora"] + ["merged"]
    body = text.partition(f"\n{LOADING}\n")[0].rstrip()
    note = "The adapter that this card describes is merged into the weights of this folder, in 16 bits."
    return f"{_yaml(head)}\n\n{body}\n\n{LOADING}\n\n{note}\n\n{LOAD_MERGED[form]}\n"


# --- the parts ------------------------------------------------------------------------------------------------


def _front_matter(lineage: Mapping[str, Any]) -> str:
    model = str(lineage["base"].get("model"))
    head: dict[str, Any] = {}
    if model != TINY_BASE and HUB_NAME.fullmatch(model):  # the Hub knows no folders
        head |= {"base_model": model, "base_model_relation": "adapter"}
    languages = sorted({one.language for one in _trained(lineage, "trained")})
    head |= {"library_name": "peft", "pipeline_tag": "text-generation", "language": ["code"]}
    head["tags"] = ["lora", "codelupe", *(tag for language in languages if (tag := _tag(language)))]
    return _yaml(head)


def _summary(lineage: Mapping[str, Any]) -> str:
    return (
        "A LoRA adapter that the CodeLupe trainer made and published. It is the state of a stream of adapters: "
        f"each version continues from the one before. Stream: {plain(lineage['stream'])}. "
        f"Version: {lineage['version']}. The card was written when the version was published."
    )


def _base(base: Mapping[str, Any]) -> str:
    return f"Trained on {plain(base.get('model'))} at revision {plain(base.get('revision') or 'unknown')}"


def _data(lineage: Mapping[str, Any]) -> str:
    own = _trained(lineage, "trained")
    parts = ["Rows of this version:", _counts(own)]
    replayed = lineage.get("trained_again") or {}
    if replayed.get("rows"):
        parts.append(f"Rows of earlier runs, trained again: {replayed['rows']} ({replayed['tokens']} tokens).")
    in_all = lineage.get("trained_in_all")
    if lineage.get("parent_version") is not None:
        if in_all is None:
            parts.append("Rows of earlier versions are not counted here: the parent has no counts.")
        else:
            parts += ["Rows of this and all earlier versions that it continues:", _counts([*map(from_record, in_all)])]
    parts.append(
        "Languages and licences are those that the source table states for each row. Tokens are counted once for each "
        "epoch up to the published step. This list does not give the adapter a licence."
    )
    return "\n\n".join(parts)


def _counts(found: Sequence[TrainedOn]) -> str:
    rows = [[one.language, one.license or "unknown", one.rows, one.tokens] for one in found]
    total = ["all", "", sum(one.rows for one in found), sum(one.tokens for one in found)]
    return table(["language", "licence", "rows", "tokens"], [*rows, total])


def _recipe(text: str, report: Mapping[str, Any]) -> str:
    """The main values, and all that differ from the defaults."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        data = None
    data = data if isinstance(data, dict) else {}
    lora, training = data.get("lora") or {}, data.get("training") or {}
    fitted, steps = report.get("train") or {}, report.get("steps") or {}
    facts = [
        ["rank", lora.get("rank")], ["alpha", lora.get("alpha")], ["learning rate", training.get("learning_rate")],
        ["trained tokens", fitted.get("tokens_published")], ["published step", steps.get("result", steps.get("best"))],
        ["steps", steps.get("total")], ["device", report.get("device")],
    ]  # fmt: skip
    shown = table(["", ""], [fact for fact in facts if fact[1] is not None])
    differing = yaml.safe_dump(_differing(data), sort_keys=False, allow_unicode=True)
    return f"{shown}\n\nValues that differ from the trainer's defaults:\n\n{block(differing, 'yaml')}"


def _differing(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's entries that a recipe without them would not have. An earlier version's may be unknown."""
    defaults = recipe_dict(Recipe(name="", stream=""))
    found: dict[str, Any] = {}
    for key, value in data.items():
        usual = defaults.get(key)
        if isinstance(value, dict) and isinstance(usual, dict):
            section = {name: one for name, one in value.items() if name not in usual or usual[name] != one}
            if section:
                found[str(key)] = section
        elif value != usual:
            found[str(key)] = value
    return found


def _evaluation(report: Mapping[str, Any], judged: Sequence[SampleEvaluation]) -> str:
    if not judged:
        rows = [[name, *_score(report, name)] for name in ("anchor", "current", "candidate")]
        return table(["model", "loss", "perplexity", "token accuracy"], rows)
    divided = slices(judged)
    shown = [*divided["all"], *divided["language"][:SHOWN_SLICES]]
    text = (
        "Loss in nats per supervised token on held-out files that were never trained on and did not choose the "
        "published step. Differences are to this version: below zero means that it is better. Intervals hold with "
        "95 % and have the file as their unit.\n\n"
    )
    columns = ["files", "count", "base", "before", "this version", "difference to base", "difference to before"]
    return text + table(columns, [_slice(number, one) for number, one in enumerate(shown)])


def _slice(number: int, one: Slice) -> list[object]:
    losses = [f"{one.models[name].loss:.4f}" for name in ("anchor", "current", "candidate")]
    return ["all" if number == 0 else one.name, one.files, *losses,
            *(_interval(one.differences.get(name)) for name in ("anchor", "current"))]  # fmt: skip


def _interval(found: Interval | None) -> str:
    return f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})" if found else "too few files"


def _score(report: Mapping[str, Any], name: str) -> Iterator[str | None]:
    found = (report.get("evaluation") or {}).get(name) or {}
    for key in ("loss", "perplexity", "token_accuracy"):
        yield f"{found[key]:.4f}" if isinstance(found.get(key), float) else None


def _verdict(verdict: Mapping[str, Any]) -> str:
    rules = verdict.get("rules") or []
    if not rules:
        return "No rule was noted."
    intervals = [
        f"- {plain(name)} files: {_interval(Interval(**found))}, {100 * found['level']:g} % interval, "
        f"{found['files']} files"
        for name, found in (verdict.get("intervals") or {}).items()
    ]
    found = [[rule.get("rule"), rule.get("outcome"), rule.get("text")] for rule in rules]
    told = f"Decision: {plain(verdict.get('decision'))}.\n\n{table(['rule', 'outcome', 'what was found'], found)}"
    noted = "Difference to the version before, as the rules saw it:\n\n" + "\n".join(intervals)
    return f"{told}\n\n{noted}" if intervals else told


def _lineage(lineage: Mapping[str, Any]) -> str:
    parent = lineage.get("parent_version")
    rows = [
        ["stream", lineage["stream"]],
        ["version and run", lineage["version"]],
        ["parent version", "none: the base" if parent is None else parent],
        ["earlier runs without a verdict that it continues", ", ".join(map(str, lineage.get("trunk") or [])) or "none"],
        ["seed", lineage["seed"]],
        ["rows claimed", len(lineage["rows"])],
    ]
    return table(["", ""], rows) + "\n\nlineage.json has the hash of each row, and the whole recipe."


# --- front matter ---------------------------------------------------------------------------------------------


def _trained(lineage: Mapping[str, Any], key: str) -> list[TrainedOn]:
    return [from_record(record) for record in lineage.get(key) or []]


def _tag(language: str) -> str:
    """Return a tag that the Hub accepts, or an empty text."""
    return re.sub(r"[^a-z0-9+#.-]+", "-", language.lower()).strip("-.")[:40]


def _yaml(head: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True)}---"


def _split(card: str) -> tuple[dict[str, Any], str]:
    """Split a card of `model_card` into its front matter and its text."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if found is None:
        return {}, card
    head = yaml.safe_load(found[1])
    return (head if isinstance(head, dict) else {}), card[found.end() :].strip()

"""What to train and how: the typed sections of a recipe, with the limits of each value. (no torch)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

TINY_BASE = "tiny-qwen2"
"""Short name of the base model that ships with the project."""


def number(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """A field whose value lies between `low` and `high`, both allowed."""
    return field(default=default, metadata={"low": low, "high": high})


def choice(default: str, *others: str) -> Any:
    """A field whose value is one of a few short names."""
    return field(default=default, metadata={"choices": (default, *others)})


def names() -> Any:
    """A list of texts, which may be empty."""
    return field(default=(), metadata={"may_be_empty": True})


@dataclass(frozen=True, kw_only=True)
class Base:
    """The frozen model under the adapter."""

    model: str = "Qwen/Qwen2.5-Coder-14B-Instruct"
    """A Hub name, a folder, or `tiny-qwen2`."""
    revision: str | None = None
    """Commit of the Hub repository; resolved at the stream's first run and kept from then on."""
    quantization: str = choice("nf4", "none")
    double_quantization: bool = True
    compute_dtype: str = choice("auto", "bfloat16", "float32")
    """`auto` is bfloat16 where the device has it natively, else float32."""
    attention: str = choice("auto", "sdpa", "flash_attention_2")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The adapter's shape."""

    rank: int = number(256, 1, 4096)
    alpha: int = number(512, 1, 65536)
    dropout: float = number(0.05, 0.0, 0.9)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of linear layers; each must occur in the loaded architecture."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """From rows to samples, and what is kept apart."""

    builders: Mapping[str, float] = field(default_factory=lambda: {"instruction": 1.0})
    """Sample builder by short name, with its weight: the share of rows (of repositories, for `repo`) it gets."""
    max_length: int = number(4096, 32, 1 << 20)
    """Tokens of the longest sample; a longer one is split, never truncated."""
    context_fraction_low: float = number(0.30, 0.01, 0.95)
    context_fraction_high: float = number(0.40, 0.01, 0.95)
    """Share of a sample's lines that the prompt shows: drawn evenly between the two."""
    min_context_lines: int = number(5, 1, 1000)
    window_tokens: int | None = number(None, 32, 1 << 20)
    """Tokens of the longest window of a document (chunks, items, repo); None: max_length."""
    window_overlap: int = number(0, 0, 1 << 19)
    """A window begins with about so many tokens of the one before, without loss."""
    metadata: bool = False
    """Whether a block of what the row's metadata knows stands before the prompt (instruction, chunks)."""
    metadata_off_last_fraction: float = number(0.0, 0.0, 1.0)
    """Share of the steps, the last ones, that see the same samples without that block."""
    rename_fraction: float = number(0.0, 0.0, 1.0)
    """Share of the training rows whose local variables get other names."""
    largest_unparsed_share: float = number(0.25, 0.0, 1.0)
    """Largest share of a text's bytes that its language's grammar may not understand; 1 takes every text."""
    split: str = choice("file", "repository")
    """What the held-out hash is taken of: repository and path, or the repository alone."""
    held_out_fraction: float = number(0.05, 0.0, 0.5)
    min_held_out: int = number(8, 0, 10000)
    """With fewer held-out rows than this, whole files more are taken, by the same hash."""
    max_eval_tokens: int = number(200_000, 1)
    """An evaluation measures at most this many tokens of held-out samples (at least one sample)."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The fit."""

    seed: int = number(42, 0, 2**31 - 1)
    num_epochs: int = number(1, 1, 1000)
    batch_size: int = number(4, 1, 65536)
    """Samples in one forward pass of one process, at their longest: shorter ones are packed into as many tokens."""
    gradient_accumulation_steps: int = number(4, 1, 65536)
    learning_rate: float = number(2e-5, 1e-9, 1.0)
    schedule: str = choice("linear", "constant", "cosine")
    warmup_fraction: float = number(0.03, 0.0, 1.0)
    """Share of the steps; at least one step where it is above 0."""
    optimizer: str = choice("adamw_8bit", "adamw")
    adapter_dtype: str = choice("float32", "bfloat16")
    """`bfloat16` halves adapter and gradients; its steps are rounded at random. With adamw_8bit alone."""
    weight_decay: float = number(0.01, 0.0, 10.0)
    max_grad_norm: float = number(1.0, 0.0)
    """Gradients are clipped to this norm; 0 leaves them."""
    checkpointing: str = choice("auto", "none", "selective", "full")
    """What of a layer is made again in the backward pass. `auto`: on a GPU the fastest that fits, on a CPU none."""
    offload_checkpoints: str = choice("auto", "always", "never")
    """Whether what checkpoints keep waits in host memory. `auto`: on a GPU where nothing faster fits."""
    label_smoothing: float = number(0.0, 0.0, 0.9)
    """Share of each target that is spread over all words."""
    dataloader_workers: int = number(8, 0, 256)
    pin_memory: bool = True
    tf32: bool = True


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When the held-out loss is measured, and when it ends the run."""

    interval_fraction: float = number(0.1, 0.0001, 1.0)
    """Evaluate every this share of the run's steps (at least every step apart)."""
    patience: int = number(3, 1, 10000)
    threshold: float = number(0.01, 0.0)
    """Nats by which the loss must fall to count as better for early stopping."""
    batch_size: int = number(4, 1, 65536)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """When a candidate becomes current."""

    tolerance: float = number(0.0, 0.0)
    """Nats by which the candidate's held-out loss may exceed current's."""


@dataclass(frozen=True, kw_only=True)
class Hygiene:
    """What may be trained on: a row is refused for each of these with a reason of its own (docs/hygiene.md)."""

    duplicates: str = choice("near", "exact", "none")
    """What counts as a duplicate of a row that is trained, claimed or held out. `exact`: the same but for blanks."""
    near_duplicate_jaccard: float = number(0.7, 0.5, 1.0)
    """Share of common 5-grams of tokens from which two files are near duplicates (estimated by MinHash)."""
    longest_line_chars: int = number(1000, 1)
    mean_line_chars: int = number(100, 1)
    """Most characters of a line on average, blank ones left out."""
    least_alphanumeric_share: float = number(0.25, 0.0, 1.0)
    """Least share of letters and digits among a text's characters, ends of lines and blank lines left out."""
    largest_encoded_share: float = number(0.5, 0.0, 1.0)
    """Largest share of a text that may be base64, bytes in hex or escapes, in runs of 64 characters or more."""
    longest_encoded_chars: int = number(1024, 64)
    """Longest such run."""
    generated: str = choice("refuse", "allow")
    """Files that say in their first ten lines that a program wrote them."""
    max_rows_per_repository: int | None = number(5000, 1)
    max_rows_per_author: int | None = number(5000, 1)
    """Rows of one repository, and of one author (metadata's `author`), in a run; more wait for a later one."""
    benchmarks: tuple[str, ...] = names()
    """JSONL files of evaluations, in HumanEval's or MBPP's form, whose tasks must not be trained on."""
    benchmark_gram_words: int = number(10, 5, 100)
    """Words in a row, of a task's own, that give it away."""
    secrets: str = choice("replace", "keep")
    """Whether keys, tokens and passwords give way to placeholders in what is trained and measured on."""
    licenses: tuple[str, ...] = names()
    """SPDX identifiers that a row's license may be; an empty list allows every one."""
    unknown_license: str = choice("refuse", "allow")
    """What becomes of a row without a license where `licenses` names some."""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where a run's curves go besides the service."""

    wandb_project: str = "codelupe-qwen-training"
    tensorboard: bool = True
    sample_predictions: int = number(3, 0, 1000)
    """Held-out prompts that the candidate answers at the end, for people to read; 0 turns them off."""


@dataclass(frozen=True, kw_only=True)
class ServiceDefaults:
    """Defaults that a recipe sets for the service's own settings; None leaves the service's."""

    min_new_files: int | None = number(None, 1)
    max_dataset_size: int | None = number(None, 1)
    check_interval: float | None = number(None, 0.1)
    sweep_interval: float | None = number(None, 0.1)
    quality_threshold: float | None = number(None)
    min_content_chars: int | None = number(None, 1)
    max_content_chars: int | None = number(None, 1)
    demo_corpus: bool = False
    """Fill an empty table with the running interpreter's standard library."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a run learns, apart from its rows and its parent."""

    name: str
    stream: str
    """Name of the lineage of adapters; bound to a source, a base@revision and a LoRA shape."""
    base: Base = field(default_factory=Base)
    lora: Lora = field(default_factory=Lora)
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    gate: Gate = field(default_factory=Gate)
    hygiene: Hygiene = field(default_factory=Hygiene)
    tracking: Tracking = field(default_factory=Tracking)
    service: ServiceDefaults = field(default_factory=ServiceDefaults)


def pinned(recipe: Recipe, *, model: str, revision: str) -> Recipe:
    """The recipe with its base pinned to what was resolved."""
    return replace(recipe, base=replace(recipe.base, model=model, revision=revision))

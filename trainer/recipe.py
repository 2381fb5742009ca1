"""What to train and how: the typed sections of a recipe, with the limits of each value. (no torch)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from trainer.recipe_cluster import Cluster
from trainer.recipe_experiment import Experiment
from trainer.recipe_reward import Reward
from trainer.recipe_tracking import Tracking
from trainer.recipe_values import choice, names, number

TINY_BASE = "tiny-qwen2"
"""Short name of the base model shipped with the project."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """The frozen model under the adapter."""

    model: str = "Qwen/Qwen2.5-Coder-14B-Instruct"
    """Hub name, folder, or `tiny-qwen2`."""
    revision: str | None = None
    """Commit of the Hub repository. Resolved at the stream's first run, and then fixed."""
    quantization: str = choice("nf4", "none")
    double_quantization: bool = True
    compute_dtype: str = choice("auto", "bfloat16", "float32")
    """`auto` is bfloat16 if the device supports it natively, else float32."""
    attention: str = choice("auto", "sdpa", "flash_attention_2")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The adapter's shape."""

    rank: int = number(256, 1, 4096)
    alpha: int = number(512, 1, 65536)
    dropout: float = number(0.05, 0.0, 0.9)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of linear layers. Each must exist in the model."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """How rows become samples, and which rows are held out."""

    builders: Mapping[str, float] = field(default_factory=lambda: {"instruction": 1.0})
    """Sample builders with weights: the share of rows (for `repo`: of repositories) that each gets."""
    turns: str = choice("chat", "plain")
    """What a conversation becomes. `chat`: the base's chat template. `plain`: a document, for bases without one."""
    max_length: int = number(4096, 32, 1 << 20)
    """Maximum tokens of a sample. Longer ones are split, never truncated."""
    context_fraction_low: float = number(0.30, 0.01, 0.95)
    context_fraction_high: float = number(0.40, 0.01, 0.95)
    """Share of a sample's lines in the prompt, drawn uniformly between the two values."""
    min_context_lines: int = number(5, 1, 1000)
    window_tokens: int | None = number(None, 32, 1 << 20)
    """Maximum tokens of a document's window (chunks, items, repo). None: max_length."""
    window_overlap: int = number(0, 0, 1 << 19)
    """Approximate number of tokens that a window repeats from the previous one, without loss."""
    metadata: bool = False
    """Whether to put a block of facts from the row's metadata before the prompt (instruction, chunks, chat)."""
    metadata_off_last_fraction: float = number(0.0, 0.0, 1.0)
    """Share of the last steps that train without this block."""
    rename_fraction: float = number(0.0, 0.0, 1.0)
    """Share of the training rows with renamed local variables."""
    largest_unparsed_share: float = number(0.25, 0.0, 1.0)
    """Maximum share of a text's bytes with syntax errors. 1 accepts every text."""
    split: str = choice("file", "repository")
    """Input of the held-out hash: repository and path, or only the repository."""
    held_out_fraction: float = number(0.05, 0.0, 0.5)
    min_held_out: int = number(8, 0, 10000)
    """With fewer new held-out rows in a run, further whole files are held out, by the same hash."""
    replay_fraction: float = number(0.25, 0.0, 0.9)
    """Share of a run's training text that comes from earlier published runs (docs/continual.md). 0 replays nothing."""
    max_eval_tokens: int = number(32_000, 1)
    """Maximum tokens of held-out samples that judge the candidate, once for each run (but at least one sample)."""
    max_stopping_tokens: int = number(6_000, 1)
    """Maximum tokens of held-out samples that decide when training stops, measured at each evaluation."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The fit."""

    seed: int = number(42, 0, 2**31 - 1)
    num_epochs: int = number(1, 1, 1000)
    max_steps: int | None = number(None, 1)
    """Training ends after this many steps, and the schedule spans them. None, or more than the epochs have: they
    decide."""
    order: str = choice("shuffled", "simple_first")
    """`simple_first`: in the first epoch, samples come from simple to complex. Later epochs are shuffled."""
    batch_size: int = number(4, 1, 65536)
    """Samples of max_length per forward pass and process. Shorter samples are packed into as many tokens."""
    packing: bool = True
    """false: a forward pass takes at most batch_size samples, however short. The gradient is the same."""
    gradient_accumulation_steps: int = number(4, 1, 65536)
    learning_rate: float = number(2e-5, 1e-9, 1.0)
    """The highest rate."""
    min_learning_rate: float = number(0.0, 0.0, 1.0)
    """Where a decay ends, and where range_test starts."""
    schedule: str = choice("linear", "constant", "cosine", "cosine_with_restarts", "range_test")
    """`range_test` raises the rate exponentially, without a warm-up, to find a good one (docs/settings.md)."""
    restarts: int = number(1, 1, 10000)
    """Number of cosine periods of equal length (cosine_with_restarts)."""
    warmup_fraction: float = number(0.03, 0.0, 1.0)
    """Share of the steps. At least one step if it is above 0."""
    optimizer: str = choice("adamw_8bit", "adamw", "adamw_fused", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd")
    """`adamw_8bit` is paged on a GPU: its state moves to the host when the card is full."""
    beta1: float = number(0.9, 0.0, 0.9999)
    """Of AdamW's first moment. With sgd the momentum."""
    beta2: float = number(0.999, 0.0, 0.999999)
    """Of AdamW's second moment."""
    epsilon: float = number(1e-8, 1e-16, 1.0)
    """Added to the root of AdamW's second moment."""
    adapter_dtype: str = choice("float32", "bfloat16")
    """`bfloat16` halves adapter and gradients, and uses stochastic rounding. Requires adamw_8bit."""
    weight_decay: float = number(0.01, 0.0, 10.0)
    max_grad_norm: float = number(1.0, 0.0)
    """Gradients are clipped to this norm. 0 disables clipping."""
    checkpointing: str = choice("auto", "none", "selective", "full")
    """What a layer recomputes in the backward pass. `auto`: the fastest that fits on a GPU, none on a CPU."""
    offload_checkpoints: str = choice("auto", "always", "never")
    """Whether to offload checkpoints to host memory. `auto`: on a GPU, if nothing faster fits."""
    label_smoothing: float = number(0.0, 0.0, 0.9)
    """Share of each target that is spread over the vocabulary."""
    checkpoint_steps: int | None = number(None, 1)
    """Save a checkpoint every so many steps too. None: only when the held-out loss is measured."""
    keep_checkpoints: int = number(1, 1, 10000)
    """Number of newest checkpoints to keep, besides the best one."""
    load_best: bool = True
    """Whether the weights with the lowest held-out loss are the result. false: the last ones."""
    compile: bool = False
    """Whether to compile the decoder layers with torch.compile. Needs a C++ compiler (docs/memory.md)."""
    dataloader_workers: int = number(8, 0, 256)
    pin_memory: bool = True
    tf32: bool = True


@dataclass(frozen=True, kw_only=True)
class Distributed(Cluster):
    """How many GPUs the recipe is made for, and who starts their processes (docs/scaling.md).

    An optimizer step takes batch_size × gradient_accumulation_steps × processes / sequence samples, however many
    processes train. With fewer of them, each accumulates more.
    """

    launcher: str = choice("process", "torchrun", "ray")
    """`process`: one process trains. `torchrun`: one process for each GPU of this machine, each with torchrun's
    variables. `ray`: one for each GPU of a Ray cluster. Whoever starts a run with torchrun by hand needs none."""
    processes: int | Literal["auto"] = number("auto", 1, 4096, word="auto")
    """Number of GPUs, with one process each. `auto`: those of this machine or cluster, and a step takes batch_size ×
    gradient_accumulation_steps samples, so that the result does not depend on their number."""
    strategy: str = choice("auto", "ddp", "fsdp2", "zero2", "zero3")
    """What each process holds only a share of. ddp: nothing. fsdp2: weights, gradients and optimizer. With DeepSpeed:
    zero2 (gradients and optimizer), zero3 (also the weights). `auto` is trained as ddp, and planned as the faster of
    ddp and fsdp2 that fits."""

    sequence: int = number(1, 1, 4096)
    """Number of processes that share each pack: each has its part of the tokens, and of the activations. It divides
    the processes and the base's attention heads."""

    @property
    def cards(self) -> int:
        """Number of GPUs that the size of a step counts. `auto` counts as one."""
        return 1 if self.processes == "auto" else self.processes

    def shared_by(self, processes: int) -> int:
        """Return how many of so many processes share a pack. One alone shares none."""
        return 1 if processes == 1 else self.sequence


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Size of the corpus that the recipe is made for, from which `plan` computes steps and hours."""

    samples: int | None = number(None, 1)
    """Number of samples, with those held out. With phases: of each phase."""
    tokens: int | None = number(None, 1)
    """Number of their tokens."""


@dataclass(frozen=True, kw_only=True)
class Moe:
    """A base with experts (docs/experts.md). For a base without experts, these values have no effect."""

    auxiliary_loss_weight: float = number(0.001, 0.0, 100.0)
    """Weight of the loss that balances the experts. 0 turns it off."""
    freeze_router: bool = True
    """Whether the routers stay as they are. `false` trains them whole, beside the adapter."""
    log_experts: bool = True
    """Whether to count the tokens of each expert: events, curves, report and alarm."""
    collapse_share: float = number(0.75, 0.01, 1.0)
    """Alarm if one expert of a layer gets more than this share of the tokens. Balanced: top_k / experts. 1: never."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When to measure the held-out loss, and when to stop early."""

    interval_fraction: float = number(0.1, 0.0001, 1.0)
    """Interval between evaluations as a share of the run's steps (at least one step)."""
    interval_steps: int | None = number(None, 1)
    """The same in steps. None: interval_fraction decides."""
    patience: int = number(3, 1, 10000)
    threshold: float = number(0.01, 0.0)
    """Minimum improvement of the loss in nats, for early stopping."""
    batch_size: int = number(4, 1, 65536)
    suites: tuple[str, ...] = names()
    """JSONL benchmark files in HumanEval's or MBPP's format. The candidate and the current adapter solve their tasks,
    and the sandbox executes the answers. An empty list executes nothing."""
    suite_tasks: int | None = number(None, 1)
    """Only the first tasks of each suite. None: all."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """When to promote a candidate (docs/gate.md)."""

    evidence: str = choice("interval", "point")
    """`interval`: gains and losses must be certain. `point`: the losses decide as they are, however few the files."""
    confidence: float = number(0.95, 0.5, 0.9999)
    """How often an interval should hold the true difference."""
    tolerance: float = number(0.02, 0.0)
    """How much worse the candidate may be on earlier files, in nats per token."""
    language_tolerance: float = number(0.1, 0.0)
    """The same for each language alone."""
    least_gain: float = number(0.01, 0.0)
    """How much better the candidate must be on new files, in nats per token: the end of the interval nearer to 0."""
    least_files: int = number(4, 2, 100_000)
    """Minimum number of new files that judge."""
    longest_trunk: int = number(8, 1, 1000)
    """After this many runs without enough evidence in a row, the candidate is refused."""
    largest_norm: float = number(0.5, 0.0)
    """Maximum norm of a module's change, as a share of the norm of the base's weights."""
    more_loops: float = number(0.5, 0.0, 1.0)
    """Maximum excess of the share of answers that loop over the base's share."""
    examination: bool = True
    """Whether the candidate is loaded in a fresh process, where it answers a few prompts."""


@dataclass(frozen=True, kw_only=True)
class Hygiene:
    """Which rows may be trained on. Each check refuses rows with its own reason (docs/hygiene.md)."""

    duplicates: str = choice("near", "exact", "none")
    """Which duplicates of trained, claimed or held-out rows are refused. `exact`: equal except for whitespace."""
    near_duplicate_jaccard: float = number(0.7, 0.5, 1.0)
    """Jaccard similarity of token 5-grams from which two files are near duplicates (estimated by MinHash)."""
    longest_line_chars: int = number(1000, 1)
    mean_line_chars: int = number(100, 1)
    """Maximum average line length in characters, without blank lines."""
    least_alphanumeric_share: float = number(0.25, 0.0, 1.0)
    """Minimum share of letters and digits among a text's characters, without line ends and blank lines."""
    largest_encoded_share: float = number(0.5, 0.0, 1.0)
    """Maximum share of base64, hex bytes or escapes in a text, in runs of at least 64 characters."""
    longest_encoded_chars: int = number(1024, 64)
    """Maximum length of such a run."""
    generated: str = choice("refuse", "allow")
    """Files whose first ten lines say that they are generated."""
    vendored: str = choice("allow", "refuse")
    """Files whose path leads through a folder of other people's code or of built files, such as `node_modules`."""
    max_rows_per_repository: int | None = number(5000, 1)
    max_rows_per_author: int | None = number(5000, 1)
    """Maximum rows per repository and per author (metadata's `author`) in a run. Others wait for a later run."""
    benchmarks: tuple[str, ...] = names()
    """JSONL benchmark files in HumanEval's or MBPP's format, whose tasks must not be trained on."""
    benchmark_gram_words: int = number(10, 5, 100)
    """Number of consecutive words, unique to a task, that count as a leak."""
    secrets: str = choice("replace", "keep")
    """Whether to replace keys, tokens and passwords by placeholders in all samples."""
    licenses: tuple[str, ...] = names()
    """Allowed licenses as SPDX identifiers. An empty list allows all."""
    unknown_license: str = choice("refuse", "allow")
    """What to do with a row without a license, if `licenses` is not empty."""


@dataclass(frozen=True, kw_only=True)
class ServiceDefaults:
    """Defaults for the service's settings. None keeps the service's default."""

    min_new_files: int | None = number(None, 1)
    max_dataset_size: int | None = number(None, 1)
    check_interval: float | None = number(None, 0.1)
    sweep_interval: float | None = number(None, 0.1)
    quality_threshold: float | None = number(None)
    min_content_chars: int | None = number(None, 1)
    max_content_chars: int | None = number(None, 1)
    demo_corpus: bool = False
    """Fill an empty table with the interpreter's standard library."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stage of a curriculum. A run has the rows of one phase, and continues from the phase before."""

    name: str
    """The value of the rows' column `phase`."""
    file: str | None = None
    """File of records that `codelupe train --from FOLDER` reads for this phase."""
    num_epochs: int = number(1, 1, 1000)
    learning_rate: float | None = number(None, 1e-9, 1.0)
    """None: training.learning_rate."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a run's result, except its rows and its parent."""

    name: str
    stream: str
    """Name of the adapters' lineage. It is bound to a source, a base@revision and a LoRA shape."""
    base: Base = field(default_factory=Base)
    lora: Lora = field(default_factory=Lora)
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    distributed: Distributed = field(default_factory=Distributed)
    corpus: Corpus = field(default_factory=Corpus)
    moe: Moe = field(default_factory=Moe)
    evaluation: Evaluation = field(default_factory=Evaluation)
    gate: Gate = field(default_factory=Gate)
    hygiene: Hygiene = field(default_factory=Hygiene)
    reward: Reward = field(default_factory=Reward)
    tracking: Tracking = field(default_factory=Tracking)
    service: ServiceDefaults = field(default_factory=ServiceDefaults)
    phases: tuple[Phase, ...] = ()
    """The curriculum, in order. Without phases, a run has rows of any kind."""
    experiment: Experiment = field(default_factory=Experiment)

    @property
    def phase_names(self) -> tuple[str, ...]:
        """Names of the phases, in order."""
        return tuple(phase.name for phase in self.phases)


def step_samples(recipe: Recipe) -> int:
    """Return the samples of an optimizer step, on all processes together."""
    training, cards = recipe.training, recipe.distributed.cards
    return training.batch_size * training.gradient_accumulation_steps * (cards // recipe.distributed.shared_by(cards))


def share_equally(recipe: Recipe, processes: int) -> bool:
    """Whether so many processes get equally many whole samples of an optimizer step."""
    together = recipe.distributed.shared_by(processes)
    return processes % together == 0 and step_samples(recipe) % (processes // together) == 0


def pinned(recipe: Recipe, *, model: str, revision: str) -> Recipe:
    """Pin the recipe's base to the resolved model and revision."""
    return replace(recipe, base=replace(recipe.base, model=model, revision=revision))


def in_phase(recipe: Recipe, name: str | None) -> Recipe:
    """Return the recipe as a run of a phase uses it. None: the recipe has no phases."""
    phase = next((phase for phase in recipe.phases if phase.name == name), None)
    if phase is None:
        return recipe
    rate = recipe.training.learning_rate if phase.learning_rate is None else phase.learning_rate
    return replace(recipe, training=replace(recipe.training, num_epochs=phase.num_epochs, learning_rate=rate))

"""Peak memory of a training step, line by line.

    static      weights, constants, adapters, gradients, optimizer      exact: all bytes of the objects
    kept        kept by the forward pass for the backward pass      by policy, proportional to the tokens
    working     the larger of: one layer going backward, or the loss    never at the same time
    the card    CUDA's own memory and what the allocator cannot use     constants, stated below

The activations are those of the fused LoRA layer (trainer/model/fused_lora.py): a layer keeps its input, the product
with A and, with dropout, a byte mask. All gradients are counted, because they exist from the second micro-batch on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trainer.model.base import NF4_BLOCK
from trainer.model.fused_lora import GROUPS
from trainer.model.loss import CHUNK_LOGITS
from trainer.model.sequence import repeats
from trainer.plan.cards import GIB
from trainer.plan.model import Matrix, Model
from trainer.plan.sharding import shard
from trainer.plan.static import Line, Sizes, static_lines
from trainer.recipe import Base, Recipe

OFFLOAD_BUFFERS = 2
"""Layer inputs on the card while they are kept on the host: one in use, one on its way."""
ROUTER_BYTES = 4
"""A router's softmax over the experts, per token and expert."""
INDEX_BYTES = 8
CUDA_BYTES = GIB * 6 // 10
"""CUDA's context, loaded kernels and cuBLAS's workspace: what `nvidia-smi` shows of a process that holds no tensors,
commonly 0.4 to 0.6 GiB on Ada and later. Outside the figures of torch.cuda.max_memory_allocated."""
SLACK_FRACTION = 0.04
"""Share of activations and working memory that the allocator holds and cannot hand out, with expandable segments. An
assumption; `make bench-gpu` is where it is measured."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The choices of a plan."""

    micro_batch_tokens: int
    """Of a whole pack. Several cards may share it."""
    checkpointing: str
    offload: bool

    def of_card(self, sizes: Sizes) -> Choice:
        """Return the same for the tokens that one card has of a pack."""
        return replace(self, micro_batch_tokens=-(-self.micro_batch_tokens // sizes.sequence))


def memory_lines(model: Model, recipe: Recipe, choice: Choice, sizes: Sizes) -> list[Line]:
    """Every line, in the order of the table."""
    own = choice.of_card(sizes)
    activations = kept_lines(model, own, sizes) + working_lines(model, recipe.base, own, sizes)
    slack = int(sum(line.bytes for line in activations if line.counted) * SLACK_FRACTION)
    return [
        *shard(static_lines(model, recipe, sizes), model, recipe),
        *activations,
        Line(name="allocator's slack", bytes=slack, kind="card"),
        Line(name="CUDA itself", bytes=CUDA_BYTES, kind="card"),
    ]


def peak_bytes(lines: list[Line]) -> int:
    """The sum at the peak."""
    return sum(line.bytes for line in lines if line.counted)


# --- kept for the backward pass -------------------------------------------------------------------------------


def attention_bytes(model: Model, sizes: Sizes) -> int:
    """Kept by one layer's attention, per token: input of q, k, v; the three; output, with its logarithms.

    With a shared pack, a card attends to all tokens with its part of the heads, which has as many bytes. It sends the
    output on, and o_proj keeps what comes back. Key heads may be repeated.
    """
    q, k = model.heads * model.head_width, sent_key_heads(model, sizes) * model.head_width
    matrices = [matrix for matrix in model.layer_matrices if matrix.name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    own = sizes.element * (q + 2 * k + q) + 4 * model.heads
    if sizes.sequence > 1 and any(m.adapted for m in matrices if m.name == "o_proj"):
        own += sizes.element * q
    if model.head_norms:  # each norm keeps its normalized input, and one number per head
        own += sizes.element * (q + model.key_heads * model.head_width) + 4 * (model.heads + model.key_heads)
    of_input = sizes.element * model.hidden if any(m.adapted for m in matrices if m.name != "o_proj") else 0
    return own + of_input + lora_bytes(matrices, sizes)


def sent_key_heads(model: Model, sizes: Sizes) -> int:
    """Key heads, repeated until the cards that share a pack get equally many."""
    return model.key_heads * repeats(model.key_heads, sizes.sequence)


def mlp_bytes(model: Model, sizes: Sizes) -> int:
    """Kept by one layer's MLP, per token: its input; gate, up, and the product."""
    if model.experts_used:
        return model.experts_used * expert_bytes(model, sizes) + ROUTER_BYTES * model.experts
    matrices = [matrix for matrix in model.layer_matrices if matrix.name in ("gate_proj", "up_proj", "down_proj")]
    own = 2 * sizes.element * model.mlp
    of_input = sizes.element * model.hidden if any(m.adapted for m in matrices if m.name != "down_proj") else 0
    of_product = sizes.element * model.mlp if any(m.adapted for m in matrices if m.name == "down_proj") else 0
    return own + of_input + of_product + lora_bytes(matrices, sizes)


def expert_bytes(model: Model, sizes: Sizes) -> int:
    """Kept by one frozen expert, per token: gate, its SiLU, up; its output, to be weighted; indices and weight."""
    return sizes.element * (3 * model.mlp + model.hidden) + 2 * INDEX_BYTES + 4


def lora_bytes(matrices: list[Matrix], sizes: Sizes) -> int:
    """Per token: each adapted matrix's product with A, and a dropout mask for all with the same input."""
    adapted = {matrix.name: matrix for matrix in matrices if matrix.adapted}
    masks = {_group_of(name): matrix.inputs for name, matrix in adapted.items()}
    return len(adapted) * sizes.element * sizes.rank + sum(masks.values()) * sizes.dropout


def _group_of(name: str) -> str:
    """The name of the group that shares a mask (trainer/model/fused_lora.py)."""
    return next(("-".join(names) for names in GROUPS if name in names), name)


def norm_bytes(model: Model, sizes: Sizes) -> int:
    """Per token: a norm keeps its normalized input, and one number."""
    return sizes.element * model.hidden + 4


def layer_bytes(model: Model, sizes: Sizes) -> int:
    """Kept by one layer that keeps everything, per token."""
    return attention_bytes(model, sizes) + mlp_bytes(model, sizes) + 2 * norm_bytes(model, sizes)


def kept_lines(model: Model, choice: Choice, sizes: Sizes) -> list[Line]:
    """Activations that a micro-batch's forward pass keeps on the card."""
    tokens, one_input = choice.micro_batch_tokens, sizes.element * model.hidden
    match choice.checkpointing:
        case "none":  # the first norm's input, the embeddings, needs no gradient
            inputs, inside = 0, model.layers * layer_bytes(model, sizes) - norm_bytes(model, sizes)
        case "selective":  # inputs of two norms and of the MLP
            inputs, inside = 3 * model.layers, model.layers * attention_bytes(model, sizes)
        case _:
            inputs, inside = model.layers, 0
    if choice.offload:
        inputs = min(inputs, OFFLOAD_BUFFERS)
    positions = 2 * sizes.element * model.head_width  # cosines and sines
    found = {"checkpoints": inputs * one_input, "kept activations": inside, "positions": positions}
    return [Line(name=name, bytes=size * tokens, kind="kept") for name, size in found.items() if size]


def host_bytes(model: Model, choice: Choice, sizes: Sizes) -> int:
    """Page-locked host memory that offloading takes."""
    per_layer = {"none": 0, "selective": 3, "full": 1}[choice.checkpointing]
    return choice.offload * per_layer * model.layers * sizes.element * model.hidden * choice.micro_batch_tokens


def all_to_all_bytes(model: Model, choice: Choice, sizes: Sizes) -> int:
    """Bytes that a card sends in a pass, if it shares the pack with others.

    For each layer and token of its own: queries, keys, values and the output, of which (N - 1) / N go to others
    (DeepSpeed-Ulysses, arXiv 2309.14509, section 3.2: 4 · tokens · hidden / N, if all heads are key heads). Backward
    sends as much. Full checkpointing sends all again.
    """
    own, number = choice.of_card(sizes).micro_batch_tokens, sizes.sequence
    each = sizes.element * model.head_width * 2 * (model.heads + sent_key_heads(model, sizes))
    times = 3 if choice.checkpointing == "full" else 2
    return times * model.layers * own * each * (number - 1) // number


# --- working memory -------------------------------------------------------------------------------------------


def working_lines(model: Model, base: Base, choice: Choice, sizes: Sizes) -> list[Line]:
    """Temporary memory: one layer's backward pass with an unpacked matrix, or the loss."""
    products, activation = layer_working_bytes(model, choice, sizes)
    matrix = matrix_bytes(model, base, sizes)
    unpacking = products + matrix >= activation
    layer, together = (products, products + matrix) if unpacking else (activation, activation)
    loss = loss_bytes(model, choice, sizes)
    return [
        Line(name="one layer going backward", bytes=layer, kind="working", counted=together >= loss),
        Line(name="one matrix unpacked", bytes=matrix, kind="working", counted=unpacking and together >= loss),
        Line(name="the loss and the last norm", bytes=loss, kind="working", counted=together < loss),
    ]


def layer_working_bytes(model: Model, choice: Choice, sizes: Sizes) -> tuple[int, int]:
    """Recomputed activations, and the gradients at the two widest points: in down_proj, and after it.

    In down_proj, a matrix is unpacked, too. There are the gradients of the layer's output and of down_proj's input.
    After it, there are also those of gate and up; what down_proj kept is free.
    """
    match choice.checkpointing:
        case "none":
            again = 0
        case "selective":  # the MLP's input is already kept
            again = mlp_bytes(model, sizes) - sizes.element * model.hidden
        case _:
            again = layer_bytes(model, sizes)
    if model.experts_used:  # all experts of a token at once, whose input is a copy of its own
        gradients = model.experts_used * sizes.element * (2 * model.hidden + 2 * model.mlp)
        return choice.micro_batch_tokens * (again + gradients), 0
    products = sizes.element * (model.hidden + model.mlp)
    activation = products + 2 * sizes.element * model.mlp
    down = [matrix for matrix in model.layer_matrices if matrix.name == "down_proj" and matrix.adapted]
    if down:
        activation -= sizes.element * model.mlp + lora_bytes(down, sizes)
    return choice.micro_batch_tokens * (again + products), choice.micro_batch_tokens * (again + activation)


def matrix_bytes(model: Model, base: Base, sizes: Sizes) -> int:
    """The largest matrix unpacked, with its scales in float32 where they are quantized themselves."""
    if base.quantization == "none":
        return 0
    largest = max(matrix.numel for matrix in model.layer_matrices)
    return largest * sizes.element + (4 * -(-largest // NF4_BLOCK) if base.double_quantization else 0)


def loss_bytes(model: Model, choice: Choice, sizes: Sizes) -> int:
    """The last norm's input, and the larger of two moments.

    One chunk of logits and its softmax, in float32, beside the last hidden states, the supervised ones (all of
    them, at the most) and their gradient; or the norm going backward, through two tensors in float32.
    """
    tokens, one_input = choice.micro_batch_tokens, sizes.element * model.hidden
    positions = min(tokens, max(1, CHUNK_LOGITS // model.vocabulary))
    logits = positions * model.vocabulary * (4 + 4)
    norm_backward = tokens * (2 * one_input + 2 * 4 * model.hidden)
    return tokens * norm_bytes(model, sizes) + max(3 * one_input * tokens + logits, norm_backward)

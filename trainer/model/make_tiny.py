"""Recreates the tiny base: `python -m trainer.model.make_tiny OUT`. A Qwen2 of 2.4 M parameters; takes minutes.

It has byte-level BPE with Qwen2.5's pre-tokenizer, special tokens and chat template. It is trained on plain text only,
so an adapter has to learn the chat format.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from trainer.model.tiny_corpus import is_pretraining_file, library_files

TINY_FOLDER = Path(__file__).parent / "tiny"
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
"""Excluded folders, which hold half of the library's bytes. The rule would allow them."""

VOCABULARY = 4096
SEQUENCE_TOKENS = 512
BATCH_SEQUENCES = 4
MATRIX_RATE = 0.02
OTHER_RATE = 4e-3

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pre-tokenizer of Qwen2.5."""

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ORDINARY = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
"""Qwen2.5's added tokens, in its order. The second group is not special in Qwen2.5."""


def main() -> None:
    """Train the tokenizer and the model, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1100)
    arguments = parser.parse_args()
    texts = [
        text for path, text in library_files() if is_pretraining_file(path) and TEST_FOLDERS.isdisjoint(path.split("/"))
    ]
    tokenizer = make_tokenizer(texts)
    model = make_model()
    pretrain(model, token_stream(tokenizer, texts), steps=arguments.steps)
    save(model, tokenizer, arguments.out)


def make_tokenizer(texts: list[str]) -> Qwen2Tokenizer:
    """Byte-level BPE over `texts`. The added tokens stay outside the BPE's own vocabulary, as Qwen's do."""
    bpe = Tokenizer(BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(ORDINARY),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in ORDINARY])
    tokenizer = Qwen2Tokenizer(
        tokenizer_object=bpe,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    tokenizer.chat_template = (Path(__file__).parent / "qwen_chat.jinja").read_text(encoding="utf-8")
    return tokenizer


def make_model() -> Qwen2ForCausalLM:
    """Create a Qwen2. All matrix sides are multiples of 64, the NF4 block size."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        use_sliding_window=False,
    )
    return Qwen2ForCausalLM(config)


def token_stream(tokenizer: Qwen2Tokenizer, texts: list[str]) -> torch.Tensor:
    """Concatenate all texts, each ending with <|endoftext|>: int64 [tokens]."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False):
        ids.extend(encoding.ids)
        ids.append(end)
    return torch.tensor(ids)


def pretrain(model: Qwen2ForCausalLM, stream: torch.Tensor, *, steps: int) -> None:
    """Train on next tokens: Muon for the matrices, AdamW for the rest, with linear warm-up and decay."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        Muon(matrices, MATRIX_RATE),
        torch.optim.AdamW(rest, OTHER_RATE, (0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [MATRIX_RATE, OTHER_RATE]
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(steps):
        starts = torch.randint(len(stream) - SEQUENCE_TOKENS - 1, (BATCH_SEQUENCES,), generator=generator)
        batch = torch.stack([stream[s : s + SEQUENCE_TOKENS] for s in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        share = min((step + 1) / 30, (steps - step) / (0.6 * steps), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 0 or step == steps - 1:
            sys.stderr.write(f"step {step} of {steps}: loss {loss.item():.3f}\n")
    assert math.isfinite(loss.item())


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five Newton-Schulz iterations (github.com/KellerJordan/Muon).

    torch's own Muon uses bfloat16, which takes seconds per step on a processor without native support.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], rate: float) -> None:
        super().__init__(matrices, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices. Matrices of one shape are batched."""
        group = self.param_groups[0]
        by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for matrix in group["params"]:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        for (rows, columns), matrices in by_shape.items():
            updates = torch.stack([self._momentum(matrix) for matrix in matrices])
            scale = group["lr"] * max(1.0, rows / columns) ** 0.5
            for matrix, update in zip(matrices, orthogonal(updates), strict=True):
                matrix.add_(update, alpha=-scale)

    def _momentum(self, matrix: torch.nn.Parameter) -> torch.Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        momentum = state.setdefault("momentum", torch.zeros_like(matrix)).lerp_(matrix.grad, 0.05)
        return matrix.grad.lerp(momentum, 0.95)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Orthogonalise matrices, so that their singular values are near 1: [count, rows, columns] in and out."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, out: Path) -> None:
    """Write config, bf16 weights, tokenizer and generation settings."""
    shutil.rmtree(out, ignore_errors=True)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    model.config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()

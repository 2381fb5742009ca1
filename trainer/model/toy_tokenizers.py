"""Tokenizers of the toy models: the scheme and the control tokens of the real ones, with a small vocabulary.

qwen2, qwen3   the files of the tiny base
llama          byte-level BPE with Llama 3's split and control tokens; a text begins with <|begin_of_text|>
mixtral        BPE on words that begin with ▁, unknown characters as bytes; <s>, </s>, and the instruct template
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainer.model.base import TINY_FOLDER
from trainer.model.tiny_corpus import is_pretraining_file, library_files

VOCABULARY = 1024
CORPUS_FILES = 60
LARGEST_FILE_CHARS = 20_000

LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""Pre-tokenizer of Llama 3."""
LLAMA_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(4)),
    "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>",
)  # fmt: skip
"""The first control tokens of Llama 3, in its order. They follow the BPE's own vocabulary."""

MIXTRAL_TOKENS = ("<unk>", "<s>", "</s>")
"""Mixtral's control tokens, ids 0 to 2. [INST] is ordinary text there."""
MIXTRAL_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
MIXTRAL_WORDS = Regex(r"\n|▁*[^▁\n]+|▁+")
"""Training does not merge across these parts. The tokenizer itself does not split, as in Mixtral."""
MIXTRAL_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, the roles must alternate user/assistant/user/…') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('Only system, user and assistant roles are supported') }}
    {%- endif %}
{%- endfor %}
"""


def tiny_tokenizer() -> Any:
    """Load the tokenizer of the tiny base, which has Qwen's control tokens and template."""
    return AutoTokenizer.from_pretrained(str(TINY_FOLDER))


def llama_tokenizer() -> Any:
    """Train a tokenizer in the form of Llama 3's: no chat template, and no padding token."""
    bpe = Tokenizer(BPE(ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(LLAMA_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(), trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LLAMA_TOKENS])
    begin = "<|begin_of_text|>"
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, bpe.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=begin,
        eos_token="<|end_of_text|>",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def mixtral_tokenizer() -> Any:
    """Train a tokenizer in the form of Mixtral's, with the template of Mixtral-8x7B-Instruct-v0.1."""
    learned = Tokenizer(BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.pre_tokenizer = pre_tokenizers.Split(MIXTRAL_WORDS, behavior="isolated")
    size = VOCABULARY - len(MIXTRAL_TOKENS) - len(MIXTRAL_BYTES)
    ascii_only = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=ascii_only, limit_alphabet=len(ascii_only) + 1, show_progress=False
    )
    learned.train_from_iterator(corpus(), trainer)
    model = json.loads(learned.to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocabulary = {token: number for number, token in enumerate([*MIXTRAL_TOKENS, *MIXTRAL_BYTES, *words])}
    merges = [tuple(pair) for pair in model["merges"]]
    bpe = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in MIXTRAL_TOKENS])
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    tokenizer.chat_template = MIXTRAL_TEMPLATE
    return tokenizer


def corpus() -> Iterator[str]:
    """Yield a few short files of the standard library, always the same ones."""
    texts = (text for path, text in library_files() if is_pretraining_file(path) and len(text) <= LARGEST_FILE_CHARS)
    return islice(texts, CORPUS_FILES)

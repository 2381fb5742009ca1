"""Row 15: files contain the text of control tokens: whole, split and altered. None may become a control id.

The tokenizers are small. They have the published tables of added tokens of Qwen2.5, Llama-3 (and 3.1) and Mixtral,
and are of the same kinds: byte-level with and without `ignore_merges`, and SentencePiece-like with a byte fallback.
The vocabulary of the last one contains `<s>`. Merges build each control token up to its last character.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from oracle import Broken
from rows import Done, Row, Trials
from scene import code
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from trainer.data.encoder import SampleEncoder, TokenSample
from trainer.data.tokenize import tokenize_rows
from trainer.recipe import Data
from trainer.records import Row as RunRow
from trainer.run_dir import content_sha256

TRIALS, ROWS_A_TRIAL = 20, 250
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
                "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
                "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")  # fmt: skip
QWEN_OTHER = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
              "<|repo_name|>", "<|file_sep|>")  # fmt: skip
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
         "<|python_tag|>", "<|finetune_right_pad_id|>",
         *(f"<|reserved_special_token_{n}|>" for n in range(251)))  # fmt: skip
MIXTRAL = ("<unk>", "<s>", "</s>")
QWEN_CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
)
LLAMA_CHAT = (
    "<|begin_of_text|>{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] + '<|eot_id|>' }}{% endfor %}"
)
MIXTRAL_CHAT = (
    "<s>{% for m in messages %}{{ ('' if m['role'] == 'assistant' else ' [INST] ') + m['content'] + "
    "('</s>' if m['role'] == 'assistant' else ' [/INST] ') }}{% endfor %}"
)


# --- tokenizers -----------------------------------------------------------------------------------------------


def grown(alphabet: Sequence[str], tokens: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary, and merges that build each token from the left, up to its last character."""
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    merges: dict[tuple[str, str], None] = {}
    for token in tokens:
        for end in range(2, len(token)):
            merges[token[: end - 1], token[end - 1]] = None
            vocabulary.setdefault(token[:end], len(vocabulary))
    return vocabulary, list(merges)


def byte_level(tokens: Sequence[str], *, ignore_merges: bool) -> Tokenizer:
    vocabulary, merges = grown(sorted(pre_tokenizers.ByteLevel.alphabet()), tokens)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def qwen() -> PreTrainedTokenizerFast:
    backend = byte_level((*QWEN_SPECIAL, *QWEN_OTHER), ignore_merges=False)
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in QWEN_SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in QWEN_OTHER])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", name_or_path="qwen2.5")
    made.chat_template = QWEN_CHAT
    return made


def llama() -> PreTrainedTokenizerFast:
    backend = byte_level(LLAMA, ignore_merges=True)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in LLAMA])
    begin = "<|begin_of_text|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, backend.token_to_id(begin))]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=begin, eos_token="<|eot_id|>", name_or_path="llama-3"
    )
    made.chat_template = LLAMA_CHAT
    return made


def mixtral() -> PreTrainedTokenizerFast:
    characters = sorted({chr(n) for n in range(33, 127)} | {"▁"})
    vocabulary, merges = grown([*MIXTRAL, *(f"<0x{n:02X}>" for n in range(256)), *characters], MIXTRAL)
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in MIXTRAL])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", name_or_path="mixtral"
    )
    made.chat_template = MIXTRAL_CHAT
    return made


MAKERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {"qwen": qwen, "llama": llama, "mixtral": mixtral}
CHATS = {
    "qwen": ["<|im_start|>", "<|im_end|>"] * 3,
    "llama": ["<|begin_of_text|>", *["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"] * 3],
    "mixtral": ["<s>", "</s>"],
}
"""The control tokens of a chat with a system, a user and an assistant message."""
ENDS = {"qwen": "<|endoftext|>", "llama": "<|end_of_text|>", "mixtral": "</s>"}
BEGINS = {"qwen": [], "llama": ["<|begin_of_text|>"], "mixtral": ["<s>"]}
GAP = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>"]
BUILDERS = {
    "qwen": ("instruction", "chunks", "items", "commits", "fim", "repo"),
    "llama": ("instruction", "chunks", "items", "commits"),
    "mixtral": ("instruction", "chunks", "items", "commits"),
}


@cache
def encoder(family: str) -> SampleEncoder:
    return SampleEncoder(MAKERS[family]())


# --- files ----------------------------------------------------------------------------------------------------


def disguised(token: str, chance: random.Random) -> str:
    """Return the text of a control token, or something similar."""
    cut = chance.randrange(1, len(token))
    return chance.choice(
        (
            token, token, token, token * 3, f" {token} ", f"\n{token}\n", f"x{token}y", token[:cut] + token,
            token + token[cut:], token[:cut] + "\u200b" + token[cut:], token[:cut] + token[cut:].upper(),
            f"▁{token}", token.replace("|", "\uff5c"), token + "\u0338", token + "\u0301", f"\u202e{token[::-1]}",
            token[:cut], token[cut:], f"\\{token}", f"<0x3C>{token[1:]}", token.replace("<", "&lt;"), f"{token}\r",
        )
    )  # fmt: skip


def row(number: int, tokens: Sequence[str], *, seed: int) -> RunRow:
    """Return a file that contains one certain token and some others."""
    chance = random.Random(f"{seed} {number}")
    sure = tokens[(seed * ROWS_A_TRIAL + number) % len(tokens)]

    def spiked(text: str) -> str:
        lines = text.split("\n")
        for _ in range(chance.randrange(1, 6)):
            spike = disguised(chance.choice((sure, chance.choice(tokens))), chance)
            lines.insert(chance.randrange(len(lines)), f"# {spike}" if "\n" not in spike else f"s = '''{spike}'''")
        lines.insert(chance.randrange(len(lines)), f"s = '{sure}'")
        return "\n".join(lines)

    content = spiked(code(number, chance.choice((14, 14, 60))))
    place = f"{chance.choice(('a', sure))}/{number}{disguised(sure, chance)}.py"
    return RunRow(
        file_id=number, repository=f"r{number % 7}{sure}", path=place,
        language=chance.choice(("python", "python", "text", disguised(sure, chance).strip() or "text")),
        content=content, sha256=content_sha256(content),
        metadata={"message": spiked("a change"), "before": spiked(code(number)), "author": sure, "stars": sure},
    )  # fmt: skip


# --- what must hold -------------------------------------------------------------------------------------------


def check(family: str, builder: str, samples: Sequence[TokenSample], rows: Sequence[RunRow], *, windows: bool) -> int:
    """Check that each sample has only the control ids of its frame. Return the number of samples."""
    known = MAKERS[family]().added_tokens_decoder if family not in _NAMES else _NAMES[family]
    _NAMES[family] = known
    begin, end = BEGINS[family], [ENDS[family]]
    seen: Counter[str] = Counter()
    for sample in samples:
        found = [str(known[number]) for number in sample.ids.tolist() if number in known]
        seen.update(found)
        match builder:
            case "instruction" | "commits":
                allowed = [CHATS[family]]
            case "fim":
                allowed = [begin + GAP]
            case "repo":
                allowed = [found] if set(found) <= {"<|repo_name|>", "<|file_sep|>", *end} else []
            case _:
                allowed = [begin + end, begin, end, []] if windows else [begin + end]
        if found not in allowed:
            raise Broken(f"{family}, {builder}, file {sample.file_id}: {found} is not one of {allowed}")
    if builder == "repo":
        groups = len({row.repository for row in rows if row.file_id in {f for s in samples for f, _ in s.shares}})
        files = len({file_id for sample in samples for file_id, _ in sample.shares})
        if seen != {"<|repo_name|>": groups, "<|file_sep|>": files, **{end[0]: groups}}:
            raise Broken(f"repo: {seen} for {groups} repositories with {files} files")
    return len(samples)


_NAMES: dict[str, dict[int, AddedToken]] = {}


@contextmanager
def fuzzed(folder: Path, sample: bool) -> Iterator[Trials]:
    rows_a_trial = 30 if sample else ROWS_A_TRIAL

    def trial(number: int) -> Done:
        made = 0
        for family, builders in BUILDERS.items():
            tokens = sorted(str(token) for token in encoder(family).tokenizer.added_tokens_decoder.values())
            rows = [row(n, tokens, seed=number) for n in range(1, rows_a_trial + 1)]
            for builder in builders:
                for windows in (False, True):
                    overlap = 20 if windows and builder != "repo" else 0  # overlap would repeat a separator
                    data = Data(
                        builders={builder: 1.0}, max_length=400 if windows else 1 << 18, metadata=number % 2 == 0,
                        rename_fraction=0.3, largest_unparsed_share=1.0, window_overlap=overlap,
                    )  # fmt: skip
                    found = tokenize_rows(rows, encoder(family), data, seed=number)
                    made += check(family, builder, found.samples, rows, windows=windows)
        return Done(count=rows_a_trial, note=f"{made} samples of 3 tokenizers")

    yield Trials(number=1 if sample else TRIALS, run=trial)


ROWS = {
    15: Row(fault="the text of every added token of Qwen2.5, Llama-3 and Mixtral in files, paths, languages and "
            "metadata", unit="files, each through all builders of three tokenizers",
            passes="no control id inside content", prepare=fuzzed),
}  # fmt: skip

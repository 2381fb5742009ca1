"""Generates in this process: base and adapter as in training, in batches that are padded on the left.

Not covered: in 16 bits, padding and batch size can change a logit's last bit and so, rarely, a text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList, TextStreamer

from trainer.data.encoder import pad_id
from trainer.errors import OutOfMemory, UnusableInput
from trainer.evaluate.engines import Finish, Generation, Model, Request, Sampling
from trainer.evaluate.prompts import Question, cut
from trainer.evaluate.sampler import OwnDraw, StopAt, StopWhen, TextAsItComes
from trainer.model.lora import load_adapter
from trainer.model.memory import is_out_of_memory
from trainer.model.quantized import load_kept
from trainer.recipe import Recipe


class TransformersEngine:
    """A loaded model. Halves its batch when memory runs out."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int, on_note: Callable[[str], None]) -> None:
        self._model, self._tokenizer, self._on_note = model.eval(), tokenizer, on_note
        self.batch_size = batch_size
        self._pad = pad_id(tokenizer)

    @classmethod
    def load(cls, model: Model, tokenizer: Any, on_note: Callable[[str], None]) -> TransformersEngine:
        """Load base and adapter."""
        loaded = load_model(model.recipe, model.adapter, on_note)
        return cls(loaded, tokenizer, batch_size=model.batch_size, on_note=on_note)

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Generation]:
        """Yield an answer for each request: requests of similar length together, short ones first.

        Raises:
            OutOfMemory: a single answer does not fit.
        """
        left = sorted(((self._ids(request.question), request) for request in requests), key=lambda pair: len(pair[0]))
        while left:
            batch = left[: self.batch_size]
            try:
                made = self._generate(batch, sampling)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._smaller(error)
                continue
            left = left[len(batch) :]
            yield from made

    def stream(
        self, request: Request, sampling: Sampling, *, on_text: Callable[[str], None], stopped: Callable[[], bool]
    ) -> Generation:
        """Answer one request, with its text as it comes. Ends early when `stopped` returns True.

        Raises:
            OutOfMemory: the answer does not fit.
            UnusableInput: the prompt is longer than what the base can read.
        """
        ids = self._ids(request.question)
        longest = getattr(self._model.config, "max_position_embeddings", None)
        if longest is not None and len(ids) >= longest:
            raise UnusableInput(f"the prompt has {len(ids)} tokens, but the base reads at most {longest}")
        try:
            (made,) = self._generate(
                [(ids, request)], sampling, TextAsItComes(self._tokenizer, on_text), [StopWhen(stopped)]
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            raise OutOfMemory(f"there is no memory for this answer ({error}). Lower max_tokens") from error
        return made

    def _smaller(self, error: Exception) -> None:
        if self.batch_size == 1:
            raise OutOfMemory(
                f"there is no memory for one answer ({error}). Lower --max-tokens, or use --engine openai"
            ) from error
        self.batch_size //= 2
        self._on_note(f"out of memory: answers are generated in batches of {self.batch_size} now")
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def _generate(
        self,
        batch: Sequence[tuple[list[int], Request]],
        sampling: Sampling,
        streamer: TextStreamer | None = None,
        stops: Sequence[StoppingCriteria] = (),
    ) -> list[Generation]:
        began = time.monotonic()
        requests = [request for _, request in batch]
        width = max(len(ids) for ids, _ in batch)
        device = self._model.device
        rows = torch.tensor([[self._pad] * (width - len(ids)) + ids for ids, _ in batch], device=device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in batch], device=device)
        # some families end documents with the padding token
        ends = sorted({self._tokenizer.eos_token_id, self._pad, *(end for r in requests for end in r.question.ends)})
        processors = [OwnDraw([r.seed(sampling) for r in requests], sampling)] if sampling.temperature > 0 else []
        whole = StopAt(self._tokenizer, width, [_stopped(request.question) for request in requests])
        output = self._model.generate(
            input_ids=rows,
            attention_mask=mask,
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            num_beams=1,
            repetition_penalty=sampling.repetition_penalty,
            use_cache=True,
            eos_token_id=ends,
            pad_token_id=self._pad,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList([whole, *stops]),
            streamer=streamer,
        )[:, width:].tolist()
        seconds = round((time.monotonic() - began) / len(batch), 4)
        return [self._generation(request, ids, ends, seconds) for request, ids in zip(requests, output, strict=True)]

    def _generation(self, request: Request, ids: list[int], ends: Sequence[int], seconds: float) -> Generation:
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        text = self._tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ended = cut(text, request.question.stops)
        # a row that ended goes on with padding, so its length says nothing
        finish: Finish = "length" if end is None and ended == text else "stop"
        return Generation(
            task_id=request.task_id,
            sample=request.sample,
            text=ended,
            tokens=len(ids) if end is None else end,
            seconds=seconds,
            finish=finish,
        )

    def _ids(self, question: Question) -> list[int]:
        if question.ids:
            return list(question.ids)
        if question.text is not None:
            return list(self._tokenizer.encode(question.text))
        text = self._tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in question.messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        return list(self._tokenizer.encode(text, add_special_tokens=False))  # the template has them


def load_model(recipe: Recipe, adapter: Path | None, on_note: Callable[[str], None]) -> Any:
    """Load the base as training does, and an adapter on it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high" if recipe.training.tf32 else "highest")

    def note(event: str, /, **fields: Any) -> None:
        on_note(" ".join([event, *(f"{name}={value}" for name, value in fields.items())]))

    base = load_kept(recipe.base, device, note)
    return base if adapter is None else load_adapter(base, adapter)


def _stopped(question: Question) -> Callable[[str], bool]:
    return lambda text: cut(text, question.stops) != text

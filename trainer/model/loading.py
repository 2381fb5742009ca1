"""Tells how far a base is: bytes of its download, tensors that are loaded (and quantized).

transformers and huggingface_hub count both for their own progress bars. Whoever runs a training has no terminal, so the
counts go to a callback instead.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm
from transformers.utils.logging import set_tqdm_hook

DOWNLOAD, MODEL = "download", "model"
LOADING = "Loading weights"
"""The title of transformers' bar."""
TRANSFER = "Downloading bytes"
"""The title of the Hub's second bar for the same download: what the network delivers, packed."""

OnProgress = Callable[[str, int, int], None]
"""Takes a name, what is done, and the total."""

_told: ContextVar[OnProgress | None] = ContextVar("told", default=None)


@contextmanager
def loading_told(on_progress: OnProgress) -> Iterator[None]:
    """Call `on_progress` while a base is loaded in the block, with `download` and bytes, or `model` and tensors."""

    def hook(bar: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options.get("desc") != LOADING or not arguments:
            return bar(*arguments, **options)
        return _counted(arguments[0], on_progress)

    token, before = _told.set(on_progress), set_tqdm_hook(hook)
    try:
        yield
    finally:
        set_tqdm_hook(before)
        _told.reset(token)


def download_options() -> dict[str, Any]:
    """Return the options of `from_pretrained` that make a download tell its bytes. Empty outside of `loading_told`."""
    told = _told.get()
    return {} if told is None else {"tqdm_class": _bar_that_tells(told)}


def _counted(items: Any, on_progress: OnProgress) -> Iterator[Any]:
    total = len(items)
    for done, item in enumerate(items):
        on_progress(MODEL, done, total)
        yield item


def _bar_that_tells(on_progress: OnProgress) -> type[tqdm]:
    """Return a bar that draws nothing. One that is disabled would not count."""

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **options | {"disable": False, "file": io.StringIO()})

        def display(self, *_arguments: Any, **_options: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> bool | None:
            updated = super().update(n)
            if self.unit == "B" and self.total and not self.desc.startswith(TRANSFER):
                on_progress(DOWNLOAD, int(self.n), int(self.total))
            return updated

    return Bar

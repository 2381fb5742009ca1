"""A trainer whose forward passes fail, as they do with a bad row or too little memory.

python failing.py KIND FLAG -- -m trainer …

KIND is one of:
  nan        the loss of a marked row is not finite, in training and in evaluation
  together   the loss of a marked row is not finite in training if the pack has other rows too
  once       the loss of the second training pass is not finite, in one process only (it creates the file FLAG)
  row        a marked row does not fit into memory in training, even alone
  large      a pack does not fit into memory if it has more tokens than any single row
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MARK = "zqxj_marked"
"""The text that marks a row."""
MAX_TOKENS = 600


def install(kind: str, flag: Path) -> None:
    """Replace the forward pass by one that fails."""
    import torch

    from trainer.model import step
    from trainer.model.base import TINY_FOLDER
    from trainer.model.load import load_tokenizer
    from trainer.recipe import Base

    forward, tokenizer, passes = step.LossModel.forward, load_tokenizer(Base(model=str(TINY_FOLDER))), [0]

    def failing(self: Any, batch: Any, **options: Any) -> Any:
        loss, correct = forward(self, batch, **options)
        passes[0] += self.training
        fails = {
            "nan": lambda: _marked(tokenizer, batch),
            "together": lambda: self.training and len(batch.lengths) > 1 and _marked(tokenizer, batch),
            "once": lambda: self.training and passes[0] == 2 and not flag.exists(),
            "row": lambda: self.training and _marked(tokenizer, batch),
            "large": lambda: batch.tokens > MAX_TOKENS,
        }[kind]()
        if fails and kind in ("row", "large"):
            raise torch.OutOfMemoryError("CUDA out of memory: injected")
        if fails and kind == "once":
            flag.touch()
        return (loss * torch.nan if fails else loss), correct

    step.LossModel.forward = failing  # type: ignore[method-assign]


def _marked(tokenizer: Any, batch: Any) -> bool:
    return MARK in tokenizer.decode(batch.ids[0].tolist())


def main(arguments: list[str]) -> None:
    kind, flag, _, _, *program = arguments
    sys.path.insert(0, str(ROOT))
    install(kind, Path(flag))
    sys.argv = program
    runpy.run_module(program[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])

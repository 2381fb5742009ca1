"""What the ranks of a fit do together: sum gradients, agree on what happened, and divide the optimizer.

ddp     each rank holds all parameters. Gradients are summed once a step, after all passes: a rank that runs out of
        memory in a pass leaves no other waiting, and all repeat the step with smaller passes
fsdp2   each rank holds its share of everything. Passes are made in step with the others
zero2   and zero3: see zero.py
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from trainer.fit.optimizer import make_optimizer
from trainer.model.shards import local
from trainer.plan.exchange import BUCKET_ELEMENTS
from trainer.recipe import Training


class Together:
    """The ranks of a fit. Alone, nothing is exchanged."""

    def __init__(self, model: Any, accelerator: Accelerator, *, sharded: bool = False) -> None:
        self.model = model
        self.accelerator = accelerator
        self.sharded = sharded
        self.pairs: list[tuple[torch.nn.Parameter, torch.nn.Parameter]] = []
        """With shards, each trained parameter, and the one that the optimizer has: this rank's share, in its memory."""

    @property
    def averaged_over(self) -> int:
        """By how many ranks gradients are divided: fsdp2 and ZeRO average them, and the loss must make up for it."""
        return self.accelerator.num_processes if self.sharded else 1

    @property
    def in_step(self) -> bool:
        """Whether the ranks exchange something within a pass, so that none can leave it alone."""
        return self.sharded or self.model.shared.size > 1

    def trained(self) -> list[torch.nn.Parameter]:
        """Return the trained parameters, in an order that all ranks have."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def share_optimizer(self, training: Training, *, draws: tuple[int, ...]) -> torch.optim.Optimizer:
        """Create the optimizer of this rank's shares. It takes their gradients at each step."""
        self.pairs = [(parameter, torch.nn.Parameter(local(parameter.data))) for parameter in self.trained()]
        optimizer = make_optimizer([share for _, share in self.pairs if share.numel()], training, draws=draws)
        optimizer.register_step_pre_hook(lambda *_: self._take_gradients())
        return optimizer

    def _take_gradients(self) -> None:
        for parameter, share in self.pairs:
            if parameter.grad is not None:
                share.grad, parameter.grad = local(parameter.grad).to(share.dtype), None

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a pass to those of the window."""
        self.accelerator.backward(loss)

    def weights_changed(self) -> None:
        """Notice that the adapter's weights were loaded."""

    def most(self, *values: float) -> list[float]:
        """Return the largest of each value on any rank."""
        return self._reduced(list(values), dist.ReduceOp.MAX)

    def total(self, value: float) -> float:
        """Return the sum over all ranks."""
        return self._reduced([value], dist.ReduceOp.SUM)[0]

    def _reduced(self, values: list[float], how: Any) -> list[float]:
        if self.accelerator.num_processes == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        dist.all_reduce(tensor, how)
        return [float(value) for value in tensor.tolist()]

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Sum the gradients of all ranks. With shards, the passes have done so."""
        if self.accelerator.num_processes == 1 or self.sharded:
            return
        bucket: list[torch.Tensor] = []
        for parameter in self.trained():
            if parameter.grad is None:  # an expert that got no tokens here
                parameter.grad = torch.zeros_like(parameter)
            if bucket and sum(grad.numel() for grad in bucket) + parameter.numel() > BUCKET_ELEMENTS:
                _sum(bucket)
                bucket = []
            bucket.append(parameter.grad)
        _sum(bucket)

    def clip(self, limit: float) -> float:
        """Scale the gradients to a norm of at most `limit`, and return their norm before."""
        if not self.sharded:
            return float(self.accelerator.clip_grad_norm_(self.model.parameters(), limit))
        grads = [local(parameter.grad) for parameter in self.trained() if parameter.grad is not None]
        return self.clip_shares(grads, limit)

    def clip_shares(self, grads: list[torch.Tensor], limit: float) -> float:
        """Scale this rank's shares of the gradients, by the norm of all ranks' shares. Return that norm."""
        squares = sum(float(grad.double().square().sum()) for grad in grads)
        norm = self.total(squares) ** 0.5
        if norm > limit:
            for grad in grads:
                grad.mul_(limit / (norm + 1e-6))
        return norm


def _sum(bucket: list[torch.Tensor]) -> None:
    """Sum the tensors of a bucket over all ranks, in one exchange for each dtype."""
    for dtype in {grad.dtype for grad in bucket}:
        grads = [grad for grad in bucket if grad.dtype == dtype]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for grad, summed in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(summed.view_as(grad))

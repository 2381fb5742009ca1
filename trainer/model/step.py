"""Model and loss in one module, which is wrapped for several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainer.errors import UnusableInput
from trainer.model.attention import attend_by_document, documents, unpacked_attention
from trainer.model.batch import Batch
from trainer.model.loss import position_losses, supervised_loss
from trainer.model.routing import Routing
from trainer.model.sequence import ALONE, SharedBy
from trainer.model.sizes import compiled_by_size, rounded


class LossModel(nn.Module):
    """A causal language model with its loss, on packs."""

    def __init__(
        self,
        model: Any,
        *,
        kernel: str = "each",
        label_smoothing: float = 0.0,
        routing: Routing | None = None,
        shared: SharedBy = ALONE,
    ) -> None:
        """
        Args:
            routing: follows the routers of a mixture of experts in training
            shared: the processes that share each pack. This one's passes are of its share (`own_share`)
        """
        super().__init__()
        self.model = model
        self.kernel = kernel
        self.label_smoothing = label_smoothing
        self.routing = routing
        self.shared = shared
        attend_by_document(model.get_base_model())

    def own_share(self, batch: Batch) -> Batch:
        """Return what this process has of a pack. Called before the batch goes to its device."""
        return batch.share(self.shared.place, self.shared.size)

    def forward(self, batch: Batch, *, by_sample: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss and the number of correct predictions. Label smoothing applies in training only.

        In training, the loss of a mixture of experts has the gradient of the load balancing loss, too. Its value is
        that of the language model alone.

        With `by_sample`, return the sums of each sample, float64 [samples], without a gradient, weights or label
        smoothing. Of a share, the sums are over its own tokens.
        """
        causal = self.model.get_base_model()
        routing = self.routing if self.training and not by_sample else None
        taken = self._filled(batch, causal.get_input_embeddings().weight)
        outputs = causal.model(
            input_ids=taken.ids,
            position_ids=taken.positions,
            documents=documents(taken, self.kernel, self.shared),
            use_cache=False,
            **({"output_router_logits": True} if routing else {}),
        )
        hidden = outputs.last_hidden_state[0]
        hidden, head = hidden[batch.predicting], causal.get_output_embeddings()
        if by_sample:
            losses, correct = position_losses(hidden, head, batch.labels)
            return batch.sum_by_sample(losses), batch.sum_by_sample(correct)
        loss, correct = supervised_loss(
            hidden,
            head,
            batch.labels,
            label_smoothing=self.label_smoothing if self.training else 0.0,
            weights=batch.weights,
        )
        if routing:
            balancing = routing.observe(outputs.router_logits, batch)
            loss = loss + (balancing - balancing.detach())  # its gradient counts, its value is reported apart
        return loss, correct

    def _filled(self, batch: Batch, weight: torch.Tensor) -> Batch:
        """Fill the pack to a size that comes again, where that saves time. Routers would count what fills it."""
        if self.shared.size > 1 or self.routing is not None or not compiled_by_size(weight):
            return batch
        return batch.filled(rounded(batch.tokens))


def inner(model: Any) -> LossModel:
    """Return the LossModel inside of what computes the loss. (accelerate's own function imports DeepSpeed.)"""
    found: LossModel = getattr(model, "module", model)
    return found


@torch.no_grad()
def check_head(model: Any) -> None:
    """Raises UnusableInput unless the head, applied to the last hidden states, gives the model's own logits.

    Families that scale or cap their logits would otherwise be trained with a wrong loss.
    """
    model.eval()  # dropout would make the two differ
    causal = model.get_base_model()
    ids = torch.arange(8, device=causal.device)[None]
    with unpacked_attention(causal):
        own = causal(input_ids=ids, use_cache=False).logits.float()
        hidden = causal.model(input_ids=ids, use_cache=False).last_hidden_state
    ours = causal.get_output_embeddings()(hidden).float()
    model.train()
    if not torch.allclose(own, ours, rtol=1e-3, atol=1e-3):
        raise UnusableInput(
            f"base.model: {type(causal).__name__} changes its logits after the head, which is not supported"
        )

"""The causal language-model loss without the logits: the head and the cross-entropy in one, chunk by chunk.

Travels to the Hub beside `modeling_chatgpt.py` as remote code: it imports torch alone.
"""

from typing import Any

import torch
from torch import nn

# Rows of logits that exist at a time in the chunked loss: 1,024 rows of 50,257 float32 logits are 206 MB, and larger
# chunks were not faster.
LOSS_CHUNK_ROWS = 1024


class ChunkedLinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of `hidden @ weight.T`, with gradients made chunk by chunk in the forward pass.

    Never holds more than `LOSS_CHUNK_ROWS` rows of logits. For 8,192 rows, 50,257 entries and width 768 that takes an
    eighth of the stock loss' memory and no more time (benchmarks/loss_memory.py); recomputing the chunks in the backward
    pass would add a fourth matrix product to the three. The reference is `PreTrainedModel.loss_function` on the whole logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        softcap: float | None,
        ignore_index: int,
    ) -> torch.Tensor:
        """`hidden` (rows, hidden), `weight` (vocab, hidden), `labels` (rows,) to a float32 scalar."""
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        ctx.dtypes = hidden.dtype, weight.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            # Once for all chunks: autocast would cast the whole matrix again for each.
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
        loss = hidden.new_zeros((), dtype=torch.float32)
        hidden_grads = []
        # bfloat16 would lose the small chunks' contributions to a large sum.
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        for rows, targets in zip(hidden.split(LOSS_CHUNK_ROWS), labels.split(LOSS_CHUNK_ROWS), strict=True):
            logits = (rows @ weight.T).float()
            if softcap is not None:
                capped = torch.tanh(logits / softcap)
                logits = capped * softcap
            kept = targets != ignore_index
            targets = torch.where(kept, targets, 0)[:, None]
            grad = nn.functional.log_softmax(logits, dim=-1)
            # Here and below: never more than two copies of a chunk, or they would be most of the memory.
            del logits
            picked = grad.gather(-1, targets)
            loss -= torch.where(kept[:, None], picked, 0.0).sum()
            if wants_hidden or wants_weight:
                grad.exp_().scatter_add_(-1, targets, -torch.ones_like(picked))
                grad *= kept[:, None]
                if softcap is not None:
                    grad *= 1.0 - capped * capped
                grad = grad.to(rows.dtype)
            if wants_hidden:
                hidden_grads.append(grad @ weight)
            if wants_weight:
                weight_grad += grad.T @ rows
            del grad
        ctx.save_for_backward(torch.cat(hidden_grads) if wants_hidden else None, weight_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Scaled in float32: one over the number of tokens, rounded to bfloat16, would be wrong in the third digit.
        grads = (
            None if grad is None else (grad.float() * grad_output).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*grads, None, None, None)


def chunked_causal_lm_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor | None,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: torch.Tensor | None = None,
    final_logit_softcapping: float | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """`ForCausalLMLoss(logits=hidden_states @ weight.T, ...)` without the logits.

    Args:
        hidden_states: (batch, seq, hidden), after the last norm.
        weight: The head's matrix, (vocab, hidden).
        labels: (batch, seq), shifted here; or `shift_labels`, shifted already.
        num_items_in_batch: Divisor of the summed loss; None divides by the number of labels that count.
    """
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    shift_labels = shift_labels.reshape(-1).to(hidden_states.device)
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    if len(rows) != len(shift_labels):
        raise ValueError(
            f"{len(shift_labels)} labels for {len(rows)} positions; `logits_to_keep` goes without labels."
        )
    if not torch.is_grad_enabled():
        # `autograd.Function` asks for the gradients of what requires them even where nobody will.
        rows, weight = rows.detach(), weight.detach()
    total = ChunkedLinearCrossEntropy.apply(rows, weight, shift_labels, final_logit_softcapping, ignore_index)
    if num_items_in_batch is None:
        num_items_in_batch = (shift_labels != ignore_index).sum()
    count = torch.as_tensor(num_items_in_batch, device=total.device)
    # Nothing to learn is nan without a gradient, as in `cross_entropy`: dividing by zero would make the gradients nan.
    return torch.where(count == 0, torch.nan, total / torch.where(count == 0, 1, count))

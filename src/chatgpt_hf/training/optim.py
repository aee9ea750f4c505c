"""Muon for the hidden matrices and AdamW for everything else, as one optimizer."""

from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw

# The quintic that drives singular values towards 1 fastest (Jordan et al. 2024, "Muon: an optimizer for hidden layers").
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values end between about 0.7 and 1.2.

    Args:
        matrices: (batch, rows, columns), of any scale.
        steps: Newton-Schulz iterations.
    """
    a, b, c = _NEWTON_SCHULZ
    # bfloat16 is enough and fast on a GPU; a CPU without bfloat16 units needs 150 times as long as for float32.
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer with two rules: groups with `muon=True` orthogonalize their momentum, the others are AdamW's.

    Muon's step is scaled by `0.2 * sqrt(max(rows, columns))` to the size of AdamW's (Liu et al. 2025, "Muon is scalable
    for LLM training", section 2.2), so that one learning rate and one schedule serve both. Matrices of one shape are
    orthogonalized in one batch.

    Args:
        params: Parameter groups; `muon=True` only with matrices.
        lr: Learning rate of both rules.
        momentum: Of Muon, in Nesterov's form.
        betas: Of AdamW.
        eps: Of AdamW.
        weight_decay: Decoupled, of both rules; give groups their own.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "muon": False})
        for group in self.param_groups:
            if group["muon"] and any(parameter.ndim != 2 for parameter in group["params"]):
                raise ValueError(
                    "Muon is for matrices; give vectors and tensors of other ranks a group with muon=False."
                )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Updates every parameter that has a gradient."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            if group["muon"]:
                self._muon(group, parameters)
            else:
                self._adamw(group, parameters)
        return loss

    def _muon(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        by_shape: dict[torch.Size, list[torch.Tensor]] = {}
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            by_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, matrices in by_shape.items():
            gradients = _gradients(matrices)
            momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = orthogonalize(torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"])))
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, updates.unbind(), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def _adamw(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            _gradients(parameters),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _gradients(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


class MuonFactory:
    """For `Trainer(optimizer_cls_and_kwargs=(MuonFactory, {...}))`: sorts a model's parameters into the two rules.

    Matrices inside the layers go to Muon with weight decay; embeddings, the head, norms and biases to AdamW without.
    """

    def __call__(self, model: nn.Module, *, weight_decay: float = 0.0, **kwargs: Any) -> MuonAdamW:
        outer = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, nn.Embedding)
            for parameter in module.parameters()
        }
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if head is not None:
            outer |= {id(parameter) for parameter in head.parameters()}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        hidden = [parameter for parameter in trained if parameter.ndim == 2 and id(parameter) not in outer]
        chosen = {id(parameter) for parameter in hidden}
        rest = [parameter for parameter in trained if id(parameter) not in chosen]
        groups = [
            {"params": hidden, "muon": True, "weight_decay": weight_decay},
            {"params": rest, "muon": False, "weight_decay": 0.0},
        ]
        return MuonAdamW([group for group in groups if group["params"]], **kwargs)

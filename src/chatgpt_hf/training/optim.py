"""Muon for the hidden matrices and AdamW for everything else, as one optimizer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw

from ..errors import CheckpointError
from .muon_owners import Owners, layout, local

# Coefficients of quintics p(x) = a x + b x^3 + c x^5. The first is optimal for singular values from 0.003 to 1, each
# later one for the range that its predecessor leaves (Amsel et al. 2025, "The Polar Express", theorem 3.1). All but
# the last have the paper's 1 % margin for rounding above 1. Together they map [0.003, 1] to [0.78, 1.2] and multiply
# smaller values by 287.
_POLAR_EXPRESS = (
    (8.3007, -24.0375, 17.4661),
    (4.0034, -2.9228, 0.5419),
    (3.4709, -2.5494, 0.5002),
    (2.4901, -1.8343, 0.4368),
)
# Lower bound of divisors that may be zero; a gradient below it counts as zero.
_TINY = 1e-20


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Approximates the nearest semi-orthogonal matrices: singular values end up between about 0.78 and 1.2.

    This holds for singular values above 0.003 times the fourth root of the sum of their fourth powers, an upper bound
    of the largest; smaller ones end up in proportion to their size. The bound follows from the Gram matrix, which is
    needed anyway, and is tighter than the Frobenius norm, so four steps reach as far as five of Jordan et al. 2024
    ("Muon: an optimizer for hidden layers") and end in a narrower band. In float32, wide matrices are iterated only
    through their Gram matrix. Both together take half the time of Jordan's iteration on a CPU, at widths from 128 to
    256.

    Args:
        matrices: (batch, rows, columns), at any scale; zero stays zero.
    """
    # bfloat16 is precise enough, and fast on a GPU; on a CPU without bfloat16 units it takes 150 times as long as
    # float32.
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(_TINY)
    gram = x @ x.mT
    bound = gram.norm(dim=(-2, -1), keepdim=True).clamp_min(_TINY)
    x, gram = x * bound.rsqrt(), gram / bound
    # The Gram matrix squares the singular values: in bfloat16, rounding errors would swamp the smallest and be
    # amplified.
    if x.dtype == torch.float32 and x.shape[-1] >= 2 * x.shape[-2]:
        x = _product_of_factors(gram) @ x
    else:
        for step, coefficients in enumerate(_POLAR_EXPRESS):
            x = _factor(x @ x.mT if step else gram, *coefficients) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def _factor(gram: torch.Tensor, a: float, b: float, c: float) -> torch.Tensor:
    """P = a + b G + c G^2, so that P X is the quintic p(X) if G = X X^T: (batch, rows, rows)."""
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor


def _product_of_factors(gram: torch.Tensor) -> torch.Tensor:
    """The product of the factors of all quintics, computed only from X X^T: (batch, rows, rows).

    Every P is a polynomial in the same G, so they commute: P G P is the next G, and the long X is multiplied once at
    the end.
    """
    product = factor = _factor(gram, *_POLAR_EXPRESS[0])
    for coefficients in _POLAR_EXPRESS[1:]:
        gram = factor @ (gram @ factor)
        factor = _factor(gram, *coefficients)
        product = factor @ product
    return product


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer with two rules: Muon for groups with `muon=True`, AdamW for the others.

    Works with every `Trainer`: `optimizers=(MuonAdamW(muon_groups(model, lr=0.005)), None)`, or
    `optimizer_cls_and_kwargs=(MuonFactory, {"lr": 0.005})`.

    Muon's step is scaled by `0.2 * sqrt(max(rows, columns))` to the size of AdamW's (Liu et al. 2025, "Muon is scalable
    for LLM training", section 2.2), so that both can share a learning rate and a schedule. Matrices of the same shape
    are orthogonalized in stacks of a bounded size.

    Parameters may be sharded (FSDP2, HSDP): each matrix is then orthogonalized by one process, its owner; see `Owners`.

    Attributes:
        process_group: Processes that hold the same plain parameters and gradients and step together, as in DDP. They share the
            work if it is set; None lets each do all of it.

    Args:
        params: Parameter groups; those with `muon=True` may contain only matrices.
        lr: Learning rate of groups that set none.
        momentum: Nesterov momentum of Muon.
        betas: Betas of AdamW.
        eps: Epsilon of AdamW.
        weight_decay: Decoupled weight decay of groups that set none.
    """

    process_group: Any = None

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
                    "Muon works only on matrices; put vectors and tensors of other ranks into a group with muon=False."
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch.

        Raises:
            CheckpointError: If the state belongs to another optimizer.
        """
        if not all("muon" in group for group in state_dict["param_groups"]):
            raise CheckpointError(
                "The checkpoint's optimizer state was not written by Muon: resume with the run's original --optim, or start "
                "a new run from its weights."
            )
        super().load_state_dict(state_dict)

    def _muon(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        alike: dict[Any, list[torch.Tensor]] = {}
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            alike.setdefault((parameter.shape, layout(parameter)), []).append(parameter)
        for (shape, _), matrices in alike.items():
            owners = Owners(matrices[0], self.process_group, orthogonalize)
            for some in owners.rounds(matrices):
                gradients = _gradients(some)
                momenta = [local(self.state[matrix]["momentum_buffer"]) for matrix in some]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                updates = owners.apply(torch._foreach_lerp(gradients, momenta, group["momentum"]))
                weights = [local(matrix) for matrix in some]
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, updates, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def _adamw(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        # AdamW works on single elements, and its fused kernel takes no mix of plain and sharded tensors.
        adamw(
            [local(parameter) for parameter in parameters],
            _gradients(parameters),
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
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


def _gradients(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [local(parameter.grad) for parameter in parameters if parameter.grad is not None]


def hidden_matrices(model: nn.Module) -> list[str]:
    """Names of all matrices except embeddings and the head: the parameters for Muon and weight decay."""
    outer = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        outer |= {id(parameter) for parameter in head.parameters()}
    return [name for name, parameter in model.named_parameters() if parameter.ndim == 2 and id(parameter) not in outer]


def muon_groups(
    model: nn.Module, *, lr: float, embedding_lr: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Splits a model's parameters into groups for `MuonAdamW`.

    Matrices inside the layers use Muon with weight decay; embeddings, head, norms and biases use AdamW without.

    Args:
        lr: Learning rate.
        embedding_lr: Learning rate of AdamW, if it differs.
    """
    hidden = set(hidden_matrices(model))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = [
        {
            "params": [parameter for name, parameter in trained.items() if name in hidden],
            "muon": True,
            "lr": lr,
            "weight_decay": weight_decay,
        },
        {
            "params": [parameter for name, parameter in trained.items() if name not in hidden],
            "muon": False,
            "lr": lr if embedding_lr is None else embedding_lr,
            "weight_decay": 0.0,
        },
    ]
    return [group for group in groups if group["params"]]


class MuonFactory:
    """Makes `MuonAdamW` for `Trainer(optimizer_cls_and_kwargs=(MuonFactory, {"lr": ...}))`."""

    def __call__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.005,
        embedding_lr: float | None = None,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> MuonAdamW:
        groups = muon_groups(model, lr=lr, embedding_lr=embedding_lr, weight_decay=weight_decay)
        return MuonAdamW(groups, lr=lr, **kwargs)

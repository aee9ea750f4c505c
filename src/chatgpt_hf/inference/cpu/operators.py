"""PyTorch's undocumented operators, which oneDNN's and FBGEMM's kernels are called with."""

from functools import cache
from operator import attrgetter
from typing import Any

import torch

from ...errors import ConfigError


@cache
def operator(name: str) -> Any:
    """Looks up an undocumented PyTorch operator, such as `"aten._weight_int8pack_mm"`, when a model first needs it.

    Raises:
        ConfigError: If this release of PyTorch has no such operator.
    """
    try:
        return attrgetter(name)(torch.ops)
    except AttributeError as error:
        raise ConfigError(
            f"PyTorch {torch.__version__} has no operator {name}, which fast inference of this model on this CPU needs: install "
            "PyTorch 2.13, or load the model with `load_model`, which does not use it."
        ) from error

"""Pads rows of unequal length to one batch, also for tokenizers without a padding token (GPT-2's)."""

from collections.abc import Sequence
from typing import Literal

import torch


def pad(
    rows: Sequence[Sequence[int]], *, side: Literal["left", "right"], pad_token_id: int | None
) -> dict[str, torch.Tensor]:
    """Returns `input_ids` and `attention_mask`, both (len(rows), longest); padding is masked, so it may be any id."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_token_id or 0)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        here = slice(longest - len(row), longest) if side == "left" else slice(len(row))
        ids[index, here] = torch.tensor(row)
        mask[index, here] = 1
    return {"input_ids": ids, "attention_mask": mask}

"""What a layer sees of the few tokens just before without attention: hashed n-gram embeddings and short convolutions.

Travels to the Hub beside `modeling_chatgpt.py` as remote code: it imports torch and transformers, and of ours only
`configuration_chatgpt.py`.
"""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from .configuration_chatgpt import ChatGPTConfig

# 2**64 over the golden ratio, as a signed 64-bit integer: multiplicative hashing (Knuth, TAOCP vol. 3, section 6.4). The
# low bits of the product depend on few bits of the key, so they are dropped.
HASH_FACTOR = -7046029254386353131


def with_history(new: torch.Tensor, context: int, cache: Cache | None, layer_idx: int, state_idx: int) -> torch.Tensor:
    """(batch, channels, seq) with the `context` positions before it, (batch, channels, context + seq), zeros where none are.

    What came before is kept in the cache as a convolution's state, so that beams, crops and resets treat it as they should.
    """
    wanted = context + new.shape[-1]
    if cache is not None:
        new = cache.update_conv_state(new, layer_idx, state_idx, conv_kernel_size=context)
    return nn.functional.pad(new[..., -wanted:], (max(0, wanted - new.shape[-1]), 0))


class ChatGPTCausalConv(nn.Module):
    """Adds to each position a mix, channel by channel, of itself and the few before it: a Canon layer (Allen-Zhu 2025).

    Starts as the identity.
    """

    def __init__(self, config: ChatGPTConfig, layer_idx: int, state_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.state_idx = state_idx
        # The shape of a depthwise `nn.Conv1d`.
        self.weight = nn.Parameter(torch.zeros(config.hidden_size, 1, config.conv_kernel_size))

    def forward(self, hidden_states: torch.Tensor, same_document: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        """(batch, seq, hidden) to the same shape.

        Args:
            same_document: (batch or 1, seq, kernel - 1), 1 where the position 1, 2, ... before is no other document's.
        """
        seq_length, context = hidden_states.shape[1], self.weight.shape[-1] - 1
        history = with_history(hidden_states.transpose(1, 2), context, cache, self.layer_idx, self.state_idx)
        history = history.transpose(1, 2)
        output = hidden_states * (1 + self.weight[:, 0, -1])
        for distance in range(1, context + 1):
            before = history[:, context - distance : context - distance + seq_length]
            output = output + self.weight[:, 0, -1 - distance] * before * same_document[..., distance - 1 : distance]
        return output


class ChatGPTNgramEmbedding(nn.Module):
    """Embeddings of the last two ids, the last three, and so on, each hashed into its own table, summed."""

    def __init__(self, config: ChatGPTConfig) -> None:
        super().__init__()
        self.none = config.vocab_size
        self.tables = nn.ModuleList([nn.Embedding(size, config.hidden_size) for size in config.ngram_vocab_sizes])

    @property
    def context(self) -> int:
        """How many ids before a token its embedding depends on."""
        return len(self.tables)

    def forward(self, history: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """`history` (batch, context + seq) ids and positions (batch or 1, seq) to (batch, seq, hidden).

        An id from before position 0 belongs to padding or to another document and counts as none.
        """
        length = history.shape[1] - self.context
        base = self.none + 1
        key = history[:, self.context :].long()
        total: Any = 0.0
        for distance, table in enumerate(self.tables, start=1):
            before = history[:, self.context - distance : self.context - distance + length].long()
            key = key * base + torch.where(position_ids >= distance, before, self.none)
            fits = base ** (distance + 1) <= table.num_embeddings
            total = total + table(key if fits else ((key * HASH_FACTOR) >> 20) % table.num_embeddings)
        return total

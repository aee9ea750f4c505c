"""Models to explain: one with a planted behavior, and tiny ones of several families."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.interpretability.attention_maps import repeated_tokens

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def ours(**options: Any) -> PreTrainedModel:
    return ChatGPTForCausalLM(ChatGPTConfig(**{**SIZES, **options}))


def llama(**options: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, **options}))


def gpt2(**options: Any) -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4, n_positions=64, **options))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "ours": ours,
    "ours-soft-capped": lambda: ours(final_logit_softcapping=2.0),
    "ours-gpt2": lambda: ChatGPTForCausalLM(ChatGPTConfig.gpt2("gpt2", **SIZES)),
    "ours-short-memories": lambda: ours(ngram_vocab_sizes=[64], conv_kernel_size=3),
    "ours-grouped": lambda: ours(num_key_value_heads=2, sliding_window=8, layer_types=["sliding_attention"] * 3),
    "gpt2": gpt2,
    "llama": llama,
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Returns a tiny model with large weights, because small ones would hide mistakes."""
    made = FAMILIES[request.param]().eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
            elif "bias" in name:
                parameter.normal_(std=0.1)
    return made


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(50, (1, 12), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Planted:
    """A model that has learned only to continue repetitions; everything else is random.

    Attributes:
        length: Tokens before the repetition.
        rows: Rows of ids that were not in training.
    """

    model: PreTrainedModel
    vocabulary: range
    length: int
    rows: list[list[int]]


@pytest.fixture(scope="session")
def planted() -> Planted:
    """Three layers trained on repeated random tokens until the second half is no surprise: some seconds.

    The number of tokens before the repetition varies, so that looking back by a fixed distance does not work. The convolution
    mixes each token's predecessor into it; without it, a head of the first layer would have to learn this. With it, as with
    the smeared keys of Olsson et al. 2022, induction heads form at once. They form in the first layer, and with more training
    tend to fill it: training ends earlier, so that there are other heads too.
    """
    vocabulary, length = range(64), 20
    torch.manual_seed(2)
    config = ChatGPTConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        qk_norm=False,
        conv_kernel_size=2,
    )
    model = ChatGPTForCausalLM(config)
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if all(parameter is not matrix for matrix in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98)),
    ]
    for step in range(400):
        period = 8 + step % 18
        ids = repeated_tokens(vocabulary, rows=32, length=period, seed=step)
        labels = ids.clone()
        labels[:, : period + 1] = -100
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if loss.item() < 0.05:
            break
    rows = repeated_tokens(vocabulary, rows=16, length=length, seed=10**6).tolist()
    return Planted(model.eval(), vocabulary, length, rows)

"""Weights of fewer bits by transformers' own quantization configs, on a CPU."""

from pathlib import Path

import pytest
import torch
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
)
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.model.configuration_chatgpt import GPT2_ARCHITECTURE

IDS = torch.arange(4, 44).view(2, 20)
ARCHITECTURES = {"modern": {}, "gpt2": GPT2_ARCHITECTURE}
INT4 = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models wide enough for bitsandbytes, which quantizes 64 weights at a time and on a CPU wants them in one row."""
    saved = {}
    for name, architecture in ARCHITECTURES.items():
        torch.manual_seed(1)
        sizes = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        saved[name] = tmp_path_factory.mktemp("quantize") / name
        ChatGPTForCausalLM(ChatGPTConfig(**sizes, **architecture, initializer_range=0.1)).save_pretrained(saved[name])
    return saved


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.float()


def check(folder: Path, again: Path, config: TorchAoConfig | BitsAndBytesConfig, error: float) -> None:
    """The quantized model computes nearly the same, generates, and comes back from a folder as it is."""
    exact = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    # First of all: on CPUs with AVX-512, bitsandbytes packs 4-bit weights for the CPU when they are first used, and 0.50
    # writes them in that form, which it does not know again.
    model.save_pretrained(again)
    found = logits(model)
    distance = ((found - exact).norm() / exact.norm()).item()
    assert 0 < distance < error
    # The head shares the embedding's matrix, which stays as it is.
    assert model.lm_head.weight is model.model.embed_tokens.weight
    loaded = AutoModelForCausalLM.from_pretrained(again)
    torch.testing.assert_close(logits(loaded), found, rtol=0, atol=0)
    ids = model.generate(IDS, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=1)
    assert ids.shape == (2, 28)
    assert loaded.generate(IDS, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=1).equal(ids)


@pytest.mark.works_with(
    "torchao",
    "`TorchAoConfig`: int8 weights, int8 weights and activations, int4 weights in groups; saved and loaded",
    ("torchao", "transformers"),
)
@pytest.mark.parametrize(
    ("config", "error"),
    [(Int8WeightOnlyConfig(), 0.02), (Int8DynamicActivationInt8WeightConfig(), 0.05), (INT4, 0.4)],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("variant", ["modern", "gpt2"])
def test_torchao(variant: str, config: object, error: float, folders: dict[str, Path], tmp_path: Path) -> None:
    check(folders[variant], tmp_path, TorchAoConfig(config), error)


@pytest.mark.works_with(
    "bitsandbytes", "`BitsAndBytesConfig`: int8 and nf4; saved and loaded", ("bitsandbytes", "transformers")
)
@pytest.mark.parametrize(
    ("options", "error"),
    [({"load_in_8bit": True}, 0.05), ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 0.4)],
    ids=["int8", "nf4"],
)
@pytest.mark.parametrize("variant", ["modern", "gpt2"])
def test_bitsandbytes(
    variant: str, options: dict[str, object], error: float, folders: dict[str, Path], tmp_path: Path
) -> None:
    check(folders[variant], tmp_path, BitsAndBytesConfig(**options), error)

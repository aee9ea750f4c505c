"""LoRA with peft, used as its documentation does."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from packaging.version import Version
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.peft import MIN_PEFT_VERSION

from chatgpt_hf import load_model
from chatgpt_hf.conversion.merge import merge_adapter
from chatgpt_hf.errors import ConversionError

IDS = torch.arange(4, 44).view(2, 20)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def train(model: nn.Module, ids: torch.Tensor = IDS, steps: int = 3) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def lora(**settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})


@pytest.mark.works_with("PEFT", "LoRA: only the adapter is trained; the merged model computes the same", ("peft",))
@pytest.mark.parametrize("variant", ["modern", "gpt2", "memories"])
def test_lora_and_merge(variant: str, folders: dict[str, Path], tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folders[variant])
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    plain = logits(base)
    model = peft.get_peft_model(base, lora())
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)

    losses = train(model)
    assert all(torch.tensor(losses).isfinite())
    assert losses[-1] < losses[0]
    for name, weight in model.state_dict().items():
        original = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if "lora_" not in name:
            assert torch.equal(weight, before[original]), name
        elif "lora_B" in name:
            assert weight.abs().max() > 0, f"{name} was not trained"
    adapted = logits(model)
    assert (adapted - plain).abs().max() > 0.01

    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model*"))
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders[variant]), tmp_path)
    torch.testing.assert_close(logits(again), adapted, rtol=0, atol=0)
    merged = again.merge_and_unload()
    assert type(merged).__name__ == "ChatGPTForCausalLM"
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.works_with("PEFT", "several adapters on one base: switched, weighted together, turned off", ("peft",))
def test_several_adapters(folder: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder)
    plain = logits(base)
    model = peft.get_peft_model(base, lora(), adapter_name="one")
    train(model)
    one = logits(model)
    model.add_adapter("two", lora(r=2, target_modules=["q_proj", "v_proj", "lm_head"]))
    model.set_adapter("two")
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    train(model, IDS.flip(1))
    two = logits(model)
    assert (two - one).abs().max() > 0.01
    model.set_adapter("one")
    torch.testing.assert_close(logits(model), one, rtol=0, atol=0)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)

    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder), tmp_path / "two", adapter_name="two"
    )
    again.load_adapter(tmp_path / "one", adapter_name="one")
    torch.testing.assert_close(logits(again), two, rtol=0, atol=0)
    again.set_adapter("one")
    torch.testing.assert_close(logits(again), one, rtol=0, atol=0)
    # Rows of one batch, each with an adapter of its own.
    with torch.no_grad():
        mixed = again.eval()(input_ids=IDS, adapter_names=["one", "two"]).logits
    torch.testing.assert_close(mixed, torch.stack((one[0], two[1])), rtol=1e-5, atol=1e-5)


@pytest.mark.works_with(
    "PEFT", "transformers' own adapter methods: add, load, enable, disable", ("peft", "transformers")
)
@pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    reason=f"this release of transformers takes PEFT {MIN_PEFT_VERSION} or newer for its own adapter methods",
)
def test_adapters_of_transformers(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    plain = logits(model)
    model.add_adapter(lora(), adapter_name="own")
    train(model)
    adapted = logits(model)
    assert (adapted - plain).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    model.disable_adapters()
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    again = AutoModelForCausalLM.from_pretrained(folder)
    again.load_adapter(str(tmp_path))
    torch.testing.assert_close(logits(again), adapted, rtol=0, atol=0)


@pytest.mark.works_with("PEFT", "DoRA, IA³ and prompt tuning: two steps, base untouched, saved and loaded", ("peft",))
@pytest.mark.parametrize("kind", ["dora", "ia3", "prompt"])
def test_other_methods(kind: str, folder: Path, tmp_path: Path) -> None:
    config = {
        "dora": lora(use_dora=True),
        "ia3": peft.IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    }[kind]
    base = AutoModelForCausalLM.from_pretrained(folder)
    frozen = dict(base.named_parameters())
    before = {name: weight.clone() for name, weight in frozen.items()}
    model = peft.get_peft_model(base, config)
    start = logits(model)
    losses = train(model, steps=2)
    assert all(torch.tensor(losses).isfinite())
    assert all(torch.equal(frozen[name], weight) for name, weight in before.items())
    adapted = logits(model)
    assert (adapted - start).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    torch.testing.assert_close(logits(again), adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.works_with(
    "PEFT", "`LoraConfig()` and `IA3Config()` with nothing set: the layers that Llama has adapters in", ("peft",)
)
def test_modules_need_no_names(folder: Path) -> None:
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), peft.LoraConfig())
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == {"q_proj", "v_proj"}
    losses = train(model, steps=8)
    assert losses[-1] < losses[0]
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), peft.IA3Config(task_type="CAUSAL_LM"))
    assert {name.split(".ia3_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".ia3_" in name} == {
        "k_proj",
        "v_proj",
        "down_proj",
    }


def test_peft_is_not_imported_for_its_tables() -> None:
    code = """if True:
        import sys, chatgpt_hf
        assert "peft" not in sys.modules
        import importlib.resources, importlib.util, inspect
        assert importlib.util.find_spec("peft")  # as libraries ask whether it is installed
        import peft
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as table
        assert table["chatgpt"] == table["llama"]
        assert inspect.getsource(peft) and importlib.resources.files("peft").is_dir()
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.works_with(
    "PEFT", "LoRA on embedding and head, new tokens trained alone, both trained in full: merged the same", ("peft",)
)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [3, 5, 9], "target_modules": None},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=["embedding", "head", "tokens", "in full"],
)
def test_embeddings(settings: dict[str, Any], tied: bool, folder: Path, tmp_path: Path) -> None:
    """The base is stored in bfloat16; merged in float32, and rounded last."""
    base = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=tied, dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    plain = logits(base)
    model = peft.get_peft_model(base, lora(**settings))
    train(model)
    adapted = logits(model)
    assert (adapted - plain).abs().max() > 0.01
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "adapter")
    assert merge_adapter(tmp_path / "adapter", tmp_path / "exact", torch.float32) < 1e-4
    exact = load_model(tmp_path / "exact")
    assert exact.dtype == torch.float32
    torch.testing.assert_close(logits(exact), adapted, rtol=1e-4, atol=1e-4)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    merged = load_model(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16
    for name, weight in exact.state_dict().items():
        assert torch.equal(merged.state_dict()[name], weight.to(torch.bfloat16)), name


@pytest.mark.works_with("PEFT", "prefix tuning: trained, saved, loaded, and generated with", ("peft",))
@pytest.mark.parametrize("variant", ["modern", "gpt2", "memories"])
def test_prefix_tuning(variant: str, folders: dict[str, Path], tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folders[variant])
    model = peft.get_peft_model(base, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    if variant == "memories":
        with pytest.raises(ValueError, match=r"ngram_vocab_sizes.*prefix tuning.*is not possible"):
            model(input_ids=IDS)
        return
    plain = logits(base)
    losses = train(model, steps=4)
    assert losses[-1] < losses[0]
    adapted = logits(model)
    assert (adapted - plain).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders[variant]), tmp_path)
    torch.testing.assert_close(logits(again), adapted, rtol=1e-5, atol=1e-5)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    answer = again.generate(input_ids=IDS[:1], **options)
    ids = IDS[:1]
    for _ in range(4):
        with torch.no_grad():
            ids = torch.cat((ids, again(input_ids=ids).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(answer, ids)
    with pytest.raises(ConversionError, match=r"PREFIX_TUNING.*cannot be merged"):
        merge_adapter(tmp_path, tmp_path / "merged")

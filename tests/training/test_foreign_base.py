"""A base model that was not made here: stored in bfloat16, trained in float32, saved as it came, with defaults that suit it."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from chatgpt_hf import ChatSession, load_model, pretrain, sft
from chatgpt_hf.checkpoints import repair_generation_config
from chatgpt_hf.conversion.convert import convert_checkpoint
from chatgpt_hf.conversion.merge import merge_adapter
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.reporting.card import make_card
from chatgpt_hf.stored import is_foreign, read_header, stored_dtype
from chatgpt_hf.training.arguments import ModelArguments, parse_recipe
from chatgpt_hf.training.finetune import finetune
from chatgpt_hf.training.weights import loading

from .trainings import FINETUNE, PRETRAIN, SFT

QUICK = ["--max_steps", "2", "--logging_steps", "1", "--save_strategy", "no", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def llama(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in bfloat16 with a card, a licence, a context of 131,072, and Llama 2's generation config."""
    folder = tmp_path_factory.mktemp("hub") / "Tiny-Llama"
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=131072,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # As Llama 2 was published.
    (folder / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "pad_token_id": 3}')
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny Llama\n")
    (folder / "LICENSE").write_text("Do what you like.")
    return folder


@pytest.fixture(scope="module")
def options(llama: Path, chats_file: Path) -> list[str]:
    return ["--model_name_or_path", str(llama), "--dataset", str(chats_file), "--block_size", "64", *QUICK]


def losses(folder: Path) -> list[float]:
    report = json.loads((folder / "report" / "report.json").read_text())
    return [entry["loss"] for entry in report["log_history"] if "loss" in entry]


def kinds(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118


def test_bfloat16_weights_learn_as_float32_ones(llama: Path, tmp_path: Path) -> None:
    load_model(llama).float().save_pretrained(tmp_path / "float32")
    ids = torch.arange(4, 68).view(4, 16)

    def six_steps(folder: Path, dtype: str | None) -> tuple[list[float], float]:
        model = load_model(folder, **loading(ModelArguments(model_name_or_path=str(folder), dtype=dtype)))
        before = [weight.clone() for weight in model.parameters()]
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
        found = []
        for _ in range(6):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        changed = [(was != now).float().mean().item() for was, now in zip(before, model.parameters(), strict=True)]
        return found, max(changed)

    exact, changed = six_steps(tmp_path / "float32", None)
    assert six_steps(llama, None) == (exact, changed)
    assert changed > 0.9
    # On purpose.
    assert six_steps(llama, "bfloat16")[1] < 0.1


def test_sft(llama: Path, options: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    with caplog.at_level("INFO"):
        parsed = parse_recipe(SFT, None, [*options, "--output_dir", str(folder)])
        figures = sft(*parsed)
    assert "Optimizer adamw_torch_fused, learning rate 2e-05, weights in float32" in caplog.text
    assert "do_sample is now true" in caplog.text
    # 5 % of five are none: one is held out.
    assert figures["held_out_loss"] > 0
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert (recipe["optim"], recipe["learning_rate"], recipe["test_fraction"]) == ("adamw_torch_fused", 2e-5, 0.05)
    assert kinds(folder) == {"BF16"}
    saved = load_model(folder)
    assert saved.dtype == torch.bfloat16
    assert saved.generation_config.do_sample
    assert saved.generation_config.temperature == 0.9
    # A longer step moves weights by more than bfloat16 rounds.
    sft(*parse_recipe(SFT, None, [*options, "--output_dir", str(tmp_path / "far"), "--learning_rate", "1e-2"]))
    before, after = load_model(llama).state_dict(), load_model(tmp_path / "far").state_dict()
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])
    assert ModelCard.load(folder / "README.md")
    text = (folder / "README.md").read_text(encoding="utf-8")
    for words in (
        "A llama model, trained with chatgpt_hf from `Tiny-Llama`: a chat model",
        "made from `Tiny-Llama`, whose licence, apache-2.0, applies to it too; the text is in LICENSE.",
        f"| parameters | {saved.num_parameters():,} |",
        "Whether the original model had safety training is not known",
    ):
        assert words in text
    assert "had no safety training" not in text
    assert (folder / "LICENSE").read_text() == "Do what you like."


def test_dtypes_on_purpose(options: list[str], tmp_path: Path) -> None:
    named = ["--dtype", "bfloat16", "--save_dtype", "float32", "--output_dir", str(tmp_path / "run")]
    sft(*parse_recipe(SFT, None, [*options, *named]))
    assert kinds(tmp_path / "run") == {"F32"}
    weights = load_model(tmp_path / "run").state_dict().values()
    assert all(torch.equal(weight, weight.bfloat16().float()) for weight in weights)


def test_what_is_given_wins(options: list[str]) -> None:
    def chosen(*given: str) -> tuple[str | None, float | None]:
        *_, arguments = parse_recipe(SFT, None, [*options, *given])
        arguments.use_foreign_defaults(adapters="--use_peft" in given)
        return arguments.optim, arguments.learning_rate

    assert chosen() == ("adamw_torch_fused", 2e-5)
    assert chosen("--use_peft", "true") == ("adamw_torch_fused", 2e-4)
    assert chosen("--learning_rate", "0.1") == ("adamw_torch_fused", 0.1)
    assert chosen("--optim", "muon") == ("muon", 0.01)
    assert chosen("--optim", "lion_32bit", "--use_peft", "true") == ("lion_32bit", 2e-4)
    assert chosen("--embedding_learning_rate", "0.5") == ("muon", 0.01)


def test_lora_merge_and_chat(llama: Path, options: list[str], tmp_path: Path, cli: Callable[..., Any]) -> None:
    folder = tmp_path / "run"
    sft(*parse_recipe(SFT, None, [*options, "--use_peft", "true", "--output_dir", str(folder)]))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert (recipe["optim"], recipe["learning_rate"]) == ("adamw_torch_fused", 2e-4)
    assert stored_dtype(folder) == torch.bfloat16
    result = cli("merge", folder, tmp_path / "merged")
    assert result.code == 0, result
    assert kinds(tmp_path / "merged") == {"BF16"}
    assert (tmp_path / "merged" / "LICENSE").is_file()
    results = json.loads((folder / "results.json").read_text())
    stored = read_header(folder / "adapter_model.safetensors")
    assert results["adapter_parameters"] == sum(math.prod(tensor.shape) for tensor in stored)
    base_parameters = load_model(llama).num_parameters()
    assert results["parameters"] == base_parameters + results["adapter_parameters"]
    card = make_card(folder, "me/mine")
    assert "An adapter of a llama model, trained with chatgpt_hf from `Tiny-Llama`: a chat model" in card
    assert f"| parameters | {base_parameters:,} |" in card
    assert f"| parameters of the adapter | {results['adapter_parameters']:,} |" in card
    assert "import chatgpt_hf" not in card
    assert cli("quantize", tmp_path / "merged", tmp_path / "int8").code == 0
    for made in ("merged", "int8"):
        card = make_card(tmp_path / made, "me/mine")
        assert "license: apache-2.0" in card
        assert "made from `Tiny-Llama`, whose licence, apache-2.0, applies to it too; the text is in LICENSE." in card
    assert cli("merge", folder, tmp_path / "exact", "--dtype", "float32").code == 0
    assert kinds(tmp_path / "exact") == {"F32"}
    assert (
        ChatSession.from_pretrained(tmp_path / "merged", do_sample=False, max_new_tokens=4).reply("Hello!") is not None
    )


def test_the_tolerance_of_a_merge_follows_the_logits(llama: Path, options: list[str], tmp_path: Path) -> None:
    """A final norm of 1,000 makes logits whose rounding is far above 1e-4."""
    base = tmp_path / "loud"
    shutil.copytree(llama, base)
    model = load_model(llama)
    with torch.no_grad():
        model.model.norm.weight.mul_(1000)
    repair_generation_config(model)
    model.save_pretrained(base)
    folder = tmp_path / "run"
    options = [*options, "--model_name_or_path", str(base), "--use_peft", "true", "--learning_rate", "1e-2"]
    sft(*parse_recipe(SFT, None, [*options, "--output_dir", str(folder)]))
    assert merge_adapter(folder, tmp_path / "merged") > 1e-4


def test_pretraining_further_with_a_long_context(llama: Path, corpus_file: Path, tmp_path: Path) -> None:
    """Nothing is as long as the context: attention over 131,072 positions would need 64 GB."""
    given = ["--model_name_or_path", str(llama), "--corpus", str(corpus_file), "--block_size", "32"]
    given += ["--output_dir", str(tmp_path / "run")]
    figures = pretrain(*parse_recipe(PRETRAIN, None, [*given, *QUICK]))
    assert math.isfinite(figures["held_out_bits_per_byte"])
    assert kinds(tmp_path / "run") == {"BF16"}
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (recipe["optim"], recipe["learning_rate"]) == ("adamw_torch_fused", 2e-5)
    # Ours by its type, and still of foreign origin: what is trained from it has the same defaults.
    assert json.loads((tmp_path / "run" / "config.json").read_text())["converted_from"] == {"model_type": "llama"}
    assert is_foreign(tmp_path / "run")


def test_a_task(llama: Path, tmp_path: Path) -> None:
    rows = "".join(f"{number},{'even' if number % 2 == 0 else 'odd'}\n" for number in range(40))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    given = ["--task", "text-classification", "--model_name_or_path", str(llama), "--max_length", "16"]
    given += ["--dataset", str(tmp_path / "rows.csv")]
    given += [*QUICK, "--eval_strategy", "no", "--baseline", "false"]
    finetune(*parse_recipe(FINETUNE, None, [*given, "--use_peft", "true", "--output_dir", str(tmp_path / "run")]))
    assert kinds(tmp_path / "run") == {"BF16"}
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (recipe["optim"], recipe["learning_rate"]) == ("adamw_torch_fused", 2e-4)


def test_a_generation_config_that_cannot_be_repaired() -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    model.generation_config = GenerationConfig(pad_token_id=-1)
    model.generation_config.early_stopping = "sometimes"
    with pytest.raises(ConfigError, match=r"generation_config\.json .* cannot be saved: .*early_stopping"):
        repair_generation_config(model)
    assert model.generation_config.pad_token_id is None


def test_a_converted_model(llama: Path, tmp_path: Path) -> None:
    convert_checkpoint(llama, tmp_path / "ours")
    assert is_foreign(tmp_path / "ours")
    card = ModelCard(make_card(tmp_path / "ours", "me/mine"))
    assert card.data.license == "apache-2.0"
    parameters = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").num_parameters()
    for words in (
        "The weights of `Tiny-Llama`, a llama model, converted with chatgpt_hf to a chatgpt model.",
        f"| parameters | {parameters:,} |",
        "nothing of that is known here",
        "made from `Tiny-Llama`, whose licence, apache-2.0, applies to it too; the text is in LICENSE.",
        "note = {Converted with",
    ):
        assert words in card.text
    for claim in ("fine-tuned", "no safety training", "it was trained on,", "## Data"):
        assert claim not in card.text, claim
    assert "\n\n\n" not in card.text

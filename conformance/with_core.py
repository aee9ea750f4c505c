"""Exercises everything that needs only the core dependencies; run by `core.py` with the interpreter of an environment that has no others.

FOLDER gets a model of ours (`ours`) and one of GPT-2's (`gpt2`), small, with random weights. `--same A B` compares two of GPT-2's.
"""

import argparse
import importlib.util
import sys
from importlib import metadata
from pathlib import Path

import torch
import transformers
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

TEXT = "Once upon a time, there was a model that needed little. " * 20
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}


def make_models(folder: Path) -> None:
    """One folder of ours, with a tokenizer, and one that stock transformers writes."""
    import chatgpt_hf

    tokenizer = chatgpt_hf.train_tokenizer([TEXT], 280, show_progress=False, model_max_length=64)
    torch.manual_seed(0)
    config = chatgpt_hf.ChatGPTConfig(
        vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id, **SIZES
    )
    chatgpt_hf.ChatGPTForCausalLM(config).save_pretrained(folder / "ours")
    stock = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(stock).save_pretrained(folder / "gpt2")
    for name in ("ours", "gpt2"):
        tokenizer.save_pretrained(folder / name)


def check_loading(folder: Path) -> None:
    import chatgpt_hf

    ours = AutoModelForCausalLM.from_pretrained(folder / "ours")
    assert type(ours) is chatgpt_hf.ChatGPTForCausalLM, type(ours)
    assert type(chatgpt_hf.load_model(folder / "ours")) is chatgpt_hf.ChatGPTForCausalLM
    read = chatgpt_hf.ChatGPTForCausalLM.from_pretrained(folder / "gpt2").eval()
    stock = GPT2LMHeadModel.from_pretrained(folder / "gpt2").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        difference = float((read(ids).logits - stock(ids).logits).abs().max())
    assert difference < 1e-5, difference
    print(f"from_pretrained: ours, and GPT-2's with logits that differ by {difference:.0e}")


def check_generating(folder: Path) -> None:
    import chatgpt_hf
    import chatgpt_hf.model.pipelines

    model = chatgpt_hf.load_for_generation(folder / "ours")
    tokenizer = AutoTokenizer.from_pretrained(folder / "ours")
    inputs = tokenizer("Once upon", return_tensors="pt")
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    fast = model.generate(**inputs, **options)
    assert fast.shape[1] == inputs["input_ids"].shape[1] + 8
    assert torch.equal(fast, model.generate(**inputs, **options, use_cache=False))
    generator = pipeline("text-generation", model=str(folder / "ours"))
    said = generator("Once upon", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    assert said.startswith("Once upon"), said
    assert "summarization" in chatgpt_hf.model.pipelines.PIPELINE_REGISTRY.get_supported_tasks()
    print("generate, pipeline")


def check_training(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "ours")
    tokenizer = AutoTokenizer.from_pretrained(folder / "ours")
    before = model.get_input_embeddings().weight.detach().clone()
    ids = tokenizer(TEXT)["input_ids"][:32]
    arguments = TrainingArguments(
        str(folder / "trained"),
        max_steps=2,
        per_device_train_batch_size=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 4)
    state = trainer.train()
    assert state.global_step == 2, state
    assert 0 < state.training_loss < 20, state
    assert not torch.equal(before, model.get_input_embeddings().weight)
    trainer.save_model(str(folder / "trained"))
    AutoModelForCausalLM.from_pretrained(folder / "trained")
    print(f"Trainer, two steps: loss {state.training_loss:.2f}")


def check_missing() -> None:
    """Only what an extra shares with the core is here, and each use of the others says which extra has it."""
    import chatgpt_hf
    from chatgpt_hf.evaluation.metrics import load_metric
    from chatgpt_hf.extras import EXTRA_OF
    from chatgpt_hf.reporting.report import plot_curves

    providers = metadata.packages_distributions()
    required = {
        canonicalize_name(requirement.name)
        for distribution in metadata.distributions()
        if distribution.name != "chatgpt-hf"
        for requirement in map(Requirement, distribution.requires or ())
        if "extra ==" not in str(requirement.marker)
    }
    shared = sorted(name for name in EXTRA_OF if importlib.util.find_spec(name) is not None)
    for name in shared:
        assert {canonicalize_name(text) for text in providers[name]} & required, (
            f"{name} is here, and nothing in the core requires it"
        )
    uses = {
        "pretrain": lambda: chatgpt_hf.pretrain,
        "sft": lambda: chatgpt_hf.sft,
        "pack_documents": lambda: chatgpt_hf.pack_documents,
        "a metric": lambda: load_metric("bleu"),
        "a plot": lambda: plot_curves([], Path("curves.png")),
    }
    for what, use in uses.items():
        try:
            use()
        except chatgpt_hf.ChatGPTError as error:
            message = str(error)
        else:
            raise AssertionError(f"{what} works without [train]")
        assert message.endswith("which is not installed: pip install 'chatgpt-hf[train]'"), message
        assert "\n" not in message
        print(f"{what}: {message}")
    print(f"of the extras there is what the core brings: {', '.join(shared)}")


def check_same(first: Path, second: Path) -> None:
    weights = [GPT2LMHeadModel.from_pretrained(folder).state_dict() for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    print("converted there and back, the weights are the same")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--same", nargs=2, metavar=("A", "B"))
    arguments = parser.parse_args()
    if arguments.same:
        check_same(*(arguments.folder / name for name in arguments.same))
        return
    import chatgpt_hf

    assert Path(sys.prefix) in Path(chatgpt_hf.__file__).parents, chatgpt_hf.__file__
    print(f"chatgpt_hf with torch {torch.__version__}, transformers {transformers.__version__}")
    make_models(arguments.folder)
    check_loading(arguments.folder)
    check_generating(arguments.folder)
    check_training(arguments.folder)
    check_missing()


if __name__ == "__main__":
    main()

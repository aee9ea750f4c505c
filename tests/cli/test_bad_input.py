"""What a user can get wrong: one message that names the thing and the remedy, exit code 2, and nothing touched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM

Refused = Callable[..., str]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with what users have lying about."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("Über den Fluß".encode("latin-1"))
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "prompt.jsonl").write_text('{"prompt": "Hi", "completion": "Hello"}\n')
    (tmp_path / "score.jsonl").write_text('{"score": 3, "text": ""}\n')
    (tmp_path / "broken.jsonl").write_text('{"messages": []}\n{"messages": [\n')
    (tmp_path / "questions.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    (tmp_path / "recipe.yaml").write_text("hidden_sise: 32\n")
    (tmp_path / "list.yaml").write_text("- hidden_size\n")
    (tmp_path / "no.yaml").write_text("hidden_size: [32\n")
    (tmp_path / "clash.yaml").write_text("hidden_size: 30\nnum_attention_heads: 4\n")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("Dear all")
    return tmp_path


@pytest.fixture
def pretrain(refused: Refused, pretrain_options: list[str], work: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """`chatgpt-hf pretrain` with something wrong; nothing in the working directory changes."""
    monkeypatch.chdir(work)

    def run(*more: str, recipe: str | None = None) -> str:
        before = contents(work)
        named = [recipe] if recipe else []
        output = [] if "--output_dir" in more else ["--output_dir", "new"]
        message = refused("pretrain", *named, *pretrain_options, *output, *more)
        assert contents(work) == before
        assert not (work / "new").exists()
        return message

    return run


@pytest.fixture
def sft(refused: Refused, sft_options: list[str], work: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """`chatgpt-hf sft`, in the same way."""
    monkeypatch.chdir(work)

    def run(*more: object) -> str:
        before = contents(work)
        message = refused("sft", *sft_options, "--output_dir", "new", *more)
        assert contents(work) == before
        assert not (work / "new").exists()
        return message

    return run


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ("no/such.txt", "no/such.txt is not a file, a folder, a glob that matches"),
        ("empty.txt", "empty.txt is empty: give at least one document"),
        ("blank.txt", "blank.txt is empty: its 1 documents contain only white space"),
        (
            "latin.txt",
            "latin.txt is not UTF-8: invalid continuation byte at byte 0 of its text, in line 1. Add --encoding",
        ),
        ("image.png", "image.png has an unsupported file ending; supported are txt, md, jsonl"),
        ("prompt.jsonl", "prompt.jsonl has no column 'text': set text_column to one of prompt, completion"),
        ("broken.jsonl", "broken.jsonl is broken JSON in line 2"),
        ("letters", "the corpus is a single document without a line end to cut at: give more than one"),
        ("builtin:ruby-docs", "builtin:python-docs"),
    ],
)
def test_corpora(corpus: str, words: str, pretrain: Refused) -> None:
    assert words in pretrain("--corpus", corpus)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vocab_size", "200"], "vocab_size is 200, but the 256 bytes and 4 special tokens need 260"),
        (["--hidden_size", "30", "--num_attention_heads", "4"], "`hidden_size` (30) is not a multiple of `num_atten"),
        (["--depth", "0"], "--depth must be at least 1, got 0"),
        (["--rope_parameters", "{theta}"], "No model has this shape"),
        (["--block_size", "1"], "block_size is 1"),
        (["--hidden_act", "magic"], "`hidden_act` 'magic' is unknown"),
        (["--sliding_window", "0"], "`sliding_window` is 0; it must be at least 1"),
        (["--hiden_size", "32"], "Unknown argument --hiden_size. Did you mean --hidden_size?"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (
            ["--optim", "adamw_torch", "--embedding_learning_rate", "1e-3"],
            "--embedding_learning_rate is for --optim muon and --optim is adamw_torch",
        ),
        (["--streaming", "true"], "--streaming reads the text only once"),
        (["--streaming", "true", "--max_steps", "-1"], "--streaming has no end: give --max_steps"),
        (["--test_fraction", "2"], "test_fraction"),
        (["--eval_corpus", "blank.txt"], "blank.txt is empty"),
        (["--norm_type", "batchnorm"], "invalid choice: 'batchnorm' (choose from"),
        (["--tokenizer", "no/such/tokenizer"], "no/such/tokenizer"),
        (["--output_dir", "letters"], "--output_dir letters is not empty and not a run of ours (it contains one.txt"),
        (["--output_dir", "latin.txt"], "latin.txt is a file"),
        (["--output_dir", "latin.txt/run"], "latin.txt is a file"),
        (["--resume_from_checkpoint", "letters"], "--resume_from_checkpoint letters is not a complete checkpoint"),
    ],
)
def test_pretraining(options: list[str], words: str, pretrain: Refused) -> None:
    assert words in pretrain(*options)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("pretrain-quickstrat", "There is no recipe pretrain-quickstrat: it is not a file, and the package ships"),
        ("latin.txt", "latin.txt is not YAML"),
        ("list.yaml", "list.yaml must hold `field: value` lines"),
        ("no.yaml", "no.yaml is not YAML"),
        ("recipe.yaml", "recipe.yaml sets the unknown field 'hidden_sise'. Did you mean --hidden_size?"),
    ],
)
def test_recipes(recipe: str, words: str, pretrain: Refused) -> None:
    assert words in pretrain(recipe=recipe)


def test_a_recipe_that_contradicts_itself(refused: Refused, corpus_file: Path, work: Path) -> None:
    message = refused(
        "pretrain", work / "clash.yaml", "--corpus", corpus_file, "--vocab_size", "260", "--output_dir", work / "new"
    )
    assert "`hidden_size` (30) is not a multiple of `num_attention_heads` (4)" in message
    assert not (work / "new").exists()


def test_a_model_that_exists_has_its_shape(pretrain: Refused, base_folder: Path) -> None:
    message = pretrain("--model_name_or_path", str(base_folder))
    assert "--hidden_size shapes a new model, but --model_name_or_path names an existing one" in message


def test_a_tokenizer_that_does_not_fit(refused: Refused, base_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    shutil.copytree(base_folder, tmp_path / "model")
    config = ChatGPTConfig(vocab_size=270, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ChatGPTForCausalLM(config).save_pretrained(tmp_path / "model")
    words = "The tokenizer has 300 tokens and the model's `vocab_size` is 270: use the tokenizer that the model was"
    run = ["--output_dir", tmp_path / "new", "--model_name_or_path", tmp_path / "model"]
    assert words in refused("pretrain", *run, "--corpus", corpus_file, "--block_size", "64")
    assert words in refused("sft", *run)
    assert words in refused("generate", tmp_path / "model", "--prompt", "Hi")
    assert words in refused("chat", tmp_path / "model", "--prompt", "Hi")
    assert not (tmp_path / "new").exists()


def test_rows_longer_than_the_context(refused: Refused, base_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    run = ["--output_dir", tmp_path / "new", "--model_name_or_path", base_folder, "--block_size", "129"]
    words = (
        "--block_size 129 is longer than the model's context: `max_position_embeddings` is 128. Give --block_size 128"
    )
    assert words in refused("pretrain", *run, "--corpus", corpus_file)
    assert words in refused("sft", *run)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataset", "no/such.jsonl"], "no/such.jsonl"),
        (
            ["--dataset", "score.jsonl"],
            "score.jsonl cannot be used: it has the columns score, text, which fit no known shape of conversations",
        ),
        (["--dataset", "broken.jsonl"], "broken.jsonl is broken JSON in line 2"),
        (
            ["--dataset", "empty.txt"],
            "empty.txt is a text file without columns: give jsonl, json, csv, tsv or parquet",
        ),
        (["--dataset", "questions.jsonl"], "None of the 1 conversations has an assistant turn to learn from"),
        (["--block_size", "8"], "has an assistant turn to learn from within 8 tokens"),
        (["--model_name_or_path", "letters"], "letters"),
        (["--model_name_or_path", "nobody/nothing"], "nobody/nothing"),
    ],
)
def test_fine_tuning(options: list[str], words: str, sft: Refused) -> None:
    assert words in sft(*options)


def test_fine_tuning_needs_a_model(refused: Refused, chats_file: Path, tmp_path: Path) -> None:
    message = refused("sft", "--dataset", chats_file, "--output_dir", tmp_path / "new")
    assert message == "--model_name_or_path is missing: name the base model to fine-tune.\n"


@pytest.mark.parametrize("command", ["sft", "dpo", "reward", "grpo", "distill", "finetune"])
def test_a_base_model_has_its_depth(command: str, refused: Refused, base_folder: Path) -> None:
    message = refused(command, "--model_name_or_path", base_folder, "--depth", "2", "--dataset", "rows.jsonl")
    assert message == (
        "--depth sizes a new model, as pretrain makes one; this training starts from --model_name_or_path.\n"
    )


def test_a_base_model_is_not_talked_to(refused: Refused, base_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base_folder, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    assert "no chat template: this is a base model. Fine-tune it first" in refused("chat", folder, "--prompt", "Hi")


# Models that cannot be talked to


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: weight for name, weight in weights.items() if weight is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        "does not contain a model: config.json is missing",
    ),
    "contradiction": (
        lambda f: edit_config(f, num_attention_heads=3),
        "config.json cannot be used: `num_attention_heads`",
    ),
    "missing weights": (
        lambda f: edit_weights(f, **{"model.norm.weight": None}),
        "1 weights are missing, including model.norm",
    ),
    "mis-shaped weights": (
        lambda f: edit_weights(f, **{"model.norm.weight": torch.ones(3)}),
        "model.norm.weight has the shape (3,), config.json asks for (64,)",
    ),
    "truncated weights": (truncate, "model.safetensors is not a complete safetensors file"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    "broken tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_models(name: str, refused: Refused, chat_folder: Path, chats_file: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(chat_folder, tmp_path / "model"))
    break_it, words = BROKEN[name]
    break_it(folder)
    before = contents(tmp_path)
    assert words in refused("chat", folder, "--prompt", "Hi")
    assert words in refused("generate", folder, "--prompt", "Hi")
    new = ["--output_dir", tmp_path / "new", "--dataset", chats_file, "--block_size", "64"]
    assert words in refused("sft", "--model_name_or_path", folder, *new)
    if "tokenizer" not in name:
        assert words in refused("convert", folder, tmp_path / "new")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["chat", "generate"])
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nobody/nothing", "No model could be loaded from nobody/nothing"),
        ("/no/such/folder", "There is no folder /no/such/folder"),
        ("model", "No model could be loaded from model"),
    ],
)
def test_models_that_are_not_there(command: str, model: str, words: str, refused: Refused) -> None:
    message = refused(command, model, "--prompt", "Hi")
    assert words in message
    assert "Hub" in message
    assert message.count("\n") == 1


# Generation


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature", "-1"], "temperature is -1.0; it must be above 0"),
        (["--temperature", "nan"], "temperature is nan; it must be above 0"),
        (["--temperature", "1", "--top_p", "2"], "top_p is 2.0; it must be above 0 and at most 1"),
        (["--temperature", "1", "--top_k", "-5"], "top_k is -5; it must be a whole number"),
        (["--max_new_tokens", "0"], "`max_new_tokens` must be greater than 0"),
    ],
)
def test_generation_parameters(options: list[str], words: str, refused: Refused, chat_folder: Path) -> None:
    assert words in refused("generate", chat_folder, "--prompt", "Hi", *options)
    if "--top_p" not in options and "--top_k" not in options:
        assert words in refused("chat", chat_folder, "--prompt", "Hi", *options)


def test_prompts_longer_than_the_context(refused: Refused, chat_folder: Path) -> None:
    long = "a b " * 200
    tokens = len(AutoTokenizer.from_pretrained(chat_folder)(long)["input_ids"])
    message = refused("generate", chat_folder, "--prompt", long)
    assert f"The prompt takes {tokens + 1} tokens, but the model's context is 128" in message
    assert "shorten the message, or lower max_new_tokens" in refused("chat", chat_folder, "--prompt", long)


# Conversion and tokenizers


def test_conversion(refused: Refused, base_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "--to gtp2 is unknown; choose from chatgpt, gpt2" in refused(
        "convert", base_folder, tmp_path / "new", "--to", "gtp2"
    )
    for folder in (tmp_path, tmp_path / "mine.txt"):
        assert "is not an empty folder. Nothing was written" in refused("convert", base_folder, folder)
    # GPT-2 has no rotary positions.
    message = refused("convert", base_folder, tmp_path / "new", "--to", "gpt2")
    assert "GPT-2 cannot express `position_embedding_type='rope'`" in message
    assert contents(tmp_path) == {"mine.txt": b"mine"}
    assert not (tmp_path / "new").exists()


def test_tokenizers(refused: Refused, corpus_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    train = ["tokenizer", "train", "--corpus", corpus_file]
    assert "is not an empty folder" in refused(*train, "--output_dir", tmp_path)
    assert "need 260" in refused(*train, "--vocab_size", "100", "--output_dir", tmp_path / "new")
    assert "no/such.txt" in refused("tokenizer", "train", "--corpus", "no/such.txt", "--output_dir", tmp_path / "new")
    assert "no tokenizer" in refused("tokenizer", "show", tmp_path, "text")
    assert contents(tmp_path) == {"mine.txt": b"mine"}
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command nonsense."),
        (["chat"], "Missing argument MODEL: Folder or Hub id of a chat model."),
        (["generate", "folder", "--nonsense"], "Unknown argument --nonsense."),
        (["convert", "one"], "Missing argument OUTPUT_DIR: Folder to write: new, or empty."),
    ],
)
def test_usage(arguments: list[str], words: str, cli: Callable[..., Any]) -> None:
    result = cli(*arguments)
    assert (result.code, result.out, result.err) == (2, "", f"error: {words}\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--format", "pickle"],
            "--format pickle is unknown; choose from onnx, openvino, executorch, torch-export, gguf",
        ),
        (
            ["--format", "gguf"],
            "None of llama.cpp's layouts fits this model. The nearest is qwen3: qwen3 cannot express",
        ),
        (["--format", "onnx", "--outtype", "q8_0"], "--outtype q8_0 is for --format gguf"),
        (["--format", "onnx", "--output_dir", "letters"], "letters is not an empty folder"),
    ],
)
def test_exports(
    options: list[str], words: str, refused: Refused, base_folder: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    before = contents(work)
    assert words in refused("export", base_folder, *options)
    assert contents(work) == before

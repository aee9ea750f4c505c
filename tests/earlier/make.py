"""Makes the stored artefacts. Run once by hand, with version 0.1.0 of the package, on 2026-11-30.

Not to be run again: what is stored is what that state made, and later ones are held against it. `--check` rebuilds all
of it in a temporary folder, looks at it with the code as it is now, and prints the largest difference for each artefact:
0.0 on the machine that made them (an x86-64 CPU, torch 2.13.0, one thread), rounding on another. The perplexity of resumed
pretrainings differs by 4e-5 of its value, because the last window of a text begins elsewhere since.

    OMP_NUM_THREADS=1 python tests/earlier/make.py --check
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

CACHE = tempfile.mkdtemp(prefix="chatgpt-hf-earlier-")
os.environ |= {
    "HF_HOME": CACHE,
    "CHATGPT_HF_CACHE": os.path.join(CACHE, "rows"),
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
}

import artefacts
import observations
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, load_tokenizer, train_tokenizer
from chatgpt_hf.training.arguments import parse_recipe
from chatgpt_hf.training.recipe import recipes_folder

COMMON = "--use_cpu true --logging_steps 1 --disable_tqdm true --seed 0"
SAVED = f"{COMMON} --max_steps 6 --save_steps 3 --save_strategy steps"
SHAPE = "--block_size 48 --hidden_size 8 --num_hidden_layers 1 --num_attention_heads 2 --residual_dropout 0.1"
PRETRAIN = f"--corpus corpus.jsonl --tokenizer tokenizer {SHAPE} --per_device_train_batch_size 2 --eval_strategy steps {SAVED}"
PRETRAIN += (
    " --eval_steps 3 --learning_rate 0.02 --gradient_accumulation_steps 2 --test_fraction 0.1 --eval_documents 4"
)
CHAT = f"--model_name_or_path trained/finite --dataset chats.jsonl --block_size 48 --per_device_train_batch_size 2 {SAVED}"
TASK = f"--model_name_or_path trained/finite --max_length 32 --per_device_train_batch_size 4 {COMMON} --baseline false"
FINISHED = f"{TASK} --max_steps 8 --save_strategy no --learning_rate 0.02"
TOPICS = "--task text-classification --dataset topics.jsonl --test_fraction 0.3 --class_weights true"
LORA = "--use_peft true --lora_r 2 --lora_dropout 0.1"
PAIRS = "--dataset pairs.jsonl --test_fraction 0.4 --max_new_tokens 8"

# Command, arguments. All paths are relative, so that the runs can be resumed in any folder.
RUNS = {
    "trained/finite": ("pretrain", PRETRAIN),
    # So large a batch that the checkpoint lies in the second window, and rows were carried into it.
    "trained/streaming": ("pretrain", f"{PRETRAIN} --streaming true --per_device_train_batch_size 64"),
    "trained/chat": ("sft", f"{CHAT} --optim adamw_torch --learning_rate 0.01"),
    "trained/adapter": ("sft", f"{CHAT} {LORA} --optim adamw_torch_fused --learning_rate 0.02"),
    "trained/topics": ("finetune", f"{TASK} {SAVED} {TOPICS} --eval_strategy steps --eval_steps 3"),
    "models/tags": ("finetune", f"{FINISHED} --task token-classification --dataset tags.conll --test_fraction 0.3"),
    "models/answers": (
        "finetune",
        f"{FINISHED} --task question-answering --dataset questions.jsonl --test_fraction 0.3 --stride 8",
    ),
    "models/translation": ("finetune", f"{FINISHED} --task translation {PAIRS}"),
    "models/summarization": ("finetune", f"{FINISHED} --task summarization {PAIRS} --optim adamw_torch"),
    "models/choices": ("finetune", f"{FINISHED} --task multiple-choice --dataset choices.jsonl --test_fraction 0.4"),
}
TEMPLATES = ["--prompt_template", "{en}\n", "--completion_template", "{zh}"]

# Command, recipe (one of ours, or None), overrides.
COMMAND_LINES: list[tuple[str, str | None, list[str]]] = [
    ("pretrain", None, ["--depth", "2", "--per_device_train_batch_size", "4"]),
    (
        "pretrain",
        None,
        ["--depth", "3", "--per_device_train_batch_size", "2", "--vocab_size", "512", "--max_steps", "50"],
    ),
    (
        "pretrain",
        None,
        ["--depth", "1", "--per_device_train_batch_size", "8", "--optim", "adamw_torch", "--num_train_epochs", "2"],
    ),
    ("pretrain", "pretrain-quickstart", ["--max_steps", "7", "--optim", "adamw_torch", "--learning_rate", "1e-3"]),
    (
        "pretrain",
        "shakespeare-char",
        [
            "--ngram_vocab_sizes",
            "64",
            "128",
            "256",
            "--tie_word_embeddings",
            "true",
            "--streaming",
            "--warmup_steps",
            "0.1",
        ],
    ),
    (
        "pretrain",
        None,
        [
            *("--corpus", "a.txt", '{"source": "b.jsonl", "weight": 2.5, "text_column": "body"}'),
            *("--rope_parameters", '{"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}'),
            *("--layer_types", "full_attention", "sliding_attention", "--sliding_window", "8"),
            *("--lr_scheduler_kwargs", '{"num_decay_steps": 3}', "--norm_eps", "1e-5", "--qk_norm", "false"),
            *("--final_logit_softcapping", "30", "--embedding_learning_rate", "0.1", "--muon_momentum", "0.9"),
        ],
    ),
    ("sft", "sft-lora", ["--lora_target_modules", "q_proj", "v_proj", "--use_dora", "true", "--lora_dropout", "0"]),
    (
        "sft",
        "sft-quickstart",
        ["--dataset", "a.jsonl", "b.jsonl", "--repetition_penalty", "1.2", "--long_conversations", "keep"],
    ),
    (
        "sft",
        None,
        [
            "--model_name_or_path",
            "base",
            "--bf16",
            "false",
            "--lr_scheduler_type",
            "cosine",
            "--report_to",
            "tensorboard",
        ],
    ),
    ("finetune", "wnut17", ["--label_map", '{"person": "PER", "group": "O"}', "--class_weights", "true"]),
    ("finetune", "translate-en-zh", ["--generation_metrics", '{"bleu": {"tokenize": "zh"}, "chrf": {}}']),
    (
        "finetune",
        "sst2",
        ["--column_names", "text", "label", "--freeze_base", "--seed", "3", "--early_stopping_patience", "2"],
    ),
]


def make_data(root: Path) -> None:
    """The rows, and the tokenizer that all models share."""
    artefacts.write_data(root)
    texts = [json.loads(line)["text"] for line in (root / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    train_tokenizer(texts, 276, show_progress=False).save_pretrained(root / "tokenizer")


def make_runs() -> None:
    """Every run, in the current folder."""
    for folder, (command, _) in RUNS.items():
        types, run = observations.COMMANDS[command]
        run(*parse_recipe(types, None, words(folder)))


def make_models(root: Path) -> None:
    """Models of other shapes, with the weights that they start with."""
    common: dict[str, Any] = {"vocab_size": 276, "num_attention_heads": 2, "max_position_embeddings": 32}
    common |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "hidden_size": 8, "initializer_range": 0.3}
    torch.manual_seed(0)
    extras = {"embedding_norm": True, "embedding_residual": True, "tie_word_embeddings": False}
    shapes = {
        "ngrams": ChatGPTConfig(
            num_hidden_layers=2, ngram_vocab_sizes=[16, 24], conv_kernel_size=3, **extras, **common
        ),
        "grouped": ChatGPTConfig(
            num_hidden_layers=2,
            num_key_value_heads=1,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
            final_logit_softcapping=5.0,
            gated_mlp=True,
            intermediate_size=16,
            hidden_act="silu",
            classifier_pooling="mean",
            **common,
        ),
        "gpt2-layout": ChatGPTConfig.gpt2(num_hidden_layers=1, **common),
    }
    for name, config in shapes.items():
        ChatGPTForCausalLM(config).save_pretrained(root / "models" / name)
        load_tokenizer(root / "tokenizer").save_pretrained(root / "models" / name)
    gpt2 = GPT2Config(vocab_size=276, n_positions=32, n_embd=8, n_layer=1, n_head=2, initializer_range=0.3)
    gpt2.bos_token_id = gpt2.eos_token_id = 0
    GPT2LMHeadModel(gpt2).save_pretrained(root / "models" / "gpt2")
    load_tokenizer(root / "tokenizer").save_pretrained(root / "models" / "gpt2")


def recipes() -> dict[str, Any]:
    """What recipes resolve to: the shipped ones, command lines, and those that the runs wrote; differences from no recipe."""
    texts = {file.stem: file.read_text(encoding="utf-8") for file in sorted(recipes_folder().glob("*.yaml"))}
    defaults = {command: observations.resolved(command) for command in observations.COMMANDS}
    lines: list[tuple[str, str | None, list[str]]] = [(kind(name, text), name, []) for name, text in texts.items()]

    def different(command: str, recipe: str | None, overrides: list[str]) -> dict[str, Any]:
        found = observations.resolved(command, recipe, overrides)
        return {name: value for name, value in found.items() if value != defaults[command][name]}

    return {
        "texts": texts,
        "defaults": defaults,
        "upstream": {command: observations.upstream_defaults(command) for command in observations.COMMANDS},
        "resolved": [
            {
                "command": command,
                "recipe": name,
                "overrides": overrides,
                "differs": different(command, name, overrides),
            }
            for command, name, overrides in lines + COMMAND_LINES
        ],
        "runs": {
            folder: {"command": command, "differs": different(command, None, words(folder))}
            for folder, (command, _) in RUNS.items()
        },
    }


def words(folder: str) -> list[str]:
    """The command line of a run."""
    arguments = RUNS[folder][1]
    return [*arguments.split(), *(TEMPLATES if "pairs.jsonl" in arguments else []), "--output_dir", folder]


def kind(name: str, text: str) -> str:
    """The command that a shipped recipe is for."""
    return next(command for command in observations.COMMANDS if f"# chatgpt-hf {command} {name}" in text)


def make() -> None:
    """Makes and stores everything."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make_data(root)
        with chdir(root):
            make_runs()
        make_models(root)
        expected = {"resumed": {folder: observations.steps(root, folder) for folder in observations.RUNS}}
        expected |= observations.observe(root)
        left_out = {}
        for folder in ("tokenizer", *RUNS, *(f"models/{n}" for n in ("ngrams", "grouped", "gpt2-layout", "gpt2"))):
            names = [*artefacts.LEFT_OUT]
            if folder in observations.RUNS:
                _, first, last = observations.RUNS[folder]
                names += [f"checkpoint-{last}", *(f"checkpoint-{first}/{name}" for name in artefacts.LEFT_OUT)]
            left_out[folder] = names
        artefacts.store(root, left_out, expected)
        text = json.dumps(recipes(), indent=1, ensure_ascii=False) + "\n"
        (artefacts.STORED / "recipes.json").write_text(text, encoding="utf-8")


def check() -> None:
    """Prints the largest difference between what was seen then and what is seen now, for each artefact."""
    expected = artefacts.read_expected()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        artefacts.write_data(root)
        artefacts.rebuild_all(root)
        found: dict[str, Any] = observations.observe(root)
        found["load_model"] = {folder: observations.through_our_loader(root, folder) for folder in expected["models"]}
        found["our pipelines"] = observations.through_our_pipelines(root)
        expected["load_model"] = expected["models"]
        expected["our pipelines"] = {folder: expected["pipelines"][folder] for folder in found["our pipelines"]}
        found["resumed"], found["weights"], expected["weights"] = {}, {}, {}
        for folder in observations.RUNS:
            expected["weights"][folder] = observations.final_weights(root, folder)
            found["resumed"][folder] = observations.resume(root, folder)
            # Runs report more figures today.
            results = found["resumed"][folder]["results"]
            found["resumed"][folder]["results"] = {
                name: results[name] for name in expected["resumed"][folder]["results"]
            }
            found["weights"][folder] = observations.final_weights(root, folder)
    for name, content in expected.items():
        for folder in content:
            difference = artefacts.largest_difference(found[name][folder], content[folder])
            print(f"{difference:8.1e}  {name} {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    try:
        check() if parser.parse_args().check else make()
    finally:
        shutil.rmtree(CACHE, ignore_errors=True)
        sys.stdout.flush()

"""Fine-tuning on different kinds of conversations."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, load_model, sft
from chatgpt_hf.data.conversations import Conversations, load_conversations, tokenize_conversations
from chatgpt_hf.data.packing import pack_documents
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.tokenization_chatgpt import CHAT_TEMPLATE, encode_conversation, load_tokenizer
from chatgpt_hf.training import conversation_run
from chatgpt_hf.training import sft as module
from chatgpt_hf.training.arguments import ChatModelArguments, ChatSFTArguments, ConversationArguments, parse_recipe

TYPES = (ChatModelArguments, ConversationArguments, ChatSFTArguments)


def run(options: list[str], folder: Path, *more: object) -> dict[str, Any]:
    return sft(*parse_recipe(TYPES, None, [*options, "--output_dir", str(folder), *map(str, more)]))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(file: Path, conversations: list[Any]) -> Path:
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations), encoding="utf-8")
    return file


def test_conversations_of_every_kind(sft_options: list[str], tmp_path: Path) -> None:
    """Conversations without an answer to evaluate are still used for training."""
    rows = [
        [user("Hello!"), assistant("Hi")],
        [user("Hello!"), assistant("Hi"), user("And?")],
        [user("Alone")],
        [assistant("First")],
        [{"role": "system", "content": "Be brief."}, user("a"), assistant("b"), user("c"), assistant("d")],
        [user("long " * 100), assistant("beyond the row")],
    ]
    figures = run(sft_options, tmp_path / "run", "--dataset", write(tmp_path / "rows.jsonl", rows))
    assert 0 < figures["share_of_tokens_learned"] < 0.5
    assert 0 <= figures["trained_exact_match"] <= 1
    assert (tmp_path / "run" / "results.json").is_file()


def test_no_answer_to_measure(sft_options: list[str], tmp_path: Path) -> None:
    rows = [[user("Hello!"), assistant("Hi"), user("And?")]] * 2
    figures = run(sft_options, tmp_path / "run", "--dataset", write(tmp_path / "rows.jsonl", rows))
    assert not [name for name in figures if name.startswith("trained_")]


def test_the_number_of_answers(sft_options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    measure = conversation_run.evaluate_answers

    def counted(model: Any, tokenizer: Any, conversations: Any, **options: Any) -> Any:
        asked.append((options["desc"], len(conversations)))
        return measure(model, tokenizer, conversations, **options)

    monkeypatch.setattr(conversation_run, "evaluate_answers", counted)
    figures = run(sft_options, tmp_path / "run", "--evaluate_answers", "2")
    assert asked == [("Answering (trained)", 2)]
    assert "trained_rouge_l" in figures
    figures = run(sft_options, tmp_path / "none", "--evaluate_answers", "0")
    assert len(asked) == 1
    assert not [name for name in figures if name.startswith("trained_")]
    assert (tmp_path / "none" / "README.md").is_file()
    with pytest.raises(ConfigError, match="--evaluate_answers is -1: give 0 to skip the answers, or more"):
        run(sft_options, tmp_path / "bad", "--evaluate_answers", "-1")
    with pytest.raises(ConfigError, match="--evaluate_base needs answers to compare, and --evaluate_answers is 0"):
        run(sft_options, tmp_path / "bad", "--evaluate_answers", "0", "--evaluate_base", "true")
    assert not (tmp_path / "bad").exists()


def test_the_held_out_part_is_measured_and_not_learned(
    sft_options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train = Dataset.from_list([{"messages": [user("Hello!"), assistant("Hi! How are you?")]}] * 4)
    test = Dataset.from_list([{"messages": [user("Smile"), assistant("No")]}])
    read = Conversations(DatasetDict(train=train, test=test), [])
    monkeypatch.setattr(conversation_run, "read_conversations", lambda sources, **options: read)
    seen = []
    packing = module.pack_documents
    monkeypatch.setattr(module, "pack_documents", lambda rows, *a, **k: seen.append(rows) or packing(rows, *a, **k))
    figures = run(sft_options, tmp_path / "run", "--max_steps", "30", "--optim", "adamw_torch")
    assert [len(rows) for rows in seen] == [4, 1]
    assert figures["train_loss"] < figures["held_out_loss"]
    assert figures["trained_exact_match"] == 1
    assert figures["held_out_exact_match"] == 0
    samples = (tmp_path / "run" / "report" / "samples.md").read_text(encoding="utf-8")
    assert "(held_out)\nQ: Smile\n" in samples


def test_the_base_model_beside_it(sft_options: list[str], tmp_path: Path) -> None:
    options = ["--max_steps", "60", "--optim", "adamw_torch", "--per_device_train_batch_size", "8"]
    figures = run(sft_options, tmp_path / "run", *options, "--evaluate_base", "true")
    assert figures["base_trained_exact_match"] == 0
    assert figures["base_trained_well_formed"] < figures["trained_well_formed"] == 1
    alone = run(sft_options, tmp_path / "alone", *options)
    assert "base_trained_exact_match" not in alone
    # The comparison changes nothing in the training.
    assert {name: figures[name] for name in alone if "time" not in name and "second" not in name} == {
        name: value for name, value in alone.items() if "time" not in name and "second" not in name
    }


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [("ours", "eager"), ("ours", "sdpa"), ("ours", "flex_attention"), ("gpt2", "eager"), ("gpt2", "sdpa")],
)
def test_no_conversation_sees_another_in_its_row(
    attention: str, architecture: str, base_folder: Path, chats_file: Path
) -> None:
    """Rows as in fine-tuning: a conversation's logits do not depend on its neighbors in the row."""
    tokenizer = load_tokenizer(str(base_folder))
    conversations = load_conversations(parse_sources(str(chats_file)))["train"]
    tokenized = tokenize_conversations(conversations, tokenizer, max_length=128, long_conversations="cut")
    rows = pack_documents(tokenized, 128, pad_token_id=tokenizer.pad_token_id, split_long=False, seed=0)
    if architecture == "ours":
        model = load_model(base_folder, attn_implementation=attention)
    else:
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128)
        model = GPT2LMHeadModel._from_config(config, attn_implementation=attention)
    model.eval()
    seen = 0
    for row in rows:
        ids, positions = (torch.tensor(row[name]) for name in ("input_ids", "position_ids"))
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        for start, end in pairwise(starts):
            poisoned = torch.full_like(ids, 7)
            poisoned[start:end] = ids[start:end]
            with torch.no_grad():
                # As in Trainer; with a cache, transformers' GPT-2 would attend to the neighbors.
                alone = model(ids[None, start:end], use_cache=False).logits
                for packed in (ids, poisoned):
                    logits = model(packed[None], position_ids=positions[None], use_cache=False).logits[:, start:end]
                    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)
            seen += 1
    assert seen >= len(tokenized) == 5
    assert len(rows) < 5


def test_only_the_assistants_words_are_learned(sft_options: list[str], base_folder: Path, tmp_path: Path) -> None:
    """The user's words may be anything: they are context, not targets."""
    rows = [[user("qqqq zzzz xxxx"), assistant("yes")]] * 4
    run(sft_options, tmp_path / "run", "--dataset", write(tmp_path / "r.jsonl", rows), "--max_steps", "20")
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    ids = torch.tensor([tokenizer.apply_chat_template(rows[0], return_dict=True)["input_ids"]])
    with torch.no_grad():
        before, after = (
            torch.nn.functional.cross_entropy(
                load_model(path).eval()(ids).logits[0, :-1], ids[0, 1:], reduction="none"
            )
            for path in (base_folder, tmp_path / "run")
        )
    learned = torch.tensor(
        tokenizer.apply_chat_template(rows[0], return_assistant_tokens_mask=True, return_dict=True)["assistant_masks"]
    )[1:].bool()
    assert after[learned].mean() < 0.5 * before[learned].mean()
    assert after[~learned].mean() > 0.8 * before[~learned].mean()


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_a_base_of_few_positions_without_padding(
    positions: str, sft_options: list[str], base_folder: Path, tmp_path: Path
) -> None:
    """The evaluated answers stop at the end of the context."""
    folder = Path(shutil.copytree(base_folder, tmp_path / "base"))
    config = ChatGPTConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        position_embedding_type=positions,
    )
    ChatGPTForCausalLM(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    run(sft_options, tmp_path / "run", "--model_name_or_path", folder)
    assert (tmp_path / "run" / "results.json").is_file()


def test_a_base_without_a_chat_template(shared_data: Path, tmp_path: Path) -> None:
    """GPT-2's own tokenizer gets the tokens for chats, and the model gets rows for them."""
    base = tmp_path / "gpt2"
    tokenizer = load_tokenizer(shared_data / "gpt2_tokenizer")
    tokenizer.save_pretrained(base)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=128))
    model.save_pretrained(base)
    rows = write(tmp_path / "rows.jsonl", [[user("Say <|im_end|> twice"), assistant("No, 不行")]] * 8)
    options = ["--model_name_or_path", str(base), "--dataset", str(rows), "--block_size", "64", "--max_steps", "1"]
    run(
        [*options, "--learning_rate", "0", "--per_device_train_batch_size", "1", "--repetition_penalty", "1.1"],
        tmp_path / "run",
    )

    chat = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert len(chat) == len(tokenizer) + 3 == 50260
    assert chat.pad_token_id != chat.eos_token_id
    assert chat.chat_template == CHAT_TEMPLATE
    ids = encode_conversation(chat, [user("Say <|im_end|> twice"), assistant("No")])["input_ids"]
    assert ids.count(chat.convert_tokens_to_ids("<|im_end|>")) == 2
    trained = load_model(tmp_path / "run")
    table = trained.get_input_embeddings().weight
    torch.testing.assert_close(table[50257:], model.transformer.wte.weight.mean(0).expand(3, -1))
    torch.testing.assert_close(table[:50257], model.transformer.wte.weight)
    assert trained.get_output_embeddings().weight is table
    assert chat.convert_tokens_to_ids("<|im_end|>") in trained.generation_config.eos_token_id
    assert trained.generation_config.repetition_penalty == 1.1


def test_the_held_out_part_is_watched(sft_options: list[str], tmp_path: Path) -> None:
    """The evaluations during training change nothing in it, and the report has the held-out loss."""
    rows = [[user(f"How much is {n}?"), assistant(str(n))] for n in range(6)]
    options = [*sft_options, "--dataset", str(write(tmp_path / "rows.jsonl", rows)), "--test_fraction", "0.3"]
    watch = ["--eval_strategy", "steps", "--eval_steps", "2"]
    figures = run(options, tmp_path / "run", *watch)
    plain = run(options, tmp_path / "plain")
    assert figures["held_out_loss"] == plain["held_out_loss"]
    assert figures["train_loss"] == plain["train_loss"]
    trained, alone = (load_model(tmp_path / name).state_dict() for name in ("run", "plain"))
    assert all(torch.equal(trained[name], alone[name]) for name in alone)
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    losses = [entry["eval_loss"] for entry in report["log_history"] if "eval_loss" in entry]
    assert len(losses) == 3
    assert losses[-1] == figures["held_out_loss"] == losses[-2] != losses[0]
    assert "held_out_loss" in (tmp_path / "run" / "report" / "report.md").read_text(encoding="utf-8")


def test_the_best_checkpoint_is_kept(sft_options: list[str], tmp_path: Path) -> None:
    """With a rate far too high, the held-out loss is best at the first checkpoint."""
    rows = [[user("Say it"), assistant("yes")]] * 4
    other = write(tmp_path / "other.jsonl", [[user("Say it"), assistant("qqqq zzzz")]])
    options = ["--dataset", write(tmp_path / "rows.jsonl", rows), "--eval_dataset", other, "--eval_strategy", "steps"]
    options += [
        "--eval_steps",
        "1",
        "--save_strategy",
        "steps",
        "--save_steps",
        "1",
        "--load_best_model_at_end",
        "true",
    ]
    figures = run(sft_options, tmp_path / "run", *options, "--optim", "adamw_torch", "--lr_scheduler_type", "constant")
    history = json.loads((tmp_path / "run" / "report" / "report.json").read_text())["log_history"]
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry][:-1]
    assert figures["held_out_loss"] == pytest.approx(min(losses))
    assert min(losses) < losses[-1]


def test_conversations_to_measure_on_of_another_source(
    sft_options: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = write(tmp_path / "a.jsonl", [[user("Hello!"), assistant("Hi")], [user("Bye"), assistant("See you")]])
    test = write(tmp_path / "b.jsonl", [[user("Hello!"), assistant("Hi")], [user("Smile"), assistant("No")]])
    figures = run(sft_options, tmp_path / "run", "--dataset", train, "--eval_dataset", test, "--max_steps", "1")
    assert "held_out_exact_match" in figures
    assert "1 of 2 held-out conversations are also training conversations" in caplog.text


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_nothing_to_watch(strategy: str, sft_options: list[str], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"--eval_strategy {strategy} needs .*--test_fraction 0.05 or an --eval_data"
    ):
        run(sft_options, tmp_path / "run", "--eval_strategy", strategy)
    with pytest.raises(ConfigError, match="--load_best_model_at_end needs --eval_strategy"):
        run(sft_options, tmp_path / "run", "--load_best_model_at_end", "true")
    assert not (tmp_path / "run").exists()

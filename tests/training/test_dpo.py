"""Learning from preferences: TRL's mathematics on our rows, from the model as it was handed over."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, KTOConfig

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, load_model
from chatgpt_hf.checkpoints import extend_vocabulary
from chatgpt_hf.data.conversations import tokenize_conversations
from chatgpt_hf.errors import ChatGPTError, ConfigError
from chatgpt_hf.tokenization_chatgpt import load_tokenizer
from chatgpt_hf.training import dpo as module
from chatgpt_hf.training.arguments import parse_recipe
from chatgpt_hf.training.dpo import DPORun, JudgedCollator, PairCollator, dpo
from chatgpt_hf.training.optim import MuonAdamW
from chatgpt_hf.training.preference_arguments import DPOArguments, PreferenceArguments, PreferenceModelArguments
from chatgpt_hf.training.preference_losses import JUDGED_LOSSES, PAIR_LOSSES, first_loss
from chatgpt_hf.training.preferences import silence_attention_dropout

from .watched import RESUME, Training, Watched

TYPES = (PreferenceModelArguments, PreferenceArguments, DPOArguments)
LN_2 = math.log(2)


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def pairs(pairs_file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in pairs_file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def options(pair_options: list[str]) -> list[str]:
    return [*pair_options, "--sample_answers", "0"]


@pytest.fixture(scope="module")
def judged(options: list[str], pairs: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same with judged answers."""
    sides = ("chosen", "rejected")
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in sides
    ]
    return [*options, "--dataset", str(write(tmp_path_factory.mktemp("judged") / "judged.jsonl", rows))]


class WatchedRun(Watched, DPORun):
    pass


training = Training(TYPES, WatchedRun)
run, start = training.run, training.start


def learned(watched: Watched, name: str, steps: int = 5) -> list[float]:
    """The losses of some steps on one batch, from the weights of the start."""
    trainer = watched.trainer
    trainer.loss_types = watched.arguments.loss_type = [name]
    model = trainer.model.train()
    model.load_state_dict(watched.reference.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = next(iter(trainer.get_train_dataloader()))
    values = []
    for _ in range(steps):
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    return values


def changed(model: Any) -> Any:
    """A model as it may be after work in memory: other weights and a larger vocabulary than those of its folder."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    extend_vocabulary(model, model.config.vocab_size + 3)
    return model


@pytest.mark.parametrize(
    ("in_memory", "more"),
    [(False, []), (True, []), (True, ["--use_peft", "true"]), (True, ["--precompute_ref_log_probs", "true"])],
)
@pytest.mark.usefixtures("without_report")
def test_the_reference_is_the_model_as_it_was_handed_over(
    in_memory: bool, more: list[str], options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_memory:
        monkeypatch.setattr(module, "load_model", lambda *a, **k: changed(load_model(*a, **k)))
    watched = run(options, tmp_path / "run", *more, "--test_fraction", "0")
    assert watched.logged()[0] == pytest.approx(LN_2, abs=1e-5)
    for name in ("rewards/margins", "rewards/chosen", "rewards/rejected"):
        assert watched.logged(name)[0] == pytest.approx(0, abs=1e-5)
    assert watched.logged()[1] != pytest.approx(LN_2, abs=1e-5)


def test_each_loss_of_pairs_is_learned_from_where_the_guard_expects_it(options: list[str], tmp_path: Path) -> None:
    watched = start(options, tmp_path / "run")
    watched.trainer.label_smoothing = watched.arguments.label_smoothing = 0.1
    for name, begins in PAIR_LOSSES.items():
        first, *others = learned(watched, name)
        expected = first_loss(watched.arguments, watched.model.config.vocab_size)
        if begins is None:
            assert 0 < first < expected
        else:
            assert first == pytest.approx(expected, rel=1e-4), name
        assert min(others) < first, name
    watched.arguments.loss_type, watched.arguments.loss_weights = ["sigmoid", "ipo"], [2.0, 0.5]
    assert first_loss(watched.arguments, 9) == pytest.approx(2 * LN_2 + 0.5 * 25)


def test_the_losses_are_those_that_trl_lists() -> None:
    (described,) = [item.metadata["help"] for item in fields(DPOConfig) if item.name == "loss_type"]
    assert set(re.findall(r"`'(\w+)'`", described)) == set(PAIR_LOSSES)
    (choices,) = [item.metadata["choices"] for item in fields(KTOConfig) if item.name == "loss_type"]
    assert tuple(choices) == JUDGED_LOSSES
    # The arguments of one command are given to either trainer.
    assert {item.name for item in fields(KTOConfig)} <= {item.name for item in fields(DPOArguments)}


@pytest.mark.parametrize("loss", ["ipo", "sppo_hard", *JUDGED_LOSSES])
@pytest.mark.usefixtures("without_report")
def test_losses_that_are_no_cross_entropies_are_learned(
    loss: str, options: list[str], judged: list[str], tmp_path: Path
) -> None:
    more = ["--loss_type", loss, "--max_steps", "20", "--test_fraction", "0"]
    folder = tmp_path / "run"
    watched = run(judged if loss in JUDGED_LOSSES else options, folder, *more, "--warmup_steps", "0")
    logged = watched.logged()
    assert len(logged) == 20
    assert sum(logged[-4:]) < sum(logged[:4])
    assert (folder / "model.safetensors").is_file()
    # TRL would write a card.
    assert not (folder / "README.md").exists()


def test_what_is_scored_is_what_fine_tuning_learns(
    options: list[str], pairs: list[dict[str, str]], chat_folder: Path, tmp_path: Path
) -> None:
    watched = start(options, tmp_path / "run", "--test_fraction", "0")
    tokenizer = load_tokenizer(chat_folder)
    conversations = [
        [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[side]}]
        for side in ("chosen", "rejected")
        for pair in pairs
    ]
    rows = tokenize_conversations(Dataset.from_list([{"messages": messages} for messages in conversations]), tokenizer)
    batch = watched.trainer.data_collator(list(watched.rows))
    for row, ids, scored in zip(rows, batch["input_ids"], batch["completion_mask"], strict=True):
        expected = [token for token in row["labels"] if token != -100]
        assert ids[scored.bool()].tolist() == expected
        length = len(row["labels"]) - [label != -100 for label in reversed(row["labels"])].index(True)
        assert ids[:length].tolist() == row["input_ids"][:length]
    # And the log-probability is the loss of fine-tuning.
    watched.eval_rows = watched.rows
    watched.trainer.eval_dataset = watched.rows
    found = module.answer_logps(watched.trainer, watched.trainer.model)
    model = load_model(chat_folder).eval()
    for row, value in zip(rows, found.T.flatten().tolist(), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"])[1:]
        assert value == pytest.approx(-cross_entropy(logits, labels, reduction="sum").item(), abs=1e-3)


def test_what_others_say_within_an_answer_is_not_scored() -> None:
    pair = {
        "prompt_ids": [1, 2],
        "chosen_ids": [3, 4, 5],
        "chosen_mask": [1, 0, 1],
        "rejected_ids": [6],
        "rejected_mask": [1],
    }
    batch = PairCollator(pad_token_id=0)([pair])
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 0, 1], [0, 0, 1, 0, 0]]
    answer = {"prompt_ids": [1, 2], "completion_ids": [3, 4], "completion_mask": [0, 1], "label": True}
    answer |= {"KL_completion_ids": [5, 6, 7], "KL_completion_mask": [1, 0, 1]}
    batch = JudgedCollator(pad_token_id=0, max_length=4)([answer])
    assert batch["completion_mask"].tolist() == [[0, 0, 0, 1]]
    # Cut, so that it fits after this prompt.
    assert batch["KL_completion_mask"].tolist() == [[0, 0, 1, 0]]


@pytest.mark.usefixtures("without_report")
def test_accumulated_steps_are_those_of_the_whole_batch(options: list[str], tmp_path: Path) -> None:
    whole = run(options, tmp_path / "whole", "--per_device_train_batch_size", 8)
    parts = run(options, tmp_path / "parts", "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 8)
    assert parts.logged() == pytest.approx(whole.logged(), abs=1e-5)
    assert parts.logged("grad_norm") == pytest.approx(whole.logged("grad_norm"), rel=1e-3)


RESUMED = {
    "muon": ["--optim", "muon"],
    "adapters with dropout": ["--use_peft", "true", "--disable_dropout", "false", "--lora_dropout", "0.3"],
    "judged": [],
}


@pytest.mark.parametrize("kind", RESUMED)
@pytest.mark.usefixtures("without_report")
def test_a_resumed_run_is_the_same_to_the_bit(
    kind: str, options: list[str], judged: list[str], tmp_path: Path
) -> None:
    given = judged if kind == "judged" else options
    file = "adapter_model.safetensors" if "adapters" in kind else "model.safetensors"
    figures = ("loss", "rewards/margins")
    resumed = training.check_resumed(given, tmp_path, *RESUMED[kind], last=3, after=(1,), figures=figures, file=file)
    if kind == "muon":
        assert isinstance(resumed.trainer.optimizer.optimizer, MuonAdamW)


@pytest.mark.usefixtures("without_report")
def test_evaluation_changes_nothing_in_the_training(options: list[str], tmp_path: Path) -> None:
    more = RESUMED["adapters with dropout"]
    plain = run(options, tmp_path / "plain", *more)
    evaluated = run(options, tmp_path / "evaluated", *more, "--eval_strategy", "steps", "--eval_steps", "1")
    assert evaluated.logged() == plain.logged()
    assert len(evaluated.logged("eval_rewards/margins")) > 2


@pytest.mark.usefixtures("without_report")
def test_what_a_resumed_run_must_not_change(options: list[str], chat_folder: Path, tmp_path: Path) -> None:
    more = ["--save_strategy", "steps", "--save_steps", "1"]
    run(options, tmp_path / "run", *more)
    other = Path(shutil.copytree(chat_folder, tmp_path / "other"))
    changed(load_model(chat_folder)).save_pretrained(other)
    more += ["--max_steps", "3"]
    changes = (
        (["--beta", "0.2"], "--beta was 0.1 and is 0.2"),
        (["--loss_type", "ipo"], r"--loss_type was \['sigmoid'\] and is \['ipo'\]"),
        (["--model_name_or_path", str(other)], "the base model was"),
    )
    training.check_unchanged([*options, *more], tmp_path / "run", changes)
    with pytest.raises(ConfigError, match="--sync_ref_model changes the reference during the training"):
        run(options, tmp_path / "run", *more, *RESUME, "--sync_ref_model", "true")


def test_a_preference_is_learned_and_reported(options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    figures = dpo(
        *parse_recipe(
            TYPES,
            None,
            [
                *options,
                "--output_dir",
                str(folder),
                "--max_steps",
                "12",
                "--test_fraction",
                "0.3",
                "--sample_answers",
                "2",
            ],
        )
    )
    assert figures["held_out_pair_accuracy"] == 1
    assert figures["held_out_pair_accuracy_low"] <= 1 <= figures["held_out_pair_accuracy_high"]
    assert 0.2 < figures["held_out_length_accuracy"] < 0.8
    assert figures["held_out_preference_loss"] < LN_2
    assert figures["train_rows"] + figures["held_out_rows"] == 24
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "learned preferences with DPO (sigmoid)" in card
    assert "held out pair accuracy" in card.replace("_", " ")
    assert json.loads((folder / "results.json").read_text()) == figures
    samples = (folder / "report" / "samples.md").read_text(encoding="utf-8")
    assert samples.count("(before)") == samples.count("(after)") == 2
    assert "rewards/margins" in (folder / "report" / "report.json").read_text()
    # An ordinary model folder.
    assert load_model(folder).config.vocab_size == load_model(options[1]).config.vocab_size


@pytest.mark.usefixtures("without_report")
def test_another_reference(options: list[str], chat_folder: Path, base_folder: Path, tmp_path: Path) -> None:
    """With a reference that prefers otherwise, the first loss is not that of equal models."""
    watched = run(options, tmp_path / "run", "--ref_model_name_or_path", base_folder)
    assert abs(watched.logged()[0] - LN_2) > 1e-3
    other = Path(shutil.copytree(chat_folder, tmp_path / "other"))
    changed(load_model(chat_folder)).save_pretrained(other)
    with pytest.raises(
        ConfigError, match=r"--ref_model_name_or_path .*other has another vocabulary \(\d+ entries\) than"
    ):
        run(options, tmp_path / "no", "--ref_model_name_or_path", other)
    assert not (tmp_path / "no").exists()


def test_dropout_of_attention_is_silenced_too() -> None:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.9,
    )
    for model in (
        LlamaForCausalLM(config),
        ChatGPTForCausalLM(ChatGPTConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)),
    ):
        silence_attention_dropout(model)
        model.train()
        ids = torch.arange(20)[None]
        assert torch.equal(model(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--loss_type sigmoidal", "--loss_type sigmoidal is unknown; choose from sigmoid, hinge"),
        ("--loss_type exo_pair", "--loss_type exo_pair needs a --label_smoothing above 0"),
        (
            "--loss_type robust --label_smoothing 0.5",
            "--loss_type robust needs a --label_smoothing from 0 to below 0.5",
        ),
        ("--label_smoothing 0.1", "--label_smoothing is for the losses"),
        ("--loss_type sigmoid ipo --loss_weights 1", "loss_weights"),
        ("--beta 0", "--beta is 0.0: give a number above 0"),
        ("--ld_alpha 2", "--ld_alpha is 2.0: give a number from 0 to 1"),
        ("--f_divergence_type js", "--f_divergence_type js is unknown"),
        ("--f_divergence_type js_divergence --loss_type aot", "does not go with --loss_type aot"),
        ("--use_weighting true --loss_type aot", "--use_weighting weights pairs, and --loss_type aot sorts them"),
        ("--sync_ref_model true --use_peft true", "--sync_ref_model needs a reference in memory"),
        ("--sync_ref_model true --precompute_ref_log_probs true", "give only one"),
        ("--lora_dropout 0.1", "--lora_dropout 0.1 does nothing while --disable_dropout is true"),
        ("--padding_free true", "--padding_free does nothing here"),
        ("--desirable_weight 2", "--desirable_weight is for judged answers, and the data are pairs"),
        ("--max_length 4096", "--max_length 4096 is longer than the model's context"),
        ("--test_fraction 0 --eval_strategy steps", "--eval_strategy steps needs preferences to measure on"),
        ("--load_best_model_at_end true --save_strategy best", "--load_best_model_at_end needs --eval_strategy"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(
    more: str, words: str, options: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        run(options, tmp_path / "run", *more.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--loss_type kto --per_device_train_batch_size 1", "--per_device_train_batch_size 1: kto estimates"),
        ("--loss_type ipo", "--loss_type ipo does not go with the data, which are judged answers"),
        ("--ld_alpha 0.5", "--ld_alpha is for pairs, and the data are judged answers"),
    ],
)
def test_judged_answers_have_their_own_options(more: str, words: str, judged: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        run(judged, tmp_path / "run", *more.split())


def test_bad_input(
    options: list[str], pairs: list[dict[str, str]], base_folder: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    new = ["--output_dir", tmp_path / "new"]
    assert "--dataset is missing" in refused("dpo", "--model_name_or_path", base_folder, *new)
    assert "--model_name_or_path is missing" in refused("dpo", *options[2:], *new)
    two = write(tmp_path / "two.jsonl", pairs[:2])
    message = refused("dpo", *options, "--dataset", two, *new)
    assert "two.jsonl: the rows to train on are 1, and a step takes 4" in message
    different = [{**pair, "rejected": [{"role": "user", "content": "?"}, *said("No")]} for pair in pairs]
    different = write(tmp_path / "different.jsonl", [{**pair, "chosen": said("Yes")} for pair in different])
    assert "another prompt" in refused("dpo", *options, "--dataset", different, *new)
    plain = Path(shutil.copytree(base_folder, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    message = refused("dpo", *options, "--model_name_or_path", plain, *new)
    assert "has no chat template, so it is a base model" in message
    endless = Path(shutil.copytree(base_folder, tmp_path / "endless"))
    template = "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}.{% endgeneration %}\n{% endfor %}"
    (endless / "chat_template.jinja").write_text(template)
    message = refused("dpo", *options, "--model_name_or_path", endless, *new)
    assert "The model has no end mark: its chat template ends answers with" in message
    assert not (tmp_path / "new").exists()
    assert issubclass(ConfigError, ChatGPTError)

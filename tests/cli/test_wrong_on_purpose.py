"""Input that somebody made wrong on purpose, or that a hurried user types: refused by name, before anything is written."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from chatgpt_hf import ChatGPTConfig, ChatGPTForSequenceClassification
from chatgpt_hf.errors import ConversionError, DataError, OutputError
from chatgpt_hf.evaluate import measure_bias
from chatgpt_hf.evaluation.compare import compare_folders
from chatgpt_hf.files import check_new_folder, make_folder
from chatgpt_hf.inference.loading import load_for_generation
from chatgpt_hf.training.resuming import check_same_run
from chatgpt_hf_cli import _terminal

Refused = Callable[..., str]


@pytest.fixture
def classifier(base_folder: Path, tmp_path: Path) -> Path:
    """A fine-tuned classifier of texts, with its tokenizer."""
    folder = tmp_path / "classifier"
    shutil.copytree(base_folder, folder)
    ChatGPTForSequenceClassification(ChatGPTConfig.from_pretrained(base_folder)).save_pretrained(folder)
    return folder


def test_a_classifier_does_not_generate(refused: Refused, classifier: Path, tmp_path: Path) -> None:
    said = "is a ChatGPTForSequenceClassification: only language models can"
    assert f"{said} be quantized" in refused("quantize", classifier, tmp_path / "new")
    assert f"{said} be exported" in refused(
        "export", classifier, "--format", "torch-export", "--output_dir", tmp_path / "new"
    )
    assert said in refused("chat", classifier, "--prompt", "Hello")
    assert said in refused("generate", classifier, "--prompt", "Hello")
    assert said in refused("evaluate", classifier, "--bias")
    with pytest.raises(ConversionError, match=said):
        load_for_generation(classifier)
    assert not (tmp_path / "new").exists()
    assert not (classifier / "evaluation").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", "-1"), ("learning_rate", "nan"), ("embedding_learning_rate", "inf"), ("weight_decay", "-0.1")],
)
def test_rates(refused: Refused, pretrain_options: list[str], tmp_path: Path, field: str, value: str) -> None:
    message = refused("pretrain", *pretrain_options, "--output_dir", tmp_path / "new", f"--{field}", value)
    assert f"--{field} is {float(value)}: give a finite number that is not negative" in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("seed", ["-1", "1" * 23])
def test_seeds(refused: Refused, pretrain_options: list[str], base_folder: Path, tmp_path: Path, seed: str) -> None:
    # The words are those of the installed typer.
    assert refused("chat", base_folder, "--prompt", "a", "--seed", seed).startswith("--seed: ")
    assert refused("generate", base_folder, "--prompt", "a", "--seed", seed).startswith("--seed: ")
    assert refused("evaluate", base_folder, "--bias", "--seed", seed).startswith("--seed: ")
    message = refused("pretrain", *pretrain_options, "--output_dir", tmp_path / "new", "--seed", seed)
    assert f"--seed is {seed}: give a number from 0 to 4294967295" in message


def test_abbreviations(refused: Refused, pretrain_options: list[str]) -> None:
    message = refused("pretrain", *pretrain_options, "--max_step", "5")
    assert message == "Unknown argument --max_step. Did you mean --max_steps?\n"


def test_folders_that_cannot_be_created(refused: Refused, base_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OutputError, match=r"dangling is a link to something that does not exist"):
        check_new_folder(tmp_path / "dangling")
    for path in ("text.txt", "text.txt/new/new"):
        with pytest.raises(OutputError, match=r"text\.txt is not a folder"):
            make_folder(tmp_path / path)
    assert "dangling is a link" in refused("convert", base_folder, tmp_path / "dangling")
    # Before the work: the models, which are missing, are not looked for.
    assert "text.txt is not a folder" in refused("evaluate", "me/none", "--bias", "--out", tmp_path / "text.txt")
    assert "text.txt is not a folder" in refused("compare", "none", "none", "--out", tmp_path / "text.txt")
    assert (tmp_path / "text.txt").read_text() == "mine"


@pytest.mark.parametrize("link", ["evaluation", "evaluation/bias"])
def test_an_evaluation_stays_in_the_model(base_folder: Path, refused: Refused, tmp_path: Path, link: str) -> None:
    model, outside = tmp_path / "model", tmp_path / "outside"
    shutil.copytree(base_folder, model)
    outside.mkdir()
    (model / link).parent.mkdir(exist_ok=True)
    (model / link).symlink_to(outside)
    assert f"{model / link} is a link to {outside}, outside of the folder" in refused("evaluate", model, "--bias")
    assert not list(outside.iterdir())


def test_a_card_that_is_a_folder(refused: Refused, base_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(base_folder, tmp_path / "model")
    (tmp_path / "model" / "README.md").mkdir()
    assert "README.md is not a file: remove it" in refused("card", tmp_path / "model", "--write")


def test_the_folder_that_out_named(base_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        measure_bias(str(base_folder), out=tmp_path / name)
    (comparison,) = compare_folders([tmp_path / "a", tmp_path / "b"]).values()
    assert comparison.task == "bias"
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="has no evaluation"):
        compare_folders([tmp_path / "a", tmp_path / "none"])


def test_an_unfinished_run_names_its_newest_checkpoint(refused: Refused, tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "config.json").write_text("{}")
    (tmp_path / "checkpoint-11").mkdir()
    message = refused("chat", tmp_path)
    assert (
        f"is a run that has not finished: its newest checkpoint is {tmp_path / 'checkpoint-10'}. Name that" in message
    )


@pytest.mark.parametrize("name", ["微调 x", "my model", "me/model/more"])
def test_a_name_that_the_hub_does_not_allow_is_a_folder(refused: Refused, name: str) -> None:
    assert f"There is no folder {name}; name one" in refused("chat", name)


def test_a_linked_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "other" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    link = tmp_path / "run" / "checkpoint-4"
    link.symlink_to(tmp_path / "other" / "checkpoint-4")
    with pytest.raises(OutputError, match=r"checkpoint-4 is a link to .*other/checkpoint-4"):
        check_same_run(tmp_path / "run", "pretrain", link)


def test_log_records_of_libraries_control_no_terminal() -> None:
    from transformers.utils import logging as upstream

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(_terminal.VisibleRecord)
    try:
        record = upstream.get_logger("transformers.x").makeRecord(
            "transformers.x", logging.WARNING, "", 0, "\x1b[31m%s\x1b[0m", ("\x1b]0;x\x07\u202e",), None
        )
    finally:
        logging.setLogRecordFactory(before)
    assert record.getMessage() == "␛]0;x␇\ufffd"


def test_a_file_cannot_add_lines_to_an_error(refused: Refused, base_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(base_folder, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ raise_exception('a\nerror: forged') }}")
    message = refused("chat", tmp_path / "model", "--prompt", "Hello")
    assert "a error: forged" in message
    assert message.count("\n") == 1

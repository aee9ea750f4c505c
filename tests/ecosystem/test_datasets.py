"""Streams of `datasets` into stock `Trainer`, with the tokenizer and collator of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

import chatgpt_hf  # noqa: F401


def tokenized(file: Path, folder: Path, streaming: bool) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = load_dataset("json", data_files=str(file), split="train", streaming=streaming)
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=64), remove_columns=["text"])
    return tokenizer, rows


def make_trainer(rows: Any, tokenizer: Any, folder: Path, output: Path) -> Trainer:
    arguments = TrainingArguments(
        str(output),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        train_sampling_strategy="sequential",
    )
    return Trainer(
        AutoModelForCausalLM.from_pretrained(folder),
        arguments,
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )


@pytest.mark.works_with(
    "datasets", "`load_dataset(streaming=True)` into stock `Trainer`: the same batches and losses as without streaming",
    ("datasets", "transformers"),
)  # fmt: skip
def test_a_stream_trains_as_the_whole_set(folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    runs = {}
    for streaming in (True, False):
        tokenizer, rows = tokenized(corpus_file, folder, streaming)
        assert isinstance(rows, IterableDataset) == streaming
        trainer = make_trainer(rows, tokenizer, folder, tmp_path / str(streaming))
        first = next(iter(trainer.get_train_dataloader()))
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        runs[streaming] = (first, losses)
    (streamed, stream_losses), (whole, whole_losses) = runs[True], runs[False]
    assert streamed.keys() == whole.keys() == {"input_ids", "attention_mask", "labels"}
    assert all(torch.equal(streamed[name], whole[name]) for name in streamed)
    texts = [json.loads(line)["text"] for line in corpus_file.read_text(encoding="utf-8").splitlines()[:4]]
    assert tokenizer.batch_decode(streamed["input_ids"], skip_special_tokens=True) == texts
    assert stream_losses == whole_losses
    assert whole_losses[-1] < whole_losses[0]


@pytest.mark.works_with("datasets", "a stream resumes from its `state_dict` with the next rows", ("datasets",))
def test_a_stream_goes_on(folder: Path, corpus_file: Path) -> None:
    def stream() -> Any:
        return tokenized(corpus_file, folder, True)[1].batch(4)

    rows, ids = stream(), []
    for index, batch in enumerate(rows):
        ids.append(batch["input_ids"])
        if index == 5:
            state = rows.state_dict()
    again = stream()
    again.load_state_dict(state)
    rest = [batch["input_ids"] for batch in again]
    assert rest
    assert rest == ids[6:]

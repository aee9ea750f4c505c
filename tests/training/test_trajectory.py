"""The loss of the first steps does not depend on how a batch is split, and does not change between versions.

`python tests/training/test_trajectory.py` rewrites the reference. Run it only after a change that is meant to change
the numbers, and say why in docs/log.md.
"""

import json
import random
import tempfile
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments, default_data_collator

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, pack_documents
from chatgpt_hf.data.packing import IGNORE_INDEX

REFERENCE = Path(__file__).parent / "references" / "trajectory.json"
STEPS = 20


def rows() -> Dataset:
    """40 rows of 32 tokens, 1 to 31 of them learned: a mean of means would differ from the mean."""
    draw = random.Random(0)
    ids, labels = [], []
    for index in range(40):
        start = draw.randrange(50)
        document = [(start + 3 * position) % 50 + 2 for position in range(32)]
        learned = 1 + index * 30 // 39
        ids.append(document)
        labels.append([IGNORE_INDEX] * (32 - learned) + document[32 - learned :])
    return pack_documents(Dataset.from_dict({"input_ids": ids, "labels": labels}), 32, pad_token_id=0)


def trajectory(output_dir: Path, batch_size: int, accumulation: int) -> list[float]:
    torch.manual_seed(0)
    config = ChatGPTConfig(
        vocab_size=52, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32
    )
    model = ChatGPTForCausalLM(config)
    arguments = TrainingArguments(
        str(output_dir),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=STEPS,
        learning_rate=3e-3,
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows(), data_collator=default_data_collator)
    trainer.train()
    # `Trainer` left the model in training mode, so this is the chunked loss, which returns no logits.
    with torch.no_grad():
        batch = default_data_collator([rows()[0]])
        assert model(**batch).logits is None
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (1, 8), (4, 2)])
def test_the_loss_follows_the_reference(batch_size: int, accumulation: int, tmp_path: Path) -> None:
    losses = trajectory(tmp_path, batch_size, accumulation)
    assert losses == pytest.approx(json.loads(REFERENCE.read_text()), rel=0, abs=1e-5)
    assert losses[-1] < losses[0] - 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        REFERENCE.write_text(json.dumps(trajectory(Path(folder), 8, 1), indent=1) + "\n")

"""Sentence embeddings by mean pooling, and a fine-tuning of them, with sentence-transformers."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoModel, AutoTokenizer

import chatgpt_hf  # noqa: F401

SENTENCES = [
    "A cat sits in the garden.",
    "Hi!",
    "One small bird looks at the river, as blue as the sky above.",
    "你好",
]


def mean_pooled(folder: Path, side: str) -> SentenceTransformer:
    # A tokenizer that has a chat template would have every sentence made a user's message.
    body = Transformer(str(folder), processor_kwargs={"padding_side": side, "chat_template": None})
    return SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension(), "mean")], device="cpu")


def by_hand(folder: Path) -> torch.Tensor:
    """Each sentence alone, without padding: the mean of what the body gives for its tokens."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in SENTENCES]
    return torch.stack(rows)


@pytest.mark.works_with(
    "sentence-transformers", "mean pooling over the attention mask, padded left and right alike; saved and loaded",
    ("sentence-transformers",),
)  # fmt: skip
@pytest.mark.parametrize("variant", ["modern", "gpt2", "memories"])
def test_mean_pooling(variant: str, folders: dict[str, Path], tmp_path: Path) -> None:
    expected = by_hand(folders[variant])
    for side in ("left", "right"):
        model = mean_pooled(folders[variant], side)
        features = model.preprocess(SENTENCES)
        assert (features["attention_mask"][1, 0] == 0) == (side == "left")
        embeddings = model.encode(SENTENCES, convert_to_tensor=True, batch_size=4)
        torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-5)
    model.save_pretrained(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    torch.testing.assert_close(again.encode(SENTENCES, convert_to_tensor=True), embeddings, rtol=0, atol=1e-6)


@pytest.mark.works_with(
    "sentence-transformers",
    "`SentenceTransformerTrainer` on pairs of sentences, two steps",
    ("sentence-transformers",),
)
def test_training(folder: Path, tmp_path: Path) -> None:
    model = mean_pooled(folder, "right")
    pairs = Dataset.from_dict(
        {
            "anchor": [f"Where is the {animal}?" for animal in ("cat", "dog", "bird", "horse")],
            "positive": [f"The {animal} is in the garden." for animal in ("cat", "dog", "bird", "horse")],
        }
    )

    def loss_of(model: SentenceTransformer) -> float:
        features = [model.preprocess(pairs[name]) for name in ("anchor", "positive")]
        with torch.no_grad():
            return float(MultipleNegativesRankingLoss(model)(features, None))

    before = loss_of(model)
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    SentenceTransformerTrainer(model, arguments, train_dataset=pairs, loss=MultipleNegativesRankingLoss(model)).train()
    assert loss_of(model) < before

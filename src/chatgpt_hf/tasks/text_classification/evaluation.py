"""Evaluates how well a model labels texts, through the pipeline that people use it with."""

from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextClassificationPipeline

from ...evaluation.batching import run_pipeline
from ...evaluation.figures import Measure
from ...evaluation.metrics import measures
from ...evaluation.record import Evaluation

TASK = "text-classification"


def evaluate_text_classification(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    *,
    data: str,
    batch_size: int = 32,
    progress: bool = True,
) -> Evaluation:
    """Labels texts with `pipeline("text-classification")`.

    Args:
        rows: Rows with columns `text` and `label`, as `load_labelled` returns them.
        data: Where the rows came from, for the record.
    """
    texts, labels = rows["text"], rows["label"]
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    classify = TextClassificationPipeline(model=model, tokenizer=tokenizer, batch_size=batch_size)
    outputs = run_pipeline(classify, texts, desc="Classifying", progress=progress, top_k=None, truncation=True)
    by_label = [{entry["label"]: entry["score"] for entry in output} for output in outputs]
    scores = np.array([[found[name] for name in names] for found in by_label])
    if model.config.problem_type == "regression":
        return _regression(texts, scores[:, 0], np.array(labels, dtype=float), data)
    return classification_record(texts, scores, labels, names, data=data)


def classification_record(
    texts: list[str], scores: np.ndarray, labels: Any, names: list[str], *, data: str
) -> Evaluation:
    """Evaluates scores (texts, classes) against labels: one per text, or 0 or 1 for each class."""
    references = np.array(labels)
    several = references.ndim == 2
    true = references > 0.5 if several else references[:, None] == np.arange(len(names))
    predicted = scores > 0.5 if several else scores.argmax(1)[:, None] == np.arange(len(names))
    said, right = (rows.astype(int).tolist() if several else rows.argmax(1).tolist() for rows in (predicted, true))
    found = {**measures("accuracy", said, right), "macro_f1": measures("f1", said, right, average="macro")["f1"]}
    if several:
        found["micro_f1"] = measures("f1", said, right, average="micro")["f1"]

    def named(row: np.ndarray) -> str | list[str]:
        marked = [names[index] for index in np.flatnonzero(row)]
        return marked if several else marked[0]

    examples = [
        {
            "text": text,
            "prediction": named(predicted[index]),
            "reference": named(true[index]),
            "score": float(scores[index][predicted[index]].max(initial=0.0)),
        }
        for index, text in enumerate(texts)
    ]
    return Evaluation(TASK, data, found, examples, {"labels": names})


def _regression(texts: list[str], values: np.ndarray, references: np.ndarray, data: str) -> Evaluation:
    ones = np.ones(len(values))
    moments = np.stack([ones, values, references, values**2, references**2, values * references], axis=1)
    found = {
        "mean_squared_error": Measure("mean", np.stack([(values - references) ** 2, ones], axis=1), False),
        "pearson": Measure("pearson", moments),
    }
    examples = [
        {"text": text, "prediction": float(value), "reference": float(reference)}
        for text, value, reference in zip(texts, values, references, strict=True)
    ]
    return Evaluation(TASK, data, found, examples)

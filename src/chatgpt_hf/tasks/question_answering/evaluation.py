"""Evaluates how well a model finds answers in texts, through the pipeline that people use it with."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import DataError
from ...evaluation.metrics import measures
from ...evaluation.record import Evaluation
from ...model.pipelines import QuestionAnsweringPipeline
from ...model.spans import SpanError

TASK = "question-answering"


def evaluate_question_answering(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    *,
    data: str,
    batch_size: int = 32,
    progress: bool = True,
) -> Evaluation:
    """Answers questions with `pipeline("question-answering")`; exact match and F1 follow SQuAD's script.

    Args:
        rows: Rows with columns `id`, `question`, `context` and `answers`, as `load_squad` returns them. If some have
            no answer, the model may give none.
        data: Where the rows came from, for the record.
    """
    answer = QuestionAnsweringPipeline(model=model, tokenizer=tokenizer, batch_size=batch_size)
    items: list[dict[str, Any]] = rows.to_list()
    references = [row["answers"]["text"] or [""] for row in items]
    possible = all(any(texts) for texts in references)

    def questions() -> Iterator[dict[str, str]]:
        for row in items:
            yield {"question": row["question"], "context": row["context"]}

    outputs = answer(questions(), handle_impossible_answer=not possible)
    try:
        found = list(tqdm(outputs, "Answering", len(items), disable=not progress))
    except SpanError as error:
        raise DataError(str(error)) from error
    said = [output["answer"] for output in found]
    measured = {**measures("exact_match", said, references, squad=True), **measures("token_f1", said, references)}
    examples = [
        {
            "id": row["id"],
            "question": row["question"],
            "text": row["context"],
            "prediction": output["answer"],
            "reference": texts if len(texts) > 1 else texts[0],
            "score": output["score"],
        }
        for row, output, texts in zip(items, found, references, strict=True)
    ]
    return Evaluation(TASK, data, measured, examples)

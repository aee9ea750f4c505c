"""The task of question answering: the answer is a span of a text."""

from typing import Any

from datasets import Dataset
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...evaluation.record import Evaluation
from ...model.modeling_chatgpt import ChatGPTForQuestionAnswering
from ..arguments import TaskArguments
from ..base import Task
from .evaluation import evaluate_question_answering
from .features import prepare_features
from .rows import load_squad


class QuestionAnswering(Task):
    """Rows of a question, its context and answers; the model scores first and last tokens."""

    auto_class = AutoModelForQuestionAnswering
    own_class = ChatGPTForQuestionAnswering
    new_modules = ("qa_outputs",)
    peft_task_type = "QUESTION_ANS"

    def __init__(self, arguments: TaskArguments, seed: int, **kwargs: Any) -> None:
        super().__init__(arguments, seed, **kwargs)
        arguments = self.arguments
        splits = load_squad(
            self.source(),
            eval_source=self.eval_source(),
            test_fraction=arguments.test_fraction,
            encoding=arguments.encoding,
            skip_invalid=arguments.skip_invalid,
        )
        self.summaries = splits.summaries
        self.train = splits.train
        self.test = self.held_out(splits.test)
        self.lengths = {"max_length": arguments.max_length, "stride": arguments.stride}

    def texts(self) -> list[str]:
        return list(dict.fromkeys(self.train["context"]))

    def settings(self) -> dict[str, Any]:
        return self.lengths

    def tokenize(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        return prepare_features(rows, tokenizer, **self.lengths)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        return DataCollatorWithPadding(tokenizer)

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, *, data: str, batch_size: int
    ) -> dict[str, Evaluation]:
        found = evaluate_question_answering(model, tokenizer, rows, data=data, batch_size=batch_size)
        return {self.arguments.task: found}

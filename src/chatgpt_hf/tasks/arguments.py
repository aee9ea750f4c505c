"""Recipe arguments of a task, in addition to those that all recipes share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

# Names of the pipelines that work with a fine-tuned folder.
TaskName = Literal[
    "text-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "summarization",
    "translation",
    "text-generation",
]
TASKS: tuple[str, ...] = get_args(TaskName)
GENERATIVE_TASKS = ("summarization", "translation", "text-generation")


@dataclass
class TaskArguments:
    """The task to learn, and its rows."""

    task: TaskName = field(default="text-classification", metadata={"help": f"One of {', '.join(TASKS)}."})
    dataset: list[str] = field(
        default_factory=list,
        metadata={"help": "File, folder, glob or Hub id, or several: csv, tsv, jsonl, json, parquet, CoNLL, SQuAD."},
    )
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Rows to measure on, in place of a part of the dataset."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder from which relative paths of both are taken; the current one if not given."},
    )
    test_fraction: float = field(
        default=0.1, metadata={"help": "Share of the rows held out, by their hash, without an eval_dataset."}
    )
    split_by: Literal["prompt", "completion"] = field(
        default="prompt",
        metadata={"help": "What of a generative task's row is hashed; completion keeps copies of one on one side."},
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of the text; found when not given."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the label; found when not given."})
    class_names: str | None = field(
        default=None, metadata={"help": "File with a label's name in a line, in the order of their numbers."}
    )
    label_map: str | None = field(
        default=None,
        metadata={"help": 'Other names for entity labels (JSON), as {"PER": "person"}; "O" makes one none.'},
    )
    problem_type: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = field(
        default="auto", metadata={"help": "What kind of labels the texts have; found when not given."}
    )
    prompt_template: str = field(
        default="{prompt}", metadata={"help": 'Prompt of a generative task, from columns in braces: "{title}\\n".'}
    )
    completion_template: str = field(
        default="{completion}",
        metadata={"help": "What is to be learned after it, likewise."},
    )
    column_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the columns of a file without a header."}
    )
    skip_invalid: bool = field(
        default=False, metadata={"help": "Leave out rows that cannot be used, with a warning, in place of refusing."}
    )
    max_length: int = field(
        default=128,
        metadata={"help": "Most tokens of an input; longer ones are cut, or read in windows for questions."},
    )
    stride: int = field(
        default=64, metadata={"help": "Tokens that two windows of a long context share (question-answering)."}
    )
    max_new_tokens: int = field(default=64, metadata={"help": "Longest answer of a generative task."})
    generation_metrics: str | None = field(
        default=None,
        metadata={"help": 'Metrics of a generative task and their options (JSON), as {"bleu": {"tokenize": "zh"}}.'},
    )
    adapt_epochs: float = field(
        default=0.0,
        metadata={"help": "Epochs of language modelling on the texts to learn from, before the task itself."},
    )
    adapt_vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "Before these, a tokenizer of so many entries for the task's words in place of the model's."
        },
    )
    adapt_learning_rate: float = field(default=0.003, metadata={"help": "Learning rate of these, with Muon."})
    classifier_pooling: Literal["last", "mean"] | None = field(
        default=None,
        metadata={
            "help": "What a text's class is read from: last (token) or mean (of all); the model's own if not given."
        },
    )
    class_weights: bool = field(
        default=False, metadata={"help": "Weigh classes against their frequency, as scikit-learn's `balanced`."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "End after so many evaluations without a better figure, and keep the best."}
    )
    baseline: bool = field(
        default=True,
        metadata={"help": "Train TF-IDF and logistic regression on the same rows, to stand beside the model."},
    )

    def __post_init__(self) -> None:
        # A recipe may name one source without a list, and use mappings where the command line has JSON.
        if isinstance(self.dataset, str | Mapping):
            self.dataset = [self.dataset]  # type: ignore[list-item]
        for name in ("label_map", "generation_metrics"):
            if isinstance(getattr(self, name), Mapping):
                setattr(self, name, json.dumps(getattr(self, name), ensure_ascii=False))

"""Recipe arguments of a task, in addition to those that all recipes share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

# The names of the pipelines that a fine-tuned folder works in.
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
        metadata={
            "help": "One or more files, folders, globs or Hub ids: csv, tsv, jsonl, json, parquet, CoNLL or SQuAD."
        },
    )
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Rows to measure on; a part of the dataset if not given."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder that relative paths of dataset and eval_dataset start from; the current one if not given."
        },
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of the files, such as gb18030 or cp1252; UTF-8 if not given."}
    )
    test_fraction: float = field(
        default=0.1,
        metadata={"help": "Share of the rows to hold out without an eval_dataset; the hash of a row decides."},
    )
    split_by: Literal["prompt", "completion"] = field(
        default="prompt",
        metadata={
            "help": "Part of a generative task's row that is hashed. Rows with the same one stay on the same side of the split."
        },
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column with the text; found by its name if not given."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column with the label; found by its name if not given."}
    )
    class_names: str | None = field(
        default=None,
        metadata={"help": "File with the name of one label on each line, in the order of the label numbers."},
    )
    label_map: str | None = field(
        default=None,
        metadata={
            "help": 'New names for entity labels (JSON), such as {"PER": "person"}; the name "O" removes a label.'
        },
    )
    problem_type: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = field(
        default="auto", metadata={"help": "Kind of labels of the texts; auto finds it from the rows."}
    )
    prompt_template: str = field(
        default="{prompt}",
        metadata={"help": 'Prompt of a generative task, with columns in braces, such as "{title}\\n".'},
    )
    completion_template: str = field(
        default="{completion}",
        metadata={"help": "Text to learn after the prompt, with columns in braces."},
    )
    column_names: list[str] | None = field(
        default=None, metadata={"help": "Column names for a file without a header."}
    )
    skip_invalid: bool = field(
        default=False, metadata={"help": "Skip rows that cannot be used, with a warning, instead of stopping."}
    )
    max_length: int = field(
        default=128,
        metadata={"help": "Longest input in tokens; longer ones are cut, or read in windows for question-answering."},
    )
    stride: int = field(
        default=64, metadata={"help": "Tokens that two neighbouring windows share (question-answering)."}
    )
    max_new_tokens: int = field(default=64, metadata={"help": "Longest answer of a generative task, in tokens."})
    generation_metrics: str | None = field(
        default=None,
        metadata={
            "help": 'Metrics of a generative task and their options (JSON), such as {"bleu": {"tokenize": "zh"}}.'
        },
    )
    adapt_epochs: float = field(
        default=0.0,
        metadata={"help": "Epochs of language modelling on the training texts, before the task (adaptation)."},
    )
    adapt_vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "First train a tokenizer of this size on the task's texts and use it instead of the model's."
        },
    )
    adapt_learning_rate: float = field(default=0.003, metadata={"help": "Learning rate of the adaptation (Muon)."})
    classifier_pooling: Literal["last", "mean"] | None = field(
        default=None,
        metadata={
            "help": "Read the class of a text from its last token or from the mean of all; the model's own if not given."
        },
    )
    class_weights: bool = field(
        default=False, metadata={"help": "Give rare classes more weight, as 'balanced' does in scikit-learn."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after this many evaluations without improvement, and keep the best model."},
    )
    baseline: bool = field(
        default=True,
        metadata={"help": "Also train TF-IDF with logistic regression on the same rows, for comparison."},
    )

    def __post_init__(self) -> None:
        # A recipe may give a single source without a list, and a mapping where the command line has JSON.
        if isinstance(self.dataset, str | Mapping):
            self.dataset = [self.dataset]  # type: ignore[list-item]
        for name in ("label_map", "generation_metrics"):
            if isinstance(getattr(self, name), Mapping):
                setattr(self, name, json.dumps(getattr(self, name), ensure_ascii=False))

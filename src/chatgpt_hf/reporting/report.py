"""Writes a run's report for people: a page with its figures, a picture of its curves, samples, and the model card."""

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from operator import mul
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerState, TrainingArguments

from ..extras import needed_by
from ..files import atomic_folder
from .card import CARD_NAME, hub_ids, kept_metadata, markdown_table, pairs, render_card
from .footprint import assumed_watts

FOLDER_NAME = "report"
# Lines of {"step", "prompt", "text"}; a run appends to it during training.
SAMPLES_HISTORY_NAME = "samples.jsonl"

# Section of the page for a figure, by the start of its name. The first match counts.
_GROUPS = {
    "held_out_": "Held out",
    "trained_": "On training data",
    "train_tokens_per_second": "Training",
    "train_tokens": "Data",
    "share_of_": "Data",
    "train_": "Training",
    "epoch": "Training",
    "parameters": "Model",
    "adapter_parameters": "Model",
}


@dataclass
class Report:
    """The content of one run's report.

    Args:
        title: Title of the page.
        description: What the model is, as the end of a sentence.
        data: The source of the training text.
        results: The run's figures, as in its results.json.
        log_history: `TrainerState.log_history`.
        samples: Samples of the finished model.
        chat: If true, the card's example is a conversation.
        statistics: One entry for each source of the data, a dataclass or a mapping with `source` and its figures; entries
            with `bytes` and `tokens` get a column of bytes per token.
        columns: How the rows and columns of each file were read, one entry for each file; see `RowSummary.line`.
        training: Settings of the training, in the order of the page; see `training_facts`.
        command: The command that repeats the run.
        tokens_per_step: Positions in the rows of one optimizer step of all processes; gives the curves an axis of tokens.
        task: The model's pipeline.
        datasets: The sources in `data`, one by one. Hub ids among them become metadata of the card.
        base_model: The model from which training started, if any.
        origin: The name and licence of a base model that was not made with this package; see `origin_of`.
        loss_label: Name of the loss, with its unit, on the picture of the curves.
    """

    title: str
    description: str
    data: str
    results: dict[str, Any]
    log_history: list[dict[str, Any]]
    samples: list[str] = field(default_factory=list)
    chat: bool = False
    statistics: Sequence[Any] = ()
    columns: Sequence[dict[str, Any]] = ()
    training: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    tokens_per_step: int | None = None
    task: str = "text-generation"
    datasets: Sequence[str] = ()
    base_model: str | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    loss_label: str = "loss (nats per token)"

    def write(self, folder: Path) -> None:
        """Writes `report/` (report.md, report.json, loss.png, samples.md) and README.md (the card) into the folder."""
        history = read_samples(folder)
        with atomic_folder(folder) as temporary:
            target = temporary / FOLDER_NAME
            target.mkdir()
            plot_curves(
                self.log_history,
                target / "loss.png",
                tokens_per_step=self.tokens_per_step,
                loss_label=self.loss_label,
            )
            (target / "report.md").write_text(self._page(), encoding="utf-8")
            facts = self._facts_for_card()
            (target / "report.json").write_text(
                json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            (target / "samples.md").write_text(self._samples(history), encoding="utf-8")
            card = render_card(folder, folder.resolve().name, facts, metadata=kept_metadata(folder))
            (temporary / CARD_NAME).write_text(card, encoding="utf-8")

    def _page(self) -> str:
        parts = [f"# {self.title}", self.description, self._figures()]
        parts += ["## Curves", "![Loss and other figures over training steps](loss.png)"]
        if self.statistics:
            parts += ["## Sources", markdown_table(self._sources())]
        if self.columns:
            parts += ["## How the files were read", markdown_table(list(self.columns))]
        if facts := self._facts():
            parts += ["## How it was trained", markdown_table(pairs("setting", facts))]
        if self.command:
            parts += ["## Repeat the run", f"```bash\n{self.command}\n```"]
        if self.samples:
            parts.append("The model's samples: [samples.md](samples.md).")
        parts.append("The recipe: [recipe.yaml](../recipe.yaml).")
        return "\n\n".join(parts) + "\n"

    def _figures(self) -> str:
        groups: dict[str, dict[str, Any]] = {title: {} for title in dict.fromkeys(_GROUPS.values())}
        for name, value in self.results.items():
            title = next((title for start, title in _GROUPS.items() if name.startswith(start)), "Also")
            groups.setdefault(title, {})[name] = value
        parts = [f"## {title}\n\n{markdown_table(pairs('figure', group))}" for title, group in groups.items() if group]
        return "\n\n".join(parts)

    def _sources(self) -> list[dict[str, Any]]:
        rows = []
        for source in self.statistics:
            row = asdict(source) if is_dataclass(source) and not isinstance(source, type) else dict(source)
            if row.get("tokens") and "bytes" in row:
                row.setdefault("bytes_per_token", row["bytes"] / row["tokens"])
            rows.append(row)
        return rows

    def _facts(self) -> dict[str, Any]:
        """Returns `training`, with the median speed from the log."""
        facts = dict(self.training)
        for name in ("tokens_per_second", "mfu"):
            measured = [entry[name] for entry in self.log_history if entry.get(name) is not None]
            if measured:
                facts[f"{name} (median)"] = statistics.median(measured)
        return facts

    def _facts_for_card(self) -> dict[str, Any]:
        """Returns everything in JSON's types, so that the card can be made again from report.json only."""
        content = {**vars(self), "statistics": self._sources(), "training": self._facts()}
        content["datasets"] = hub_ids(self.datasets)
        content["base_model"] = next(iter(hub_ids([self.base_model])), None)
        content["language"] = "en" if self.datasets and all(map(_is_builtin, self.datasets)) else None
        return json.loads(json.dumps(_finite(content), default=str))

    def _samples(self, history: list[dict[str, Any]]) -> str:
        parts = ["# Samples", *map(_quoted, self.samples)]
        if history:
            parts.append("## During training")
        for step in dict.fromkeys(row["step"] for row in history):
            parts.append(f"### Step {step:,}")
            parts += [_quoted(row["text"]) for row in history if row["step"] == step]
        return "\n\n".join(parts) + "\n"


def training_facts(
    arguments: TrainingArguments, state: TrainerState, *, tokens_per_step: int | None = None
) -> dict[str, Any]:
    """Returns the settings, hardware and software of a training run, for `Report.training`.

    Args:
        state: The state after training.
        tokens_per_step: Positions in the rows of one optimizer step of all processes; None if rows differ in length.
    """
    kwargs = arguments.lr_scheduler_kwargs
    # Includes the setting of `accelerate launch`.
    precision = {"bf16": "bfloat16", "fp16": "float16"}.get(arguments.mixed_precision, "float32")
    watts = assumed_watts(arguments.device)
    facts = {
        "steps": state.global_step,
        "tokens": tokens_per_step and state.global_step * tokens_per_step,
        "tokens per step": tokens_per_step,
        "rows per step": arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
        "optimizer": getattr(arguments.optim, "value", arguments.optim),
        "learning rate": arguments.learning_rate,
        # A field of our own arguments; None if there is only one learning rate.
        "learning rate of the embeddings": getattr(arguments, "embedding_learning_rate", None),
        "schedule": getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)
        + (f" {json.dumps(kwargs)}" if kwargs else ""),
        "warmup steps": arguments.get_warmup_steps(state.max_steps),
        "weight decay": arguments.weight_decay,
        "Adam betas": f"{arguments.adam_beta1}, {arguments.adam_beta2}",
        "gradient clipping": arguments.max_grad_norm,
        "seed": arguments.seed,
        "precision": precision,
        "compiled": bool(arguments.torch_compile),
        "processes": arguments.world_size,
        "hardware": hardware_name(arguments.device),
        # For all processes; the card estimates the run's energy from it.
        "assumed watts": watts and watts * arguments.world_size,
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}",
    }
    return {name: value for name, value in facts.items() if value is not None}


def hardware_name(device: torch.device) -> str:
    """Returns the accelerator's name, or the processor's with its cores and torch's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """Returns samples from the training of the run in `folder`: `step`, `prompt` and `text`, oldest first."""
    file = folder / FOLDER_NAME / SAMPLES_HISTORY_NAME
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def plot_curves(
    log_history: list[dict[str, Any]],
    file: Path,
    *,
    tokens_per_step: int | None = None,
    loss_label: str = "loss (nats per token)",
) -> None:
    """Draws the loss over optimizer steps (and tokens), and a panel for every other logged figure."""
    # No pyplot: it would pick a window system and keep the figure alive.
    with needed_by("A plot"):
        from matplotlib.figure import Figure

    panels = {
        "learning_rate": "learning rate",
        "grad_norm": "gradient norm",
        "tokens_per_second": "tokens per second",
        "mfu": "share of the peak (MFU)",
        "eval_bits_per_byte": "held-out bits per byte",
        "rewards/accuracies": "pairs ranked right",
        "rewards/margins": "reward margin",
        "accuracy": "pairs ranked right",
        "margin": "reward margin",
    }
    panels = {key: label for key, label in panels.items() if any(entry.get(key) is not None for entry in log_history)}
    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(9, 4.5 + 2.2 * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, 2, height_ratios=[2] + [1] * rows)
    loss = figure.add_subplot(grid[0, :])
    _plot(loss, log_history, "loss", label="training")
    _plot(loss, log_history, "eval_loss", label="held out", marker="o")
    loss.set(xlabel="optimizer step", ylabel=loss_label)
    if loss.lines:
        loss.legend()
    if tokens_per_step:
        scales = (partial(mul, tokens_per_step), partial(mul, 1 / tokens_per_step))
        tokens = loss.secondary_xaxis("top", functions=scales)
        tokens.set_xlabel("tokens")
    for index, (key, label) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[1 + index // 2, index % 2], sharex=loss)
        _plot(axes, log_history, key, marker="o" if key.startswith("eval_") else None)
        axes.set_ylabel(label)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def _plot(axes: Any, log_history: list[dict[str, Any]], key: str, **style: Any) -> None:
    points = [(entry["step"], entry[key]) for entry in log_history if entry.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _is_builtin(source: str) -> bool:
    """True for text that ships with Python, which is in English."""
    return source.startswith("builtin:")


def _quoted(sample: str) -> str:
    return "```text\n" + sample.replace("```", "'''") + "\n```"


def _finite(value: Any) -> Any:
    """Returns `value` with None for infinities and NaN, which JSON lacks, such as a diverged loss."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value

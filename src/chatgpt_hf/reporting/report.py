"""What a run leaves for people: a page with its figures, its curves as a picture, samples, and the model card."""

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
# Lines of {"step", "prompt", "text"}, which a run in progress appends to.
SAMPLES_HISTORY_NAME = "samples.jsonl"

# Which part of the page a figure belongs to, by the start of its name. The first that fits counts.
_GROUPS = {
    "held_out_": "Held out",
    "trained_": "On what it was trained on",
    "train_tokens_per_second": "Training",
    "train_tokens": "Data",
    "share_of_": "Data",
    "train_": "Training",
    "epoch": "Training",
    "parameters": "Model",
}


@dataclass
class Report:
    """One run, as its page tells it.

    Args:
        title: Of the page.
        description: What the model is, as the end of a sentence.
        data: Where the training text came from.
        results: The run's figures, as in its results.json.
        log_history: `TrainerState.log_history`.
        samples: What the finished model says.
        chat: Whether the card's example is a conversation.
        statistics: One entry for each source of the data, a dataclass or a mapping with `source` and its figures; where
            `bytes` and `tokens` are among them, bytes per token are added.
        training: How it was trained, in the order to be shown; see `training_facts`.
        command: Repeats the run.
        tokens_per_step: Positions in the rows of one optimizer step of all processes; gives the curves an axis of tokens.
        task: The pipeline that the model is for.
        datasets: What `data` names, one by one. Hub ids among them become metadata of the card.
        base_model: What it was trained from, if from a model.
    """

    title: str
    description: str
    data: str
    results: dict[str, Any]
    log_history: list[dict[str, Any]]
    samples: list[str] = field(default_factory=list)
    chat: bool = False
    statistics: Sequence[Any] = ()
    training: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    tokens_per_step: int | None = None
    task: str = "text-generation"
    datasets: Sequence[str] = ()
    base_model: str | None = None

    def write(self, folder: Path) -> None:
        """Writes `report/` (report.md, report.json, loss.png, samples.md) and the card README.md into the run's folder."""
        history = read_samples(folder)
        with atomic_folder(folder) as temporary:
            target = temporary / FOLDER_NAME
            target.mkdir()
            plot_curves(self.log_history, target / "loss.png", tokens_per_step=self.tokens_per_step)
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
        if facts := self._facts():
            parts += ["## How it was trained", markdown_table(pairs("setting", facts))]
        if self.command:
            parts += ["## To repeat it", f"```bash\n{self.command}\n```"]
        if self.samples:
            parts.append("What the model says: [samples.md](samples.md).")
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
        """`training`, and what the log says of the speed."""
        facts = dict(self.training)
        for name in ("tokens_per_second", "mfu"):
            measured = [entry[name] for entry in self.log_history if entry.get(name) is not None]
            if measured:
                facts[f"{name} (median)"] = statistics.median(measured)
        return facts

    def _facts_for_card(self) -> dict[str, Any]:
        """All of it as JSON has it, so that the card can be made again from report.json alone."""
        content = {**vars(self), "statistics": self._sources(), "training": self._facts()}
        content["datasets"] = hub_ids(self.datasets)
        content["base_model"] = next(iter(hub_ids([self.base_model])), None)
        content["language"] = "en" if self.datasets and all(map(_is_builtin, self.datasets)) else None
        return json.loads(json.dumps(_finite(content), default=str))

    def _samples(self, history: list[dict[str, Any]]) -> str:
        parts = ["# Samples", *map(_quoted, self.samples)]
        if history:
            parts.append("## While it was trained")
        for step in dict.fromkeys(row["step"] for row in history):
            parts.append(f"### Step {step:,}")
            parts += [_quoted(row["text"]) for row in history if row["step"] == step]
        return "\n\n".join(parts) + "\n"


def training_facts(
    arguments: TrainingArguments, state: TrainerState, *, tokens_per_step: int | None = None
) -> dict[str, Any]:
    """How a run was trained and on what, for `Report.training`.

    Args:
        state: After the training.
        tokens_per_step: Positions in the rows of one optimizer step of all processes; None where rows differ in length.
    """
    kwargs = arguments.lr_scheduler_kwargs
    # Also what `accelerate launch` was told.
    precision = {"bf16": "bfloat16", "fp16": "float16"}.get(arguments.mixed_precision, "float32")
    watts = assumed_watts(arguments.device)
    facts = {
        "steps": state.global_step,
        "tokens": tokens_per_step and state.global_step * tokens_per_step,
        "tokens per step": tokens_per_step,
        "rows per step": arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
        "optimizer": getattr(arguments.optim, "value", arguments.optim),
        "learning rate": arguments.learning_rate,
        # A field of our own arguments; None where there is but one learning rate.
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
        # Of all processes; the card estimates the run's energy with it.
        "assumed watts": watts and watts * arguments.world_size,
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}",
    }
    return {name: value for name, value in facts.items() if value is not None}


def hardware_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's with its cores and the threads that torch uses."""
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
    """What the run in `folder` said while it was trained: `step`, `prompt` and `text`, oldest first."""
    file = folder / FOLDER_NAME / SAMPLES_HISTORY_NAME
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def plot_curves(log_history: list[dict[str, Any]], file: Path, *, tokens_per_step: int | None = None) -> None:
    """Loss in nats per token over optimizer steps (and tokens), and below it what else was logged, a panel for each."""
    # Without pyplot, which would pick a window system and keep the figure alive.
    with needed_by("A plot"):
        from matplotlib.figure import Figure

    panels = {
        "learning_rate": "learning rate",
        "grad_norm": "gradient norm",
        "tokens_per_second": "tokens per second",
        "mfu": "share of the peak (MFU)",
        "eval_bits_per_byte": "held-out bits per byte",
    }
    panels = {key: label for key, label in panels.items() if any(entry.get(key) is not None for entry in log_history)}
    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(9, 4.5 + 2.2 * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, 2, height_ratios=[2] + [1] * rows)
    loss = figure.add_subplot(grid[0, :])
    _plot(loss, log_history, "loss", label="training")
    _plot(loss, log_history, "eval_loss", label="held out", marker="o")
    loss.set(xlabel="optimizer step", ylabel="loss (nats per token)")
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
    """Whether text comes with Python itself, which is written in English."""
    return source.startswith("builtin:")


def _quoted(sample: str) -> str:
    return "```text\n" + sample.replace("```", "'''") + "\n```"


def _finite(value: Any) -> Any:
    """`value` with None for what JSON has no number for: a diverged loss is null there."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value

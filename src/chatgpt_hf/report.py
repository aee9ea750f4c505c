"""What a run leaves for people: a page with its figures, the loss as a picture, samples, and the model card."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .checkpoints import atomic_folder


@dataclass
class Report:
    """One run, as its page tells it."""

    title: str
    description: str
    data: str
    results: dict[str, Any]
    log_history: list[dict[str, Any]]
    samples: list[str] = field(default_factory=list)
    chat: bool = False

    @property
    def figures(self) -> dict[str, str]:
        return {name: _shown(value) for name, value in self.results.items()}

    def write(self, folder: Path) -> None:
        """Writes `report/report.md`, `report/loss.png`, `report/samples.md` and the card README.md into the run's folder."""
        with atomic_folder(folder) as temporary:
            (temporary / "report").mkdir()
            plot_loss(self.log_history, temporary / "report" / "loss.png")
            (temporary / "report" / "report.md").write_text(self._page(), encoding="utf-8")
            (temporary / "report" / "samples.md").write_text(self._samples(), encoding="utf-8")
            self._card(folder.name).save(temporary / "README.md")

    def _page(self) -> str:
        rows = "\n".join(f"| {name} | {value} |" for name, value in self.figures.items())
        return (
            f"# {self.title}\n\n{self.description}\n\n| figure | value |\n|---|---|\n{rows}\n\n"
            "![Loss over training steps](loss.png)\n\n"
            "What the model says: [samples.md](samples.md). The recipe: [recipe.yaml](../recipe.yaml).\n"
        )

    def _samples(self) -> str:
        quoted = "\n\n".join("```text\n" + sample.replace("```", "'''") + "\n```" for sample in self.samples)
        return f"# Samples\n\n{quoted}\n"

    def _card(self, name: str) -> ModelCard:
        data = ModelCardData(
            library_name="transformers", pipeline_tag="text-generation", tags=["chatgpt_hf"], model_name=name
        )
        return ModelCard.from_template(
            data,
            template_path=str(card_template()),
            title=name,
            description=self.description,
            data=self.data,
            figures=self.figures,
            chat=self.chat,
            model_path=name,
            limits=(
                "It knows what its training text says, and may state falsehoods fluently. It has had no safety training; "
                "do not let it decide anything that matters."
            ),
        )


def card_template() -> Path:
    """Where the model card's template lies: in the wheel, or at the root of a checkout."""
    package = Path(__file__).parent
    shipped = package / "model_card.md"
    return shipped if shipped.is_file() else package.parents[1] / "model_card.md"


def plot_loss(log_history: list[dict[str, Any]], file: Path) -> None:
    """The training loss, and the held-out one where it was measured, over optimizer steps, in nats per token."""
    # Without pyplot, which would pick a window system and keep the figure alive.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label in (("loss", "training"), ("eval_loss", "held out")):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if key == "eval_loss" else None)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(file, dpi=120)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

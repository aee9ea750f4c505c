"""The run's report: a page, a picture and the samples, for people who would rather look than read logs."""

from pathlib import Path
from typing import Any

from .checkpoints import atomic_folder


def write_report(
    folder: Path,
    title: str,
    results: dict[str, Any],
    log_history: list[dict[str, Any]],
    samples: list[str],
) -> Path:
    """Writes `report/report.md`, `report/loss.png` and `report/samples.md` into the run's folder.

    Args:
        results: Figure by name.
        log_history: `Trainer`'s own.
        samples: Text that the model made.

    Returns:
        The page's path.
    """
    with atomic_folder(folder / "report") as temporary:
        plot_loss(log_history, temporary / "loss.png")
        rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in results.items())
        page = f"# {title}\n\n| figure | value |\n|---|---|\n{rows}\n\n![Loss over training steps](loss.png)\n"
        page += "\nWhat the model says: [samples.md](samples.md). The recipe: [recipe.yaml](../recipe.yaml).\n"
        (temporary / "report.md").write_text(page, encoding="utf-8")
        quoted = "\n\n".join("```text\n" + sample.replace("```", "'''") + "\n```" for sample in samples)
        (temporary / "samples.md").write_text(f"# Samples\n\n{quoted}\n", encoding="utf-8")
    return folder / "report" / "report.md"


def plot_loss(log_history: list[dict[str, Any]], file: Path) -> None:
    """The training loss, and the held-out one where it was measured, over optimizer steps, in nats per token."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for key, label in (("loss", "training"), ("eval_loss", "held out")):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if key == "eval_loss" else None)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

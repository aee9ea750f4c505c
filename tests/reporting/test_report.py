"""The page, the picture and the card of a run."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import TrainerState, TrainingArguments

from chatgpt_hf import pretrain
from chatgpt_hf.reporting import report
from chatgpt_hf.reporting.card import card_template
from chatgpt_hf.reporting.report import Report, plot_curves, training_facts
from chatgpt_hf.training.arguments import (
    ArchitectureArguments,
    CorpusArguments,
    ModelArguments,
    PretrainArguments,
    parse_recipe,
)

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class Source:
    source: str
    documents: int
    bytes: int
    tokens: int


def a_report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "title": "Pretraining",
        "description": "a base model that continues text.",
        "data": "my-texts/",
        "results": {
            "parameters": 1234567,
            "train_loss": 3.21,
            "train_tokens": 1000,
            "train_tokens_per_second": 100.0,
            "share_of_positions_used": 0.995,
            "held_out_bits_per_byte": 2.345678,
            "held_out_tokens": 1000,
            "note": "a text",
            "flag": True,
        },
        "log_history": [
            {"step": 1, "loss": 5.0, "learning_rate": 0.1, "grad_norm": 2.0, "tokens_per_second": 100.0, "mfu": 0.1},
            {"step": 2, "loss": 4.0, "learning_rate": 0.2, "grad_norm": 1.0, "tokens_per_second": 300.0, "mfu": 0.3},
            {"step": 2, "eval_loss": 4.5, "eval_bits_per_byte": 2.3, "perplexity": None},
            {"step": 2},
        ],
        "samples": ["One sample.", "Two: ```code``` 你好"],
    }
    return Report(**{**values, **changes})


def written(folder: Path, **changes: Any) -> tuple[str, dict[str, Any], ModelCard]:
    a_report(**changes).write(folder)
    page = (folder / "report" / "report.md").read_text(encoding="utf-8")
    content = json.loads(
        (folder / "report" / "report.json").read_text(encoding="utf-8"),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
    return page, content, ModelCard.load(folder / "README.md")


def test_everything_is_written(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("{}")
    page, _, _ = written(tmp_path / "run")
    names = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*")}
    inside = {f"report/{name}" for name in ("report.md", "report.json", "loss.png", "samples.md")}
    assert names == {"README.md", "report", "recipe.yaml"} | inside
    assert (tmp_path / "run" / "report" / "loss.png").read_bytes().startswith(PNG)

    for row in (
        "| parameters | 1,234,567 |",
        "| held_out_bits_per_byte | 2.346 |",
        "| note | a text |",
        "| flag | True |",
    ):
        assert row in page
    # Every link leads somewhere.
    for link in ("loss.png", "samples.md", "../recipe.yaml"):
        assert f"]({link})" in page
        assert (tmp_path / "run" / "report" / link).exists()
    samples = (tmp_path / "run" / "report" / "samples.md").read_text(encoding="utf-8")
    assert samples.count("```") == 4, "a sample cannot leave its block"
    assert "你好" in samples


def test_figures_stand_where_they_belong(tmp_path: Path) -> None:
    page, _, _ = written(tmp_path)
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    for section, figure in (
        ("Held out", "held_out_bits_per_byte"),
        ("Training", "train_loss"),
        ("Training", "train_tokens_per_second"),
        ("Data", "train_tokens"),
        ("Data", "share_of_positions_used"),
        ("Model", "parameters"),
        ("Also", "note"),
    ):
        assert f"| {figure} |" in sections[section]
        assert sum(f"| {figure} |" in text for text in sections.values()) == 1


def test_sources_settings_and_command(tmp_path: Path) -> None:
    statistics = [
        Source("a|b.txt", 3, 4000, 1000),
        {"source": "builtin", "documents": 2, "share_of_positions_used": 1.0},
    ]
    page, content, card = written(
        tmp_path,
        statistics=statistics,
        training={"optimizer": "muon", "learning rate": 0.02},
        command="chatgpt-hf pretrain recipe.yaml",
        tokens_per_step=64,
    )
    for text in (page, card.text):
        assert "| source | documents | bytes | tokens | bytes per token | share of positions used |" in text
        assert "| a\\|b.txt | 3 | 4,000 | 1,000 | 4 |  |" in text
        assert "| optimizer | muon |" in text
        assert "| tokens_per_second (median) | 200 |" in text
        assert "```bash\nchatgpt-hf pretrain recipe.yaml\n```" in text
    assert content["statistics"][0]["bytes_per_token"] == 4
    assert content["training"] == {
        "optimizer": "muon",
        "learning rate": 0.02,
        "tokens_per_second (median)": 200,
        "mfu (median)": 0.2,
    }
    assert content["results"] == a_report().results
    assert content["log_history"] == a_report().log_history
    assert content["command"] == "chatgpt-hf pretrain recipe.yaml"


def test_a_diverged_run_is_still_json(tmp_path: Path) -> None:
    _, content, card = written(
        tmp_path,
        results={"held_out_perplexity": math.inf, "held_out_bits_per_byte": math.nan},
        log_history=[{"step": 1, "loss": math.nan}],
    )
    assert content["results"] == {"held_out_perplexity": None, "held_out_bits_per_byte": None}
    assert content["log_history"] == [{"step": 1, "loss": None}]
    assert card.data.eval_results is None


def test_samples_of_the_run_in_progress(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    lines = [{"step": 5, "prompt": "", "text": "first"}, {"step": 1000, "prompt": "", "text": "se\u2028cond"}]
    file = tmp_path / "report" / "samples.jsonl"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    a_report().write(tmp_path)
    samples = (tmp_path / "report" / "samples.md").read_text(encoding="utf-8")
    parts = ["One sample.", "## During training", "### Step 5", "first", "### Step 1,000", "se\u2028cond"]
    assert [samples.index(part) for part in parts] == sorted(samples.index(part) for part in parts)
    assert file.is_file()


@pytest.mark.parametrize("chat", [False, True])
def test_the_card(chat: bool, tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    _, _, card = written(tmp_path / "my-model", chat=chat)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert (card.data.license, card.data.language) == (None, None), "nobody said, so it does not say"
    assert "my-model" in card.text
    assert "`my-texts/`" in card.text
    assert "| held_out_bits_per_byte | 2.346 |" in card.text
    assert ('"role": "user"' in card.text) is chat
    assert "{{" not in card.text
    assert "{%" not in card.text


def test_the_figures_of_the_card_can_be_read_back(tmp_path: Path) -> None:
    results = {"held_out_bits_per_byte": 2.345678, "held_out_perplexity": 12.5, "held_out_exact_match": 0.5}
    _, _, card = written(tmp_path / "my-model", results={**results, "held_out_tokens": 1000, "train_loss": 3.2})
    found = {result.metric_type: result for result in card.data.eval_results}
    assert {f"held_out_{name}": result.metric_value for name, result in found.items()} == results
    assert {(result.dataset_name, result.dataset_split) for result in found.values()} == {("my-texts/", "test")}
    assert card.data.model_name == "my-model"
    # It stays the same when saved and loaded again.
    card.save(tmp_path / "again.md")
    assert ModelCard.load(tmp_path / "again.md").data.to_dict() == card.data.to_dict()


def test_a_card_in_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, _, card = written(Path("."))
    assert card.data.model_name == tmp_path.name


@pytest.mark.parametrize(
    "history",
    [[], [{"step": 3}], [{"step": 1, "loss": 2.0}], [{"step": 1, "eval_loss": 2.0}], [{"step": 1, "mfu": 0.1}]],
)
@pytest.mark.parametrize("tokens_per_step", [None, 64])
def test_the_picture_of_little(history: list[dict[str, Any]], tokens_per_step: int | None, tmp_path: Path) -> None:
    plot_curves(history, tmp_path / "loss.png", tokens_per_step=tokens_per_step)
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)


def test_the_picture_has_a_panel_for_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    saved: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    plot_curves(a_report().log_history, tmp_path / "loss.png", tokens_per_step=64)
    (figure,) = saved
    loss, *panels = figure.axes
    assert [axes.get_ylabel() for axes in panels] == [
        "learning rate",
        "gradient norm",
        "tokens per second",
        "share of the peak (MFU)",
        "held-out bits per byte",
    ]
    assert [list(line.get_ydata()) for line in loss.lines] == [[5.0, 4.0], [4.5]]
    (tokens,) = loss.child_axes
    figure.draw_without_rendering()
    assert tokens.get_xlim() == pytest.approx([64 * limit for limit in loss.get_xlim()])


def test_facts_of_a_run(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        learning_rate=0.02,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": 4},
        warmup_steps=0.1,
        seed=7,
        use_cpu=True,
        report_to="none",
    )
    facts = training_facts(arguments, TrainerState(global_step=10, max_steps=20), tokens_per_step=6 * 32)
    expected = {"steps": 10, "tokens": 1920, "rows per step": 6, "learning rate": 0.02, "seed": 7, "warmup steps": 2}
    assert expected.items() <= facts.items()
    assert facts["schedule"] == 'warmup_stable_decay {"num_decay_steps": 4}'
    assert facts["optimizer"] == "adamw_torch_fused"
    assert facts["precision"] == "float32"
    assert torch.__version__ in facts["software"]
    assert f"{torch.get_num_threads()} threads" in facts["hardware"]
    assert facts["assumed watts"] == 12 * torch.get_num_threads()


def test_the_old_report_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_report().write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def broken(*arguments: Any, **keywords: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(report, "plot_curves", broken)
    with pytest.raises(ZeroDivisionError):
        a_report(title="Another").write(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_template_is_found() -> None:
    assert card_template().is_file()


def test_tensorboard_gets_every_figure(pretrain_options: list[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["--report_to", "tensorboard", "--eval_strategy", "steps", "--eval_steps", "2", "--output_dir"]
    types = (ModelArguments, ArchitectureArguments, CorpusArguments, PretrainArguments)
    pretrain(*parse_recipe(types, None, [*pretrain_options, *options, str(tmp_path / "run")]))
    (file,) = (tmp_path / "run" / "runs").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    steps = {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    for name in ("loss", "grad_norm", "learning_rate"):
        assert steps[f"train/{name}"] == [1, 2, 3, 4]
    for name in ("loss", "bits_per_byte"):
        assert steps[f"eval/{name}"] == [2, 4]

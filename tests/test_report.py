"""The page, the picture and the card that a run leaves."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from chatgpt_hf import report
from chatgpt_hf.report import Report, card_template, plot_loss

PNG = b"\x89PNG\r\n\x1a\n"


def a_report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "title": "Pretraining",
        "description": "a base model that continues text.",
        "data": "my-texts/",
        "results": {"parameters": 1234567, "held_out_bits_per_byte": 2.345678, "note": "a text", "flag": True},
        "log_history": [
            {"step": 1, "loss": 5.0},
            {"step": 2, "loss": 4.0},
            {"step": 2, "eval_loss": 4.5},
            {"step": 2},
        ],
        "samples": ["One sample.", "Two: ```code``` 你好"],
    }
    return Report(**{**values, **changes})


def test_everything_is_written(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("{}")
    a_report().write(tmp_path / "run")
    names = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*")}
    expected = {"README.md", "report", "report/report.md", "report/loss.png", "report/samples.md", "recipe.yaml"}
    assert names == expected
    assert (tmp_path / "run" / "report" / "loss.png").read_bytes().startswith(PNG)

    page = (tmp_path / "run" / "report" / "report.md").read_text(encoding="utf-8")
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


@pytest.mark.parametrize("chat", [False, True])
def test_the_card(chat: bool, tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    a_report(chat=chat).write(tmp_path / "my-model")
    card = ModelCard.load(tmp_path / "my-model" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "my-model" in card.text
    assert "`my-texts/`" in card.text
    assert "| held_out_bits_per_byte | 2.346 |" in card.text
    assert ('"role": "user"' in card.text) is chat
    assert "{{" not in card.text
    assert "{%" not in card.text


@pytest.mark.parametrize("history", [[], [{"step": 3}], [{"step": 1, "loss": 2.0}], [{"step": 1, "eval_loss": 2.0}]])
def test_the_picture_of_little(history: list[dict[str, Any]], tmp_path: Path) -> None:
    plot_loss(history, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)


def test_the_old_report_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_report().write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(report, "plot_loss", broken)
    with pytest.raises(ZeroDivisionError):
        a_report(title="Another").write(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_template_is_found() -> None:
    assert card_template().is_file()

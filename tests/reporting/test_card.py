"""The model card: made from the folder, kept if a person wrote it, and checked without the Hub."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import LlamaConfig, LlamaForCausalLM

from chatgpt_hf import load_model
from chatgpt_hf.errors import CardError
from chatgpt_hf.evaluation.record import Evaluation
from chatgpt_hf.reporting.card import check_card, hub_ids, make_card, write_card
from chatgpt_hf.reporting.footprint import assumed_watts
from chatgpt_hf.reporting.report import Report
from chatgpt_hf.stored import ORIGIN_FIELD, carry_origin, origin_of


@pytest.fixture
def folder(base_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base_folder, tmp_path / "my-model")


def reported(folder: Path, **changes: Any) -> None:
    values: dict[str, Any] = {
        "title": "Pretraining",
        "description": "a base model that continues text.",
        "data": "org/texts, my-texts/",
        "datasets": ["org/texts", "my-texts/"],
        "base_model": "org/base",
        "results": {"parameters": 123, "held_out_bits_per_byte": 2.5},
        "log_history": [{"step": 1, "loss": 5.0}],
        "command": "chatgpt-hf pretrain recipe.yaml --output_dir NEW",
    }
    (folder / "recipe.yaml").write_text("{}")
    Report(**{**values, **changes}).write(folder)


def test_of_a_run(folder: Path) -> None:
    reported(folder)
    card = ModelCard(make_card(folder, "me/mine", {"license": "apache-2.0", "language": ["en", "zh"]}))
    data = card.data.to_dict()
    assert data.pop("model-index")[0]["name"] == "mine"
    assert data == {
        "base_model": "org/base",
        "datasets": ["org/texts"],
        "language": ["en", "zh"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["chatgpt_hf"],
    }
    sections = ("Use", "What it is for", "Data", "Training", "Environmental cost", "Figures", "Bias")
    for section in (*sections, "Limits and risks", "Licence", "Citation"):
        assert card.text.count(f"\n## {section}\n") == 1
    for words in (
        'pipeline("text-generation", model="me/mine")',
        "import chatgpt_hf",
        "| held_out_bits_per_byte | 2.5 |",
        "| longest context, in tokens | 128 |",
        "```bash\nchatgpt-hf pretrain recipe.yaml --output_dir NEW\n```",
        "## Licence\n\napache-2.0\n\nIt was made from org/base",
        "@misc{mine,\n  title = {mine},\n  author = {me},",
    ):
        assert words in card.text
    assert "\n\n\n" not in card.text
    # `save_pretrained` brings the code along.
    assert "trust_remote_code=True" in card.text


def test_of_a_folder_without_a_run(folder: Path) -> None:
    card = ModelCard(make_card(folder, "mine"))
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert "None is named yet" in card.text
    assert "Not known: there is no training run in this folder" in card.text
    for absent in ("## Data", "## Training", "## Figures", "None`"):
        assert absent not in card.text


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("text-classification", 'pipeline("text-classification", model="mine")\nprint(model("A text of your own."))'),
        ("question-answering", "import chatgpt_hf.model.pipelines"),
        ("translation", 'pipeline("translation", model="mine")'),
        ("multiple-choice", 'AutoModelForCausalLM.from_pretrained("mine")'),
    ],
)
def test_use_is_that_of_the_task(task: str, words: str, folder: Path) -> None:
    reported(folder, task=task)
    text = make_card(folder, "mine")
    assert words in text
    assert ModelCard(text).data.pipeline_tag == task


def test_an_adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    adapter = {"base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    card = ModelCard(make_card(folder, "mine"))
    data = card.data
    assert (data.library_name, data.base_model, data.pipeline_tag) == ("peft", "org/base", "text-generation")
    # Nothing says of which family it is.
    assert "\nAn adapter.\n" in card.text
    assert "chatgpt model" not in card.text
    assert "import chatgpt_hf" not in card.text


def llama_in(folder: Path) -> Path:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA llama.\n")
    return folder


@pytest.mark.parametrize("base_is_there", [True, False])
def test_an_adapter_of_another_family(base_is_there: bool, tmp_path: Path) -> None:
    base, folder = llama_in(tmp_path / "base"), tmp_path / "lora"
    peft.get_peft_model(load_model(base), peft.LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(folder)
    (folder / "README.md").unlink()
    if base_is_there:
        card = make_card(folder, "mine")
        assert "\nAn adapter of a llama model.\n" in card
        assert "| parameters of the adapter | 64 |" in card
        assert "| parameters |" not in card
    origin = {**origin_of(base), "model_type": "llama"}
    reported(folder, origin=origin, results={"parameters": 964, "adapter_parameters": 64}, base_model=None)
    if not base_is_there:
        shutil.rmtree(base)
    card = make_card(folder, "mine")
    for words in (
        "\nAn adapter of a llama model, trained with chatgpt_hf from `base`: ",
        "| parameters | 900 |\n| parameters of the adapter | 64 |",
        "It was made from `base`, whose licence, apache-2.0, applies to it too",
    ):
        assert words in card
    for absent in ("import chatgpt_hf", "chatgpt model"):
        assert absent not in card


def test_what_is_made_of_a_model_names_it(base_folder: Path, tmp_path: Path) -> None:
    base, run = llama_in(tmp_path / "base"), tmp_path / "run"
    config = load_model(base).config
    carry_origin(config, base)
    assert getattr(config, ORIGIN_FIELD) == {"model_type": "llama", "name": "base", "license": "apache-2.0"}
    # The first one stays, whatever is made of it.
    carry_origin(config, tmp_path / "later")
    assert getattr(config, ORIGIN_FIELD)["name"] == "base"
    config.save_pretrained(run)
    card = make_card(run, "mine")
    assert "license: apache-2.0" in card
    assert "It was made from `base`, whose licence, apache-2.0, applies to it too" in card
    # What a run knew of its base.
    config = load_model(base).config
    reported(run, origin=origin_of(base))
    carry_origin(config, run)
    assert getattr(config, ORIGIN_FIELD) == {"model_type": "llama", "name": "base", "license": "apache-2.0"}
    # The licence that only the adapter names.
    (base / "README.md").rename(run / "README.md")
    config = load_model(base).config
    carry_origin(config, base, run)
    assert getattr(config, ORIGIN_FIELD) == {"model_type": "llama", "name": "base", "license": "apache-2.0"}
    config = load_model(base_folder).config
    carry_origin(config, base_folder)
    assert not hasattr(config, ORIGIN_FIELD)


def test_evaluations_come_with_their_commands(folder: Path) -> None:
    figure = {"value": 2.25, "low": 2.0, "high": 2.5}
    kept = {"task": "language-modeling", "data": "org/texts", "examples": 7, "figures": {"bits_per_byte": figure}}
    for name, command in (("by-hand", "chatgpt-hf evaluate mine --corpus org/texts"), ("of-the-run", "")):
        (folder / "evaluation" / name).mkdir(parents=True)
        (folder / "evaluation" / name / "results.json").write_text(json.dumps({**kept, "command": command}))
    card = ModelCard(make_card(folder, "mine"))
    assert "| language-modeling | org/texts | 7 | bits per byte | 2.25 [2, 2.5] |".replace(
        " per ", "_per_"
    ) in card.text.replace("bits per byte", "bits_per_byte")
    assert "```bash\nchatgpt-hf evaluate mine --corpus org/texts\n```" in card.text
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("bits_per_byte", 2.25, "org/texts")


def test_the_energy_is_time_times_power(folder: Path) -> None:
    training = {"hardware": "A CPU, 4 cores, 4 threads", "assumed watts": 48.0}
    reported(folder, results={"train_runtime": 900.0, "train_loss": 1.0}, training=training)
    text = make_card(folder, "mine")
    # 0.25 h at 48 W are 12 Wh; at 480 g per kWh they make 5.76 g.
    assert "0.25 hours of training × 48 W = 0.012 kWh, or 5.8 g of CO₂ equivalents.\n\nThe power is assumed" in text
    # For a resumed run, only the time of the last part is known.
    reported(folder, results={"train_runtime": 900.0}, training=training)
    text = make_card(folder, "mine")
    assert "48 W = at least 0.012 kWh" in text
    assert "only the time of its last part is known" in text
    for known in ({"train_runtime": 900.0}, {}):
        reported(folder, results=known, training=training if not known else {})
        assert "Not known: there is no training run" in make_card(folder, "mine")
    assert assumed_watts(torch.device("cpu")) == 12 * torch.get_num_threads()
    assert assumed_watts(torch.device("meta")) is None


def test_the_bias_that_was_measured(cli: Callable[..., Any], folder: Path) -> None:
    assert "Not measured. `chatgpt-hf evaluate me/mine --bias` measures it" in make_card(folder, "me/mine")
    assert cli("evaluate", folder, "--bias").code == 0
    card = ModelCard(make_card(folder, "mine"))
    figures = Evaluation.load(folder / "evaluation" / "bias").figures()
    for figure in figures.values():
        assert f"| {figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}] |" in card.text
    assert f"```bash\nchatgpt-hf evaluate {folder} --bias\n```" in card.text
    assert "says nothing about other prejudices" in card.text
    # In a separate section, not among the model's figures.
    assert "## Figures" not in card.text
    assert card.data.eval_results is None
    # A classifier's sentences have no probabilities.
    reported(folder, task="text-classification")
    assert "## Bias" not in make_card(folder, "mine")


def test_metadata_lives_on_and_the_text_follows(folder: Path) -> None:
    reported(folder)
    write_card(folder, make_card(folder, "mine", {"license": "mit"}))
    # Metadata changed by hand count as given.
    file = folder / "README.md"
    file.write_text(file.read_text().replace("tags:", "extra: yes, please\ntags:"))
    reported(folder, results={"held_out_bits_per_byte": 1.5})
    card = ModelCard(make_card(folder, "me/mine"))
    assert (card.data.license, card.data.model_name) == ("mit", "mine")
    assert [result.metric_value for result in card.data.eval_results] == [1.5]
    assert 'model="me/mine"' in card.text
    again = make_card(folder, "me/mine")
    write_card(folder, again)
    assert make_card(folder, "me/mine") == again == file.read_text()


def test_a_text_of_a_person_stays(folder: Path) -> None:
    reported(folder)
    file = folder / "README.md"
    text = file.read_text().replace("## Use", "## How I use it")
    file.write_text(text)
    assert make_card(folder, "me/mine") == text
    with_license = ModelCard(make_card(folder, "me/mine", {"license": "mit"}))
    assert with_license.data.license == "mit"
    assert with_license.text == ModelCard(text).text
    # A card without metadata gets them.
    file.write_text("# Mine\n\nAll my own words.\n")
    card = ModelCard(make_card(folder, "me/mine"))
    assert card.data.pipeline_tag == "text-generation"
    assert card.text.strip() == "# Mine\n\nAll my own words."


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("license: Apache License 2.0", "license is 'Apache License 2.0', but must be an identifier"),
        ("license: other", "license is other, so it needs license_name"),
        ("language: no", "language is False, but must be codes such as en or zh, in quotes"),
        ("language: English", "language is 'English'"),
        ("base_model: ./runs/base", "base_model is './runs/base', but must be the id of a model on the Hub"),
        ("datasets: [/data/x.jsonl]", "datasets is '/data/x.jsonl'"),
        ("pipeline_tag: [text-generation]", "pipeline_tag is ['text-generation'], but must be a task"),
        ("tags: [1]", "tags is 1, but must be a list of words"),
        ("license: [mit", "cannot be read"),
        ("- a\n- b", "cannot be read: repo card metadata block should be a dict"),
        ("model-index: [{name: x}]", "cannot be read: Invalid `model_index`"),
        (
            "model-index: [{name: x, results: [{task: {type: t}, dataset: {type: d, name: d}, "
            "metrics: [{type: loss, value: .nan}]}]}]",
            "model-index gives loss the value nan, which is not a number",
        ),
    ],
)
def test_invalid_metadata(metadata: str, words: str) -> None:
    with pytest.raises(CardError) as caught:
        check_card(f"---\n{metadata}\n---\n# Mine\n", Path("here/README.md"))
    assert words in str(caught.value)
    assert "here/README.md" in str(caught.value)


def test_ids_and_files_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").touch()
    names = ["runs/mine", "org/name", "name", "builtin:python-docs", "texts/*.txt", "my-texts/", None, "a/b/c"]
    assert hub_ids(names) == ["org/name", "name"]


def test_the_command(cli: Callable[..., Any], refused: Callable[..., str], folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shown = cli("card", folder, "--repo_id", "me/mine")
    assert shown.code == 0, shown
    assert 'model="me/mine"' in shown.out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert cli("card", folder, "--license", "mit", "--language", "en", "--dataset", "org/a", "--write").code == 0
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.language, data.datasets) == ("mit", "en", ["org/a"])
    assert "license is 'Do what you like'" in refused("card", folder, "--license", "Do what you like", "--write")
    assert ModelCard.load(folder / "README.md").data.license == "mit"
    assert "does not contain a model" in refused("card", folder.parent)

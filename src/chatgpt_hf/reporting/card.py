"""Makes the model card, README.md with metadata, from the content of a model's folder, and checks it before upload."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from .. import __version__
from ..errors import CardError, one_line
from ..files import read_json, write_atomically
from ..parsing import parse_yaml, read_file
from ..stored import CARD_NAME as CARD_NAME
from ..stored import ORIGIN_FIELD, base_of, config_of, is_foreign, quantization_of, read_header, stored_tensors
from ..stored import REPORT_FILE as REPORT_FILE
from .footprint import KILOGRAMS_PER_KILOWATT_HOUR, WATTS_PER_CORE, estimate
from .stored_figures import read_evaluations
from .stored_figures import read_facts as read_facts

# Metadata fields that a person may give; the others come from the folder.
GIVEN_FIELDS = ("license", "language", "datasets", "base_model")

_LICENCE_FIELDS = ("license", "license_name", "license_link")
# Held-out figures that are common on model cards.
_KNOWN_METRICS = {
    "loss": "Loss (nats per token)",
    "bits_per_byte": "Bits per byte",
    "perplexity": "Perplexity per token",
    "exact_match": "Exact match",
    "rouge_l": "ROUGE-L",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "f1": "F1",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rougeL": "ROUGE-L",
}
# Task of evaluations by `chatgpt-hf evaluate --bias`.
_BIAS = "bias"
# Pipelines by the end of a model class' name, and by PEFT's name for an adapter's task.
_TASKS = {
    "ForCausalLM": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
}
_SHAPE = {
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "attention heads",
    "max_position_embeddings": "longest context, in tokens",
    "vocab_size": "vocabulary",
}
# The last line of a card that we made: the hash of its text shows whether a person has changed it.
_MARK = re.compile(r"\n*<!-- Made by chatgpt-hf from this folder\. A text that is changed is kept\. (\w+) -->\s*\Z")
_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]*")
_LANGUAGE = re.compile(r"code|multilingual|[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def make_card(folder: Path, name: str, given: Mapping[str, Any] | None = None) -> str:
    """Returns the card that is uploaded with a folder.

    If the folder has a README.md with a person's text, only the given metadata change. Otherwise the text is generated, and
    the metadata of an existing README.md are kept.

    Args:
        folder: The model's folder.
        name: The name for loading the model: a repo id, or a folder.
        given: Metadata by the names of `GIVEN_FIELDS`; None means not given.

    Raises:
        CardError: If the folder's README.md is not a file, or has metadata that cannot be read or that the Hub rejects.
    """
    file = folder / CARD_NAME
    if file.exists() and not file.is_file():
        raise CardError(f"{file} is not a file: remove it, or give it another name.")
    given = {key: value for key, value in (given or {}).items() if value is not None}
    before = read_card(file) if file.is_file() else None
    if before is None or _is_made(before):
        text = render_card(folder, name, read_facts(folder), metadata={**_kept(before), **given})
    elif not given and before.data.to_dict():
        text = read_file(file, "utf-8-sig")
    else:
        made = read_facts(folder)
        data = before.data if before.data.to_dict() else _metadata(folder, name, made)
        for key, value in given.items():
            data[key] = value
        text = f"---\n{data.to_yaml()}\n---\n{before.text}"
    check_card(text, file)
    return text


def write_card(folder: Path, text: str) -> None:
    """Writes the card into the folder, unless it is already there."""
    file = folder / CARD_NAME
    if not file.is_file() or file.read_bytes() != text.encode():
        write_atomically(file, lambda path: path.write_bytes(text.encode()))


def render_card(
    folder: Path,
    name: str,
    facts: Mapping[str, Any],
    *,
    metadata: Mapping[str, Any] | None = None,
    step: int | None = None,
) -> str:
    """Returns the card of a model.

    Args:
        folder: The model's folder.
        name: The name for loading the model: a repo id, or a folder.
        facts: The content of `report/report.json`; empty if the model is not from a run of ours.
        metadata: Metadata that replace those found in the folder.
        step: The checkpoint's step if the model is a checkpoint of the run; the run's figures are then left out.
    """
    facts = dict(facts)
    if step is not None:
        facts["results"] = {}
    data = _metadata(folder, name, facts, measured=step is None)
    for key, value in (metadata or {}).items():
        data[key] = value
    config, is_adapter = _config(folder, facts), _is_adapter(folder)
    family = config.get("model_type")
    origin = _origin(config, facts)
    title = name.rpartition("/")[2]
    evaluations = [] if step is not None else read_evaluations(folder)
    bias = next((found for found in evaluations if found["task"] == _BIAS), None)
    evaluations = [found for found in evaluations if found is not bias]
    card = ModelCard.from_template(
        data,
        template_path=str(card_template()),
        title=title,
        name=name,
        namespace=name.rpartition("/")[0],
        version=__version__,
        step=step,
        task=data["pipeline_tag"],
        description=facts.get("description") or f"a model for {data['pipeline_tag'].replace('-', ' ')}.",
        shape=markdown_table(pairs("", _shape(folder, config, facts))),
        data_sources=facts.get("data"),
        sources=markdown_table(facts.get("statistics") or facts.get("columns") or []),
        training=markdown_table(pairs("setting", facts.get("training") or {})),
        figures=markdown_table(pairs("figure", facts.get("results") or {})),
        evaluations=markdown_table([row for evaluation in evaluations for row in _evaluation_rows(evaluation)]),
        commands="\n".join(evaluation["command"] for evaluation in evaluations),
        bias=bias and {**bias, "figures": {name: _interval(figure) for name, figure in bias["figures"].items()}},
        footprint=estimate(facts),
        watts_per_core=WATTS_PER_CORE,
        kilograms=KILOGRAMS_PER_KILOWATT_HOUR,
        command=facts.get("command"),
        recipe=(folder / "recipe.yaml").is_file() or "description" in facts,
        report="description" in facts,
        chat=facts["chat"] if "chat" in facts else (folder / "chat_template.jinja").is_file(),
        own=family == "chatgpt",
        what=("An adapter" + (f" of a {family} model" if family else "")) if is_adapter else f"A {family} model",
        origin=origin,
        licence_files=[file.name for file in sorted(folder.glob("LICEN[SC]E*")) if file.is_file()],
        remote_code="auto_map" in config and not is_adapter,
    )
    body = card.text.rstrip()
    mark = f"<!-- Made by chatgpt-hf from this folder. A text that is changed is kept. {_digest(body)} -->"
    return f"---\n{card.data.to_yaml()}\n---\n{body}\n\n{mark}\n"


def kept_metadata(folder: Path) -> dict[str, Any]:
    """Returns the metadata that a person may have added to a card that we made; empty for any other card."""
    try:
        before = read_card(folder / CARD_NAME)
    except (OSError, CardError):
        return {}
    return given_metadata(before) if _is_made(before) else {}


def given_metadata(card: ModelCard) -> dict[str, Any]:
    """Returns the metadata that a person may have given: license, languages, data sets, base model."""
    return {key: value for key, value in card.data.to_dict().items() if key.startswith(GIVEN_FIELDS)}


def read_card(file: Path) -> ModelCard:
    """Reads a card from its file.

    Raises:
        CardError: If its metadata are not YAML or not a mapping, or its model-index is malformed.
    """
    try:
        text = read_file(file, "utf-8-sig")
    except (OSError, ValueError) as error:
        raise CardError(f"{file} cannot be read: {error}") from error
    return _parse(text, file)


def _parse(text: str, file: Path) -> ModelCard:
    try:
        if block := REGEX_YAML_BLOCK.search(text):
            # Bounds what is in it, before it is read and written again.
            parse_yaml(block[2])
        return ModelCard(text)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CardError(f"{file}: the metadata between the --- lines cannot be read: {one_line(error)}") from error


def check_card(text: str, file: Path) -> None:
    """Checks a card for metadata that the Hub would reject, as far as possible without a request.

    Args:
        text: The card's text.
        file: The card's file, for the message.

    Raises:
        CardError: If fields are wrong; names each of them and what would be right.
    """
    data = _parse(text, file).data
    wrong = [
        *_wrong(data, "license", _SLUG.fullmatch, "an identifier such as apache-2.0, mit or other"),
        *_wrong(
            data, "language", _LANGUAGE.fullmatch, 'codes such as en or zh, in quotes where YAML reads a bool ("no")'
        ),
        *_wrong(data, "library_name", _SLUG.fullmatch, "a name such as transformers", many=False),
        *_wrong(data, "pipeline_tag", _SLUG.fullmatch, "a task such as text-generation", many=False),
        *_wrong(data, "base_model", _is_repo_id, "the id of a model on the Hub, not a folder"),
        *_wrong(data, "datasets", _is_repo_id, "ids of data sets on the Hub, not files"),
        *_wrong(data, "tags", bool, "a list of words"),
        *_wrong(data, "metrics", bool, "a list of names"),
    ]
    if data.get("license") == "other" and not data.get("license_name"):
        wrong.append("license is other, so it needs license_name, and license_link or a file LICENSE")
    for result in data.get("eval_results") or []:
        names = (result.task_type, result.dataset_type, result.dataset_name, result.metric_type)
        if not all(isinstance(value, str) and value for value in names):
            wrong.append(f"model-index has a result without task, dataset or metric as text: {names}")
        value = result.metric_value
        if not isinstance(value, (str, dict)) and not (isinstance(value, (int, float)) and abs(value) < math.inf):
            wrong.append(f"model-index gives {result.metric_type} the value {value}, which is not a number")
    if wrong:
        raise CardError(f"{file} has metadata that the Hub rejects: {'; '.join(wrong)}.")


def hub_ids(names: Iterable[str | None]) -> list[str]:
    """Returns the names that are Hub ids: not local files or folders, and not built in."""
    return [name for name in names if name and _is_repo_id(name) and not Path(name).exists()]


def card_template() -> Path:
    """Returns the path of the model card's template: in the wheel, or at the root of a checkout."""
    package = Path(__file__).parents[1]
    shipped = package / "model_card.md"
    return shipped if shipped.is_file() else package.parents[1] / "model_card.md"


def _metadata(folder: Path, name: str, facts: Mapping[str, Any], *, measured: bool = True) -> ModelCardData:
    adapter = read_json(folder / ADAPTER_CONFIG_NAME)
    config = read_json(folder / CONFIG_NAME)
    # The run checked whether its base was a folder. Later or elsewhere, a relative path would look like an id.
    origin = _origin(_config(folder, facts), facts) or {}
    base = facts.get("base_model") if facts else base_of(folder) or origin.get("name")
    # The same weights in another form keep their licence; whoever trained them further names one for the result.
    licence = (
        {} if facts or _is_adapter(folder) else {name: origin[name] for name in _LICENCE_FIELDS if name in origin}
    )
    task = facts.get("task") or _task(config, adapter)
    return ModelCardData(
        base_model=next(iter(hub_ids([base])), None),
        datasets=facts.get("datasets") or None,
        language=facts.get("language"),
        **licence,
        library_name="peft" if _is_adapter(folder) else "transformers",
        pipeline_tag=task,
        tags=["chatgpt_hf"],
        model_name=name.rpartition("/")[2],
        eval_results=(_eval_results(folder, facts, task) or None) if measured else None,
    )


def _task(config: Mapping[str, Any], adapter: Mapping[str, Any]) -> str:
    names = [*(config.get("architectures") or []), str(adapter.get("task_type"))]
    return next((task for end, task in _TASKS.items() for name in names if name.endswith(end)), "feature-extraction")


def _eval_results(folder: Path, facts: Mapping[str, Any], task: str) -> list[EvalResult]:
    results = facts.get("results") or {}
    data = str(facts.get("data"))
    found: list[tuple[str, str, str | None, str, str, Any]] = [
        (task, data, "test", name, title, results.get(f"held_out_{name}")) for name, title in _KNOWN_METRICS.items()
    ]
    for evaluation in read_evaluations(folder):
        # The card explains the bias probe in its own section; as bare numbers its figures would say little.
        figures = {} if evaluation["task"] == _BIAS else evaluation["figures"]
        for name, figure in figures.items():
            title = _KNOWN_METRICS.get(name, name)
            found.append((evaluation["task"], evaluation["data"], None, name, title, figure["value"]))
    return [
        EvalResult(
            task_type=kind,
            dataset_type=source,
            dataset_name=source,
            dataset_split=split,
            metric_type=name,
            metric_name=title,
            metric_value=value,
        )
        for kind, source, split, name, title, value in found
        # The Hub reads the metadata as JSON, which has no infinity.
        if value is not None and math.isfinite(value)
    ]


def _evaluation_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "task": evaluation["task"],
            "data": evaluation["data"],
            "rows": evaluation["examples"],
            "figure": name,
            "value [95 % interval]": _interval(figure),
            **({"measured with": figure["signature"]} if figure.get("signature") else {}),
        }
        for name, figure in evaluation["figures"].items()
    ]


def _interval(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "–"
    return f"{figure['value']:.4g} [{figure['low']:.4g}, {figure['high']:.4g}]"


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG_NAME).is_file() and not (folder / CONFIG_NAME).is_file()


def _config(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's config; for an adapter that of its base, with at least `model_type` if the run or a folder says it."""
    if not _is_adapter(folder):
        return {"model_type": "chatgpt", **read_json(folder / CONFIG_NAME)}
    base = base_of(folder)
    if base and Path(base).is_dir() and (found := config_of(base)):
        named = {ORIGIN_FIELD: {"name": Path(base).resolve().name, **(found.get(ORIGIN_FIELD) or {})}}
        return {**found, **(named if is_foreign(base) else {})}
    if facts:
        # A run names the origin of every base that is not ours.
        return {"model_type": (facts.get("origin") or {"model_type": "chatgpt"}).get("model_type")}
    return {ORIGIN_FIELD: {"name": base}}


def _origin(config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what is known about the model that this one was made from, if that was not made with this package.

    Keys are `name`, `model_type`, `license` and its relatives, as far as known; None for a model that is ours from the start.
    """
    converted = config.get(ORIGIN_FIELD) or {}
    if not converted and not facts.get("origin") and config.get("model_type") == "chatgpt":
        return None
    known = {"model_type": config.get("model_type"), **converted, **(facts.get("origin") or {})}
    return {name: value for name, value in known.items() if value}


def _shape(folder: Path, config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    results = facts.get("results") or {}
    parameters, adapters = results.get("parameters"), results.get("adapter_parameters")
    if _is_adapter(folder):
        stored = [tensor for file in folder.glob("adapter_model*.safetensors") for tensor in read_header(file)]
        adapters = adapters or sum(math.prod(tensor.shape) for tensor in stored) or None
        # A run counts both together.
        parameters = parameters - adapters if parameters and adapters else None
    elif parameters is None and quantization_of(folder) is None:
        # One of two tied weights is stored.
        parameters = sum(math.prod(shape) for _, _, shape in stored_tensors(folder)) or None
    counts = {"parameters": parameters, "parameters of the adapter": adapters}
    found = {title: config.get(key) for key, title in _SHAPE.items()}
    return {key: value for key, value in {**counts, **found}.items() if value is not None}


def _kept(card: ModelCard | None) -> dict[str, Any]:
    """Returns a card's metadata that its next version keeps; the figures come from the report."""
    kept = {} if card is None else card.data.to_dict()
    return {key: value for key, value in kept.items() if key != "model-index"}


def _is_made(card: ModelCard) -> bool:
    """True if we made the text and nobody changed it since; the metadata may have changed."""
    mark = _MARK.search(card.text)
    return mark is not None and _digest(card.text[: mark.start()]) == mark[1]


def _digest(text: str) -> str:
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _wrong(data: CardData, field: str, right: Any, wanted: str, *, many: bool = True) -> list[str]:
    value = data.get(field)
    if value is None:
        return []
    values = value if many and isinstance(value, list) else [value]
    bad = [item for item in values if not isinstance(item, str) or not right(item)]
    return [f"{field} is {', '.join(map(repr, bad))}, but must be {wanted}"] if bad else []


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def pairs(name: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns table rows of names and values."""
    return [{name: key, "value": value} for key, value in values.items()]


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Returns a Markdown table with a column for every key, or an empty string without rows."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[name.replace("_", " ") for name in columns], ["---"] * len(columns)]
    lines += [[_shown(row.get(name, "")) for name in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if rows else ""


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        # A cell must be one line, and a bar would end it.
        return " ".join(str(value).split()).replace("|", "\\|")
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"

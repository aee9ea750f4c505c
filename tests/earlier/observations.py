"""What can be seen of an artefact through the public functions: logits, losses, answers, the steps of a resumed run."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import fields, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    TrainingArguments,
    pipeline,
)
from trl import SFTConfig

from chatgpt_hf import ChatGPTForCausalLM, ChatSession, load_model, load_tokenizer, pretrain, sft
from chatgpt_hf.conversion.merge import merge_adapter
from chatgpt_hf.evaluate import measure_task
from chatgpt_hf.evaluation.record import EVALUATION_FOLDER, Evaluation
from chatgpt_hf.model.pipelines import PIPELINES as OUR_PIPELINES
from chatgpt_hf.tasks.arguments import TaskArguments
from chatgpt_hf.training import arguments as kinds
from chatgpt_hf.training.arguments import parse_recipe
from chatgpt_hf.training.finetune import finetune

COMMANDS: dict[str, tuple[tuple[type, ...], Callable[..., dict[str, Any]]]] = {
    "pretrain": (
        (kinds.ModelArguments, kinds.ArchitectureArguments, kinds.CorpusArguments, kinds.PretrainArguments),
        pretrain,
    ),
    "sft": ((kinds.ChatModelArguments, kinds.ConversationArguments, kinds.ChatSFTArguments), sft),
    "finetune": ((kinds.TaskModelArguments, TaskArguments, kinds.FinetuneArguments), finetune),
}

# Runs that were interrupted after half of their steps: the command, the step of the checkpoint, the last step.
RUNS = {
    "trained/finite": ("pretrain", 3, 6),
    "trained/streaming": ("pretrain", 3, 6),
    "trained/chat": ("sft", 3, 6),
    "trained/adapter": ("sft", 3, 6),
    "trained/topics": ("finetune", 3, 6),
}
CAUSAL = (
    *("trained/finite", "trained/streaming", "trained/chat", "trained/adapter"),
    *("models/translation", "models/summarization", "models/choices"),
    *("models/ngrams", "models/grouped", "models/gpt2-layout", "models/gpt2"),
)
# A folder of GPT-2's, read as one of ours.
AS_OURS = "models/gpt2 as ours"
HEADS: dict[str, Any] = {
    "trained/topics": AutoModelForSequenceClassification,
    "models/tags": AutoModelForTokenClassification,
    "models/answers": AutoModelForQuestionAnswering,
}
QUESTION = {"question": "Where?", "context": "The dog sits in a house. The cat sits in the garden."}
# Folder, task, input, options.
PIPELINES: tuple[tuple[str, str, Any, dict[str, Any]], ...] = (
    ("trained/finite", "text-generation", "The cat", {"do_sample": False, "max_new_tokens": 8}),
    ("trained/topics", "text-classification", "The horse sits in a house.", {"top_k": None}),
    ("models/tags", "token-classification", "The dog sits in a house .", {"aggregation_strategy": "first"}),
    ("models/answers", "question-answering", QUESTION, {"top_k": 2}),
    ("models/translation", "translation", "The dog.", {"max_new_tokens": 8}),
    ("models/summarization", "summarization", "The dog.", {"max_new_tokens": 8}),
)
INPUTS = ([[70, 104, 105, 36, 103, 101, 120, 260, 265, 270]], [[5, 40, 77, 77, 200, 3, 41]])
TIMING = ("runtime", "per_second", "mfu")


def logits_and_losses(model: Any) -> dict[str, Any]:
    """Of the two fixed inputs: logits at the last position (of a head at all), the loss, greedy ids."""
    model = model.eval()
    seen: dict[str, Any] = {"logits": [], "loss": [], "greedy": []}
    for ids in map(torch.tensor, INPUTS):
        labels: dict[str, Any] = {"labels": ids}
        name = type(model).__name__
        if name.endswith("SequenceClassification"):
            labels = {"labels": ids[:, -1] % model.config.num_labels}
        elif name.endswith("TokenClassification"):
            labels = {"labels": ids % model.config.num_labels}
        elif name.endswith("QuestionAnswering"):
            labels = {"start_positions": ids[:, 0] % 7, "end_positions": ids[:, 1] % 7}
        with torch.no_grad():
            output = model(input_ids=ids, **labels)
        seen["loss"].append(output.loss.item())
        if "start_logits" in output:
            seen["logits"] += [output.start_logits, output.end_logits]
            continue
        causal = output.logits.shape[-1] == model.config.vocab_size
        seen["logits"].append(output.logits[:, -1] if causal else output.logits)
        if causal:
            written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
            seen["greedy"].append(written[0].tolist())
    return seen


def through_auto_classes(root: Path, folder: str) -> dict[str, Any]:
    """A model folder as users of transformers load it."""
    with chdir(root):
        return logits_and_losses(HEADS.get(folder, AutoModelForCausalLM).from_pretrained(folder))


def through_our_loader(root: Path, folder: str) -> dict[str, Any]:
    """A model folder, or an adapter, by `load_model`."""
    with chdir(root):
        if folder == AS_OURS:
            return logits_and_losses(load_model("models/gpt2", ChatGPTForCausalLM))
        return logits_and_losses(load_model(folder, HEADS.get(folder, AutoModelForCausalLM)))


def merged(root: Path, folder: str) -> dict[str, Any]:
    """An adapter and its base as one model."""
    with chdir(root), TemporaryDirectory() as temporary:
        merge_adapter(folder, f"{temporary}/merged")
        return logits_and_losses(AutoModelForCausalLM.from_pretrained(f"{temporary}/merged"))


def through_pipelines(root: Path) -> dict[str, Any]:
    """What the pipelines say, by folder; those of tasks that transformers has no pipeline for by the code in the folder."""
    with chdir(root):
        return {
            folder: _plain(
                pipeline(task, folder, device="cpu", trust_remote_code=task in OUR_PIPELINES)(given, **options)
            )
            for folder, task, given, options in PIPELINES
        }


def through_our_pipelines(root: Path) -> dict[str, Any]:
    """The same by the package's pipelines."""
    with chdir(root):
        return {
            folder: _plain(
                OUR_PIPELINES[task][0](
                    model=load_model(folder, OUR_PIPELINES[task][1]).eval(),
                    tokenizer=load_tokenizer(folder),
                    task=task,
                )(given, **options)
            )
            for folder, task, given, options in PIPELINES
            if task in OUR_PIPELINES
        }


def in_a_chat(root: Path) -> dict[str, str]:
    """A greedy answer of the chat model and of the adapter."""
    with chdir(root):
        return {
            folder: ChatSession.from_pretrained(folder, do_sample=False, max_new_tokens=8).reply("Hello!")
            for folder in ("trained/chat", "trained/adapter")
        }


def measured(root: Path) -> dict[str, Any]:
    """Figures of a finished multiple-choice model on its rows, measured again, and of the records of all tasks, read again."""
    with chdir(root):
        again = measure_task("models/choices", "choices.jsonl", out=Path("again"))
        shutil.rmtree("again")
        figures = {task: {name: figure.value for name, figure in found.items()} for task, found in again.items()}
        for folder in sorted(Path().glob(f"*/*/{EVALUATION_FOLDER}/*")):
            record = Evaluation.load(folder)
            figures[folder.as_posix()] = {name: float(figure.value) for name, figure in record.figures().items()}
        return figures


def token_ids(root: Path) -> dict[str, list[list[int]]]:
    """Ids of two texts, with every tokenizer there is, by folder."""
    texts = ["The cat sits in 123 houses.\n", "你好 😀 <|im_start|>"]
    with chdir(root):
        found = {}
        for file in sorted(Path().glob("**/tokenizer.json")):
            folder = file.parent.as_posix()
            if folder.endswith("checkpoint-6"):
                continue
            found[folder] = [AutoTokenizer.from_pretrained(folder)(text)["input_ids"] for text in texts]
            assert [load_tokenizer(folder)(text)["input_ids"] for text in texts] == found[folder]
        return found


def steps(root: Path, folder: str) -> dict[str, Any]:
    """The steps of a finished run after its checkpoint: logs and figures, without what depends on the clock."""
    _, first, last = RUNS[folder]
    state = json.loads((root / folder / f"checkpoint-{last}" / "trainer_state.json").read_text(encoding="utf-8"))
    results = json.loads((root / folder / "results.json").read_text(encoding="utf-8"))
    return {
        "logs": [
            {name: value for name, value in entry.items() if not name.endswith(TIMING)}
            for entry in state["log_history"]
            if entry["step"] > first
        ],
        # A resumed run has no mean loss over all its steps.
        "results": {
            # Release 0.1 did not say how it read the words of a figure.
            name: value
            for name, value in results.items()
            if not name.startswith("train_") and name not in ("epoch", "rouge_l_measured_with")
        },
    }


def final_weights(root: Path, folder: str) -> dict[str, torch.Tensor]:
    """Of the model that a finished run left, or of its adapter."""
    (file,) = (root / folder).glob("*.safetensors")
    return load_file(file)


def resume(root: Path, folder: str) -> dict[str, Any]:
    """Resumes a run by its own recipe.yaml, as if it had been interrupted after its checkpoint."""
    command, first, last = RUNS[folder]
    types, run = COMMANDS[command]
    assert (root / folder / f"checkpoint-{first}").is_dir()
    assert not (root / folder / f"checkpoint-{last}").exists()
    for file in (root / folder).glob("*.safetensors"):
        file.unlink()
    (root / folder / "results.json").unlink()
    shutil.rmtree(root / folder / EVALUATION_FOLDER, ignore_errors=True)
    with chdir(root):
        run(*parse_recipe(types, f"{folder}/recipe.yaml", ["--resume_from_checkpoint", "true"]))
    return steps(root, folder)


def resolved(command: str, recipe: Path | str | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Every field that a recipe with overrides resolves to."""
    types, _ = COMMANDS[command]
    return {name: value for group in parse_recipe(types, recipe, overrides) for name, value in values(group).items()}


def upstream_defaults(command: str) -> dict[str, Any]:
    """What the installed transformers and TRL give to the fields that are theirs."""
    kind: Any = SFTConfig if command == "sft" else TrainingArguments
    # As `default_arguments` does it; without a GPU, TRL's defaults are refused unless it is said.
    quiet = {"_setup_devices": torch.device("cpu"), "distributed_state": None}
    return values(type(kind.__name__, (kind,), quiet)(use_cpu=True))


def values(group: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON has them."""
    return {item.name: _plain(getattr(group, item.name)) for item in fields(group) if item.init}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if is_dataclass(value) and not isinstance(value, type):
        return values(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)


def models(root: Path) -> dict[str, Any]:
    """What each model folder gives, by the loader that its users would take."""
    found = {folder: through_auto_classes(root, folder) for folder in (*CAUSAL, *HEADS) if folder != "trained/adapter"}
    return found | {folder: through_our_loader(root, folder) for folder in ("trained/adapter", AS_OURS)}


def observe(root: Path) -> dict[str, Any]:
    """Everything but the resumed steps, of all artefacts below `root`."""
    return {
        "models": models(root),
        "pipelines": through_pipelines(root),
        "chat": in_a_chat(root),
        "measured": measured(root),
        "tokens": token_ids(root),
        "merged": {"trained/adapter": merged(root, "trained/adapter")},
    }

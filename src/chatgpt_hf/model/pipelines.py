"""Pipelines for tasks that transformers has none for any more, registered with `PIPELINE_REGISTRY` when imported.

Like the model files, this one travels with a saved model: it imports torch, transformers and its neighbours alone, and
`pipeline(task, folder, trust_remote_code=True)` finds it in the folder where this package is not installed. What a task
needs to know of its training, such as the prompt's template, is in the model's `config.task_specific_params`.
"""

import os
import string
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForQuestionAnswering, GenerationConfig, Pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS
from transformers.pipelines.base import ChunkPipeline

from .spans import best_answers, context_windows


def template_columns(template: str) -> list[str]:
    """The columns that a template such as `"{title}\\n{author}\\n"` names."""
    return list(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name))


def template_suffix(template: str) -> str:
    """The text after the last column of a template."""
    return template.rpartition("}")[2]


def fit_prompt(tokenizer: Any, prompt: str, max_tokens: int, *, suffix: str = "") -> str:
    """A prompt of at most `max_tokens`: what is too much is cut off the end of it, or from before `suffix`.

    Raises:
        ValueError: When the suffix alone takes more.
    """
    body = prompt.removesuffix(suffix)
    while (excess := len(tokenizer(body + suffix)["input_ids"]) - max_tokens) > 0:
        if not body:
            raise ValueError(
                f"The end of the prompt, {suffix!r}, takes more than the {max_tokens} tokens there are for it."
            )
        offsets = tokenizer(body, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        body = body[: offsets[-excess][0]] if excess < len(offsets) else ""
    return body + suffix


class _PromptPipeline(Pipeline):
    """Text in, text out, through the prompt that the model was fine-tuned with."""

    output_name: str

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=128)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # In a batch the answers begin where the prompts end.
        self.tokenizer.padding_side = "left"

    def _sanitize_parameters(self, **generate_kwargs: Any) -> tuple[dict, dict, dict]:
        return {}, generate_kwargs, {}

    @property
    def _settings(self) -> dict[str, Any]:
        settings = (getattr(self.model.config, "task_specific_params", None) or {}).get(self.task)
        if settings is None:
            raise ValueError(
                f"This model was not fine-tuned for {self.task}: its config has no `task_specific_params` for it."
            )
        return settings

    def preprocess(self, inputs: str | Mapping[str, str]) -> dict[str, Any]:
        """A text, or a mapping with every column of the template."""
        settings = self._settings
        names = template_columns(settings["prompt_template"])
        columns = inputs if isinstance(inputs, Mapping) else dict.fromkeys(names, inputs)
        if missing := [name for name in names if name not in columns]:
            raise ValueError(f"{self.task} needs {', '.join(names)}; the input has no {missing[0]}.")
        template = settings["prompt_template"]
        prompt = template.format(**{name: columns[name] for name in names})
        suffix = template_suffix(template)
        prompt = fit_prompt(self.tokenizer, prompt, settings["max_prompt_length"], suffix=suffix)
        return dict(self.tokenizer(prompt, return_tensors="pt"))

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        ids = self.model.generate(**model_inputs, **self._prepare_generate_kwargs(generate_kwargs))
        return {"generated": ids[:, model_inputs["input_ids"].shape[1] :]}

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, str]:
        text = self.tokenizer.decode(model_outputs["generated"][0], skip_special_tokens=True)
        return {self.output_name: text.strip()}


class TranslationPipeline(_PromptPipeline):
    """`pipeline("translation", folder)("Hello.")` gives `{"translation_text": ...}`."""

    output_name = "translation_text"


class SummarizationPipeline(_PromptPipeline):
    """`pipeline("summarization", folder)(article)` gives `{"summary_text": ...}`."""

    output_name = "summary_text"


class QuestionAnsweringPipeline(ChunkPipeline):
    """`pipeline("question-answering", folder)(question=..., context=...)` gives `answer`, `score`, `start` and `end`.

    Long contexts are read in windows. `top_k` answers come as a list; with `handle_impossible_answer` the answer may be empty.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Places in a window are counted from its beginning.
        self.tokenizer.padding_side = "right"

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        max_answer_len: int | None = None,
        handle_impossible_answer: bool | None = None,
    ) -> tuple[dict, dict, dict]:
        given = {
            "top_k": top_k,
            "max_answer_len": max_answer_len,
            "handle_impossible_answer": handle_impossible_answer,
        }
        return {}, {}, {name: value for name, value in given.items() if value is not None}

    def __call__(self, inputs: Any = None, *, question: Any = None, context: Any = None, **kwargs: Any) -> Any:
        """A mapping with `question` and `context`, several of them, or the two by name."""
        if inputs is None:
            if isinstance(question, list):
                contexts = context if isinstance(context, list) else [context] * len(question)
                inputs = [{"question": q, "context": c} for q, c in zip(question, contexts, strict=True)]
            else:
                inputs = {"question": question, "context": context}
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        for name in ("question", "context"):
            if not isinstance(inputs.get(name), str) or not inputs[name].strip():
                raise ValueError(f"question-answering needs a question and a context; its {name} is missing or empty.")
        settings = (getattr(self.model.config, "task_specific_params", None) or {}).get("question-answering", {})
        (found,) = context_windows([inputs["question"]], [inputs["context"]], self.tokenizer, **settings)
        for index, window in enumerate(found):
            ids = torch.tensor([window.input_ids])
            yield {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "window": {"example_id": "", "offset_mapping": window.offsets},
                "context": inputs["context"],
                "is_last": index == len(found) - 1,
            }

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        kept = {name: model_inputs.pop(name) for name in ("window", "context", "is_last")}
        output = self.model(**model_inputs)
        return {"start": output.start_logits, "end": output.end_logits, **kept}

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        top_k: int = 1,
        max_answer_len: int = 30,
        handle_impossible_answer: bool = False,
    ) -> Any:
        ranked = best_answers(
            [output["window"] for output in model_outputs],
            [output["start"][0].float().numpy() for output in model_outputs],
            [output["end"][0].float().numpy() for output in model_outputs],
            {"": model_outputs[0]["context"]},
            max_answer_length=max_answer_len,
            allow_no_answer=handle_impossible_answer,
        )[""]
        answers = [
            {"score": answer.score, "start": answer.start, "end": answer.end, "answer": answer.text}
            for answer in ranked[:top_k]
        ]
        return answers[0] if top_k == 1 else answers


PIPELINES: dict[str, tuple[type[Pipeline], Any]] = {
    "translation": (TranslationPipeline, AutoModelForCausalLM),
    "summarization": (SummarizationPipeline, AutoModelForCausalLM),
    "question-answering": (QuestionAnsweringPipeline, AutoModelForQuestionAnswering),
}


def custom_pipelines(task: str) -> dict[str, dict[str, Any]]:
    """What a model's config says of its pipeline, as `Pipeline.save_pretrained` writes it; nothing for a task of transformers'."""
    if task not in PIPELINES:
        return {}
    pipeline_class, model_class = PIPELINES[task]
    module = pipeline_class.__module__.rpartition(".")[2]
    return {task: {"impl": f"{module}.{pipeline_class.__name__}", "pt": [model_class.__name__], "type": "text"}}


def save_pipeline_code(task: str, folder: str | os.PathLike[str]) -> None:
    """Puts this file and its neighbours beside a model whose config names a pipeline of them."""
    if task in PIPELINES:
        custom_object_save(PIPELINES[task][0], folder)


def _register() -> None:
    for task, (pipeline_class, model_class) in PIPELINES.items():
        # transformers refuses the names of its old pipelines before it looks for new ones.
        REMOVED_TASKS.pop(task, None)
        if task not in PIPELINE_REGISTRY.get_supported_tasks():
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=pipeline_class, pt_model=model_class, type="text")


_register()

"""Checks of the shape of each pipeline's outputs; they replace upstream's, which the source distribution leaves out."""

from typing import Any, ClassVar

from transformers import Pipeline, pipeline

EXAMPLES = ["Some text to read.", "And some more of it, a little longer."]


class PipelineCheck:
    """The interface that `PipelineTesterMixin` expects of a pipeline's tests."""

    task = ""
    options: ClassVar[dict[str, Any]] = {}

    def get_test_pipeline(self, model: Any, tokenizer: Any, dtype: str = "float32", **processors: Any) -> Any:
        return pipeline(self.task, model=model, tokenizer=tokenizer, dtype=dtype, **self.options), list(EXAMPLES)

    def run_pipeline_test(self, pipe: Pipeline, examples: list[str]) -> None:
        alone, together = [pipe(example) for example in examples], pipe(examples)
        assert len(together) == len(alone) == len(examples)
        for example, output in zip(examples, alone, strict=True):
            self.check(pipe, example, output)
        for example, output in zip(examples, together, strict=True):
            self.check(pipe, example, output)

    def check(self, pipe: Pipeline, example: str, output: Any) -> None:
        raise NotImplementedError


class FeatureExtraction(PipelineCheck):
    task = "feature-extraction"

    def check(self, pipe: Pipeline, example: str, output: Any) -> None:
        assert len(output[0]) == len(pipe.tokenizer(example)["input_ids"])
        assert {len(row) for row in output[0]} == {pipe.model.config.hidden_size}


class TextClassification(PipelineCheck):
    task = "text-classification"

    def check(self, pipe: Pipeline, example: str, output: Any) -> None:
        (found,) = output if isinstance(output, list) else [output]
        assert found["label"] in pipe.model.config.id2label.values()
        assert 0 < found["score"] <= 1


class TextGeneration(PipelineCheck):
    task = "text-generation"
    options: ClassVar = {"max_new_tokens": 5, "do_sample": False}

    def check(self, pipe: Pipeline, example: str, output: Any) -> None:
        assert output[0]["generated_text"].startswith(example)


class TokenClassification(PipelineCheck):
    task = "token-classification"

    def check(self, pipe: Pipeline, example: str, output: Any) -> None:
        assert len(output) == len(pipe.tokenizer(example, add_special_tokens=False)["input_ids"])
        assert {found["entity"] for found in output} <= set(pipe.model.config.id2label.values())


class ZeroShot(PipelineCheck):
    task = "zero-shot-classification"
    options: ClassVar = {"candidate_labels": ["politics", "health"]}

    def check(self, pipe: Pipeline, example: str, output: Any) -> None:
        assert output["sequence"] == example
        assert sorted(output["labels"]) == ["health", "politics"]
        assert abs(sum(output["scores"]) - 1) < 1e-2


# Keys are `PipelineTesterMixin`'s names.
PIPELINE_CHECKS = {
    "feature-extraction": FeatureExtraction,
    "text-classification": TextClassification,
    "text-generation": TextGeneration,
    "token-classification": TokenClassification,
    "zero-shot": ZeroShot,
}

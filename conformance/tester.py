"""A small model tester for upstream's common tests, instead of the one that each of its models brings."""

import tempfile
import unittest
import unittest.mock
from pathlib import Path
from typing import Any

import torch
from pipeline_checks import PIPELINE_CHECKS
from tests import test_fsdp_mixin, test_pipeline_mixin, test_tensor_parallel_mixin
from tests.test_configuration_common import ConfigTester
from tests.test_executorch import ExecutorchTest
from tests.test_modeling_common import GenerationTesterMixin, ModelTesterMixin, ids_tensor
from tests.test_training_mixin import TrainingTesterMixin
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers.testing_utils import torch_device

from chatgpt_hf import train_tokenizer

# Upstream runs these only for a few families, to save time.
test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES = None


class Tester:
    """The interface that the common tests expect: small configurations, inputs and the model's classes."""

    batch_size = 5
    seq_length = 7
    is_training = True
    vocab_size = 99
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    num_labels = 3

    def __init__(self, make_config: Any, classes: dict[str, type]) -> None:
        self.make_config = make_config
        self.base_model_class = classes["feature-extraction"]
        self.causal_lm_class = classes["text-generation"]
        self.sequence_classification_class = classes["text-classification"]

    def get_config(self) -> PreTrainedConfig:
        return self.make_config()

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        """Rows of different lengths, padded on the right."""
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        mask = torch.tril(torch.ones_like(ids)).to(torch_device)
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


def follow_the_window(config: PreTrainedConfig) -> PreTrainedConfig:
    """Makes the layers of a config slide as soon as a test assigns `sliding_window`.

    Without this, our config refuses a window that none of its layers has.
    """
    if not hasattr(config, "attention_types"):
        return config

    def assign(self: Any, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == "sliding_window":
            object.__setattr__(self, "layer_types", ["sliding_attention"] * self.num_hidden_layers)

    config.__class__ = type(type(config).__name__, (type(config),), {"__setattr__": assign})
    return config


def make_case(
    name: str, make_config: Any, classes: dict[str, type], question_answering: type, overfit_steps: int = 300
) -> dict[str, type[unittest.TestCase]]:
    """Makes the test cases of one model: the common tests and the executorch tests.

    Args:
        name: Its name in the table.
        make_config: Makes a configuration with the sizes of `Tester`; takes fields as keywords.
        classes: The class for each of transformers' pipelines that the model supports.
        question_answering: The question-answering class, for which transformers no longer has a pipeline.
        overfit_steps: Steps in which it must learn a sequence by heart; upstream's models have 300 or set their number.
    """

    class Common(
        ModelTesterMixin,
        GenerationTesterMixin,
        test_pipeline_mixin.PipelineTesterMixin,
        TrainingTesterMixin,
        test_tensor_parallel_mixin.TensorParallelTesterMixin,
        test_fsdp_mixin.FSDPTesterMixin,
        unittest.TestCase,
    ):
        all_model_classes = (*dict.fromkeys(classes.values()), question_answering)
        pipeline_model_mapping = classes
        training_overfit_steps = overfit_steps
        # Set in `setUp`; the mixins declare it as an abstract property.
        model_tester: Any = None

        @classmethod
        def setUpClass(cls) -> None:
            cls.folder = tempfile.TemporaryDirectory()
            save_pipeline_models(Path(cls.folder.name), make_config, classes)

        @classmethod
        def tearDownClass(cls) -> None:
            cls.folder.cleanup()

        def setUp(self) -> None:
            torch.manual_seed(0)
            self.model_tester = Tester(make_config, classes)
            if "_eager_matches_sdpa" in self._testMethodName:
                self.model_tester.make_config = lambda: follow_the_window(make_config())
            # These tests assume that a configuration with the field uses it.
            if (
                "_rope_" in self._testMethodName
                and getattr(make_config(), "position_embedding_type", "rope") != "rope"
            ):
                self.skipTest("positions are not rotary")
            test_pipeline_mixin.TRANSFORMERS_TINY_MODEL_PATH = self.folder.name

        # `PipelineTesterMixin` expects these two of a model's test file.
        def is_pipeline_test_to_skip(self, *args: Any) -> bool:
            return False

        def is_pipeline_test_to_skip_more(self, *args: Any, **kwargs: Any) -> bool:
            return False

        def test_config(self) -> None:
            config = make_config()
            # With the names in the family's config.json.
            names = {config.attribute_map.get(name, name): name for name in ("hidden_size", "num_attention_heads")}
            sizes = {written: getattr(config, name) for written, name in names.items()}
            ConfigTester(self, config_class=type(config), **sizes).run_common_tests()

    class Executorch(ExecutorchTest):
        def setUp(self) -> None:
            super_model = classes["text-generation"](make_config()).eval()
            with unittest.mock.patch("tests.test_executorch.AutoModelForCausalLM.from_pretrained") as load:
                load.return_value = super_model
                super().setUp()

    found = {}
    for case in (Common, Executorch):
        case.__name__ = case.__qualname__ = f"{name}-{case.__name__}".replace("-", "_")
        found[case.__name__] = case
    return found


def save_pipeline_models(folder: Path, make_config: Any, classes: dict[str, type]) -> None:
    """Saves models with a tokenizer where `PipelineTesterMixin` looks for them: FOLDER/MODEL_TYPE/CLASS."""
    tokenizer = train_tokenizer(
        ["Some text, and some more of it, to learn merges from."] * 3, vocab_size=300, show_progress=False
    )
    for model_class in dict.fromkeys(classes.values()):
        labels = {"id2label": {0: "ENTAILMENT", 1: "NEUTRAL"}, "label2id": {"ENTAILMENT": 0, "NEUTRAL": 1}}
        config = make_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **labels)
        place = folder / config.model_type / model_class.__name__
        model_class(config).save_pretrained(place)
        tokenizer.save_pretrained(place)
        entry = {"tokenizer_classes": [PreTrainedTokenizerFast.__name__], "processor_classes": []}
        test_pipeline_mixin.tiny_model_summary[model_class.__name__] = entry
    for task in classes:
        test_pipeline_mixin.pipeline_test_mapping[task]["test"] = f"pipeline_checks.{PIPELINE_CHECKS[task].__name__}"

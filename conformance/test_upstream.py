"""transformers' common tests on every variant of our model and, for comparison, on its GPT-2 and Llama.

`make conformance` runs them. They are no part of `make test`, since they are fetched from the package index.
"""

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import transformers
from transformers import (
    GPT2Config,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from index import fetch_tests
from variants import SIZES, VARIANTS, make_config

import chatgpt_hf

# `tests` is a package without `__init__.py`, so two folders can form it: upstream's, and ours with what upstream's lacks.
sys.path[:0] = [str(HERE / "standins"), str(fetch_tests(transformers.__version__))]
# Read when upstream's modules are imported: an empty summary of models, and no separate process for each test.
_SUMMARY = tempfile.TemporaryDirectory()
Path(_SUMMARY.name, "reports").mkdir()
Path(_SUMMARY.name, "reports", "tiny_model_summary.json").write_text(json.dumps({}))
os.environ.update(TRANSFORMERS_TINY_MODEL_PATH=_SUMMARY.name, _INSIDE_SUB_PROCESS="1")
# Upstream's tests would import transformers again from the sources beside them, and replace the one in use.
transformers.utils.direct_transformers_import = lambda *args, **kwargs: sys.modules["transformers"]

from tester import make_case


def _classes(base: type, causal: type, sequence: type, token: type) -> dict[str, type]:
    return {
        "feature-extraction": base,
        "text-generation": causal,
        "text-classification": sequence,
        "token-classification": token,
        "zero-shot": sequence,
    }


OURS = _classes(
    chatgpt_hf.ChatGPTModel,
    chatgpt_hf.ChatGPTForCausalLM,
    chatgpt_hf.ChatGPTForSequenceClassification,
    chatgpt_hf.ChatGPTForTokenClassification,
)
for _variant in VARIANTS:
    _make = partial(make_config, _variant)
    # At a width of 32, sinusoids are ten times as large as the embeddings, which therefore learn more slowly.
    _steps = 600 if _variant == "sinusoidal" else 300
    globals().update(make_case(_variant, _make, OURS, chatgpt_hf.ChatGPTForQuestionAnswering, _steps))


def make_gpt2_config(**overrides: object) -> GPT2Config:
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2Config(**{**SIZES, "n_inner": SIZES["intermediate_size"], **dropouts, **overrides})


def make_llama_config(**overrides: object) -> LlamaConfig:
    return LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **overrides})


_GPT2 = _classes(GPT2Model, GPT2LMHeadModel, GPT2ForSequenceClassification, GPT2ForTokenClassification)
globals().update(make_case("upstream-gpt2", make_gpt2_config, _GPT2, GPT2ForQuestionAnswering))
_LLAMA = _classes(LlamaModel, LlamaForCausalLM, LlamaForSequenceClassification, LlamaForTokenClassification)
globals().update(make_case("upstream-llama", make_llama_config, _LLAMA, LlamaForQuestionAnswering))

"""GGUF files: llama.cpp computes the same, splits text the same way, and chats with the model's template."""

import copy
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from chatgpt_hf import ChatGPTForCausalLM, ChatGPTForSequenceClassification, load_tokenizer, train_tokenizer
from chatgpt_hf.errors import CheckpointError, ConversionError, MissingDependency, TokenizerError
from chatgpt_hf.export import gguf, gguf_tokenizer
from chatgpt_hf.export.export import Export, export_model
from chatgpt_hf.tokenization_chatgpt import pre_tokenization

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python, which compiles for minutes"
)
TEXTS = [
    "Once upon a time, in 1234567 days: 12 345 6789.",
    "It's I'LL we'Re 'Tis they'd",
    "   leading and trailing   \n\n\n  \t\there  \n x\r\n\r\ny",
    "2024年11月27日 你好，世界！ 🎉👩‍👩‍👧‍👦 naïve café e\u0301",
    "\u00a0nbsp\u3000ideographic ١٢٣٤٥ ①②③ ½ Ⅷ ²³ 🇩🇪",
    "<|im_start|>user <|endoftext|>",
]


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., tuple[Export, Path]]:
    """Exports a folder as GGUF; returns the figures and the file."""

    def run(folder: Path, outtype: str = "f32", **options: Any) -> tuple[Export, Path]:
        output = tmp_path / f"{folder.name}-{outtype}"
        done = export_model(folder, output, "gguf", outtype=outtype, **options)
        assert [file.name for file in done.files] == [f"model-{outtype.upper()}.gguf"]
        return done, done.files[0]

    return run


@pytest.mark.works_with(
    "llama.cpp",
    "`chatgpt-hf export --format gguf` in the layouts of GPT-2, Llama and Qwen3: logits",
    ("gguf", "llama-cpp-python"),
)
@needs_llama_cpp
@pytest.mark.parametrize("variant", ["gpt2", "llama", "llama with biases", "llama stretched", "qwen3"])
def test_llama_cpp_computes_the_same_logits(
    variant: str, saved: Callable[..., Path], export: Callable[..., tuple[Export, Path]]
) -> None:
    done, _ = export(saved(variant))
    assert done.error is not None
    # llama.cpp looks GELU up in a float16 table.
    assert done.error <= (1e-3 if variant == "gpt2" else 5e-6)


@pytest.mark.works_with(
    "transformers",
    "`from_pretrained(gguf_file=…)` of an exported file, Llama's layout: logits",
    ("transformers", "gguf"),
)
def test_transformers_reads_the_file_too(
    saved: Callable[..., Path], export: Callable[..., tuple[Export, Path]]
) -> None:
    # Without biases, which transformers' reader silently ignores.
    folder = saved("llama")
    _, file = export(folder, check=False)
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    assert type(theirs).__name__ == "LlamaForCausalLM"
    ours = ChatGPTForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(ours.config.vocab_size, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=0, atol=1e-5)


@needs_llama_cpp
def test_types_of_fewer_bits_are_smaller_and_near(
    saved: Callable[..., Path], export: Callable[..., tuple[Export, Path]]
) -> None:
    folder = saved("qwen3")
    figures = {outtype: export(folder, outtype)[0] for outtype in gguf.OUTTYPES}
    sizes = {outtype: done.files[0].stat().st_size for outtype, done in figures.items()}
    assert sizes["q8_0"] < sizes["f16"] == sizes["bf16"] < sizes["f32"]
    errors = [figures[outtype].error for outtype in ("f32", "f16", "bf16", "q8_0")]
    assert errors == sorted(errors)
    assert errors[-1] < 0.05


@needs_llama_cpp
@pytest.mark.parametrize("max_digits", [1, 3])
def test_llama_cpp_cuts_text_as_the_tokenizer_does(
    max_digits: int, saved: Callable[..., Path], export: Callable[..., tuple[Export, Path]]
) -> None:
    tokenizer = train_tokenizer([*TEXTS, "123 456 7890"] * 4, 360, max_digits=max_digits, show_progress=False)
    _, file = export(saved("llama", tokenizer))
    model = _open(file, vocab_only=True)

    def check(text: str) -> None:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert model.tokenize(text.encode(), add_bos=False, special=False) == ids

    for text in TEXTS:
        check(text)
    # Surrogates are not valid in UTF-8.
    given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))(settings(max_examples=300)(check))()
    text = "<|im_start|>user\nHi 12345<|im_end|>"
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert model.tokenize(text.encode(), add_bos=False, special=True) == expected


@needs_llama_cpp
def test_gpt2s_own_tokenizer_goes_along(
    shared_data: Path, saved: Callable[..., Path], export: Callable[..., tuple[Export, Path]]
) -> None:
    tokenizer = load_tokenizer(shared_data / "gpt2_tokenizer")
    _, file = export(saved("gpt2", tokenizer, bos_token_id=50256, eos_token_id=50256, pad_token_id=None))
    model = _open(file, vocab_only=True)
    for text in TEXTS[:-1]:
        assert model.tokenize(text.encode(), add_bos=False, special=False) == tokenizer(text)["input_ids"]
    assert model.token_eos() == model.token_bos() == 50256


@pytest.mark.works_with(
    "llama.cpp", "a chat with the template in the file: the same prompt and answer", ("llama-cpp-python",)
)
@needs_llama_cpp
def test_a_chat_goes_by_the_template(
    saved: Callable[..., Path],
    digits_tokenizer: PreTrainedTokenizerBase,
    export: Callable[..., tuple[Export, Path]],
) -> None:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    folder = saved("qwen3")
    _, file = export(folder)
    model = _open(file, n_ctx=64)
    metadata = model.metadata["tokenizer.chat_template"]
    assert "generation %}" not in metadata
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi 2024"}]
    expected = digits_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    formatter = Jinja2ChatFormatter(metadata, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    assert formatter(messages=messages).prompt == expected

    source = ChatGPTForCausalLM.from_pretrained(folder).eval()
    ids = digits_tokenizer(expected, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ends = [digits_tokenizer.eos_token_id, digits_tokenizer.convert_tokens_to_ids("<|im_end|>")]
    answer = source.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=ends, pad_token_id=1)
    text = digits_tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
    said = model.create_chat_completion(messages, temperature=0.0, max_tokens=8, repeat_penalty=1.0)
    # llama-cpp-python drops invalid UTF-8, which a model with random weights sometimes writes.
    assert said["choices"][0]["message"]["content"] == text.replace("\ufffd", "")
    assert model.create_completion("Hi", max_tokens=1)["usage"]["prompt_tokens"] == 1 + len(
        digits_tokenizer("Hi", add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize(
    ("variant", "overrides", "words"),
    [
        ("modern", {}, "The nearest is qwen3: qwen3 cannot express `gated_mlp=False`"),
        ("qwen3", {"final_logit_softcapping": 15.0}, "qwen3 cannot express `final_logit_softcapping=15.0`"),
        ("qwen3", {"attention_bias": True}, "llama.cpp's qwen3 cannot express `attention_bias=True`"),
        ("qwen3", {"sliding_window": 16}, "llama.cpp's qwen3 cannot express `sliding_window=16`"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5000.0}},
            "llama.cpp's llama cannot express `rope_parameters=",
        ),
        ("gpt2", {"hidden_act": "relu"}, "llama.cpp's gpt2 cannot express `hidden_act='relu'`"),
        ("llama", {"hidden_act": "relu2"}, "llama.cpp's llama cannot express `hidden_act='relu2'`"),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "llama.cpp's gpt2 cannot express `scale_attn_by_inverse_layer_idx=True`",
        ),
    ],
)
def test_what_llama_cpp_cannot_express_is_named(
    variant: str, overrides: dict[str, Any], words: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConversionError) as caught:
        export_model(saved(variant, **overrides), tmp_path / "out", "gguf")
    assert words in str(caught.value)
    assert not any((tmp_path / "out").glob("*"))


def test_blocks_that_do_not_divide_the_width_are_refused(saved: Callable[..., Path], tmp_path: Path) -> None:
    for overrides, name, width in (
        ({"intermediate_size": 100}, "mlp.down_proj", 100),
        ({"head_dim": 12}, "o_proj", 48),
    ):
        with pytest.raises(
            ConversionError, match=rf"blocks of 32 weights, but \S+{name}\S+ has rows of {width}: use f16"
        ):
            export_model(saved("qwen3", **overrides), tmp_path / "out", "gguf", outtype="q8_0")
        assert not (tmp_path / "out").exists()


def test_tokenizers_that_llama_cpp_does_not_have_are_refused(
    saved: Callable[..., Path], tmp_path: Path, byte_bpe: Callable[..., PreTrainedTokenizerBase]
) -> None:
    two_digits = train_tokenizer(TEXTS, 300, show_progress=False)
    with pytest.raises(ConversionError, match=r"digits in groups of two.*--max_digits 1 or 3"):
        export_model(saved("llama", two_digits), tmp_path / "out", "gguf")
    with pytest.raises(ConversionError, match="has a `normalizer`"):
        export_model(saved("llama", byte_bpe(normalizer=normalizers.Lowercase())), tmp_path / "out", "gguf")
    with pytest.raises(ConversionError, match="a byte-level BPE"):
        export_model(saved("llama", byte_bpe(unigram=True)), tmp_path / "out", "gguf")
    folder = saved("llama")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError):
        export_model(folder, tmp_path / "out", "onnx")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(TokenizerError, match="a GGUF file needs one"):
        export_model(folder, tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def byte_bpe(digits_tokenizer: PreTrainedTokenizerBase) -> Callable[..., PreTrainedTokenizerBase]:
    """Returns the tokenizer with a feature that llama.cpp lacks."""

    def make(normalizer: Any = None, unigram: bool = False) -> PreTrainedTokenizerBase:
        content = json.loads(digits_tokenizer.backend_tokenizer.to_str())
        if unigram:
            vocab = content["model"]["vocab"]
            content["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [[token, 0.0] for token in vocab]}
        backend = Tokenizer.from_str(json.dumps(content))
        if normalizer is not None:
            backend.normalizer = normalizer
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
        )

    return make


def test_without_llama_cpp_the_check_says_so(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    folder = saved("llama")
    with pytest.raises(MissingDependency, match=r"--no-check.* llama_cpp, .*pip install 'chatgpt-hf\[llama-cpp\]'"):
        export_model(folder, tmp_path / "out", "gguf")
    assert not any((tmp_path / "out").glob("*"))
    done = export_model(folder, tmp_path / "out", "gguf", check=False)
    assert done.error is None
    assert done.files[0].stat().st_size > 0


@needs_llama_cpp
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended by signal 11"),
        ("raise ValueError('no tensor x')", "no tensor x"),
    ],
)
def test_a_failure_inside_llama_cpp_is_an_error_here(
    script: str, reason: str, saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.run
    monkeypatch.setattr(gguf.subprocess, "run", lambda command, **kw: real([sys.executable, "-c", script], **kw))
    with pytest.raises(ConversionError, match=f"llama.cpp fails on the written file.*{reason}"):
        export_model(saved("llama"), tmp_path / "out", "gguf")
    assert not any((tmp_path / "out").glob("*"))


@needs_llama_cpp
@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_wrong_files_are_found_out(
    outtype: str, saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong files: queries and keys in transformers' layout, and half the base of the rotary positions."""
    tensors, config = gguf._tensors, gguf._add_config
    folder = saved("llama")
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "_tensors", lambda state, config, name: tensors(state, config, "qwen3"))
        with pytest.raises(ConversionError, match=r"logits differ from the source's by .* Nothing was written"):
            export_model(folder, tmp_path / "out", "gguf", outtype=outtype)

    def halve(writer: Any, own: Any, name: str) -> None:
        own = copy.deepcopy(own)
        own.rope_parameters["rope_theta"] /= 2
        config(writer, own, name)

    monkeypatch.setattr(gguf, "_add_config", halve)
    with pytest.raises(ConversionError, match="logits differ from the source's"):
        export_model(folder, tmp_path / "out", "gguf", outtype=outtype)
    assert not (tmp_path / "out").exists()


@needs_llama_cpp
def test_a_file_that_cuts_text_otherwise_is_found_out(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gguf_tokenizer._PATTERNS, pre_tokenization(3), "qwen2")
    with pytest.raises(
        ConversionError, match=r"splits text differently from the tokenizer, for example .Once upon a time, in 1234567"
    ):
        export_model(saved("llama"), tmp_path / "out", "gguf")


def test_what_the_file_says_of_sampling_and_ends(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved("llama")
    tokenizer = load_tokenizer(folder)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    GenerationConfig(
        do_sample=True, temperature=0.7, top_k=30, top_p=0.9, repetition_penalty=1.05, eos_token_id=ends
    ).save_pretrained(folder)
    tokenizer.chat_template = {"default": "{{ messages }}", "rag": "{% generation %}x{% endgeneration %}"}
    tokenizer.save_pretrained(folder)
    fields = read_fields(export_model(folder, tmp_path / "out", "gguf", check=False).files[0])
    assert fields["general.name"] == folder.name
    assert fields["tokenizer.ggml.eos_token_id"] == ends[0]
    assert fields["tokenizer.ggml.eot_token_id"] == ends[1]
    sampling = {name: round(value, 4) for name, value in fields.items() if name.startswith("general.sampling.")}
    assert sampling == {
        "general.sampling.temp": 0.7,
        "general.sampling.top_k": 30,
        "general.sampling.top_p": 0.9,
        "general.sampling.penalty_repeat": 1.05,
    }
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    assert fields["tokenizer.chat_template.rag"] == "{# #}x{# #}"

    GenerationConfig(eos_token_id=[*ends, 5, 6]).save_pretrained(folder)
    with pytest.raises(ConversionError, match="3 end tokens"):
        export_model(folder, tmp_path / "other", "gguf", check=False)


def read_fields(file: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


def test_adapters_and_other_heads_are_refused(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved("llama")
    adapter = tmp_path / "adapter"
    peft.get_peft_model(
        ChatGPTForCausalLM.from_pretrained(folder), peft.LoraConfig(target_modules="all-linear")
    ).save_pretrained(adapter)
    with pytest.raises(ConversionError, match=r"contains an adapter: .* `chatgpt-hf merge`"):
        export_model(adapter, tmp_path / "out", "gguf")
    # With a tied head, it has all weights of a language model.
    ChatGPTForSequenceClassification.from_pretrained(saved("qwen3")).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ConversionError, match="is a ChatGPTForSequenceClassification: only language models"):
        export_model(tmp_path / "classifier", tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("export_format", ["gguf", "onnx"])
def test_unknown_families_are_refused_before_they_are_loaded(
    export_format: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    capfd.readouterr()
    with pytest.raises(
        ConversionError, match=r"belongs to the family 'bloom', which is unknown here\. Known families: "
    ):
        export_model(tmp_path / "bloom", tmp_path / "out", export_format)
    assert "LOAD REPORT" not in "".join(capfd.readouterr()) + caplog.text


def test_arguments_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="--format pickle is unknown; choose from onnx, openvino"):
        export_model("nowhere", tmp_path / "out", "pickle")
    with pytest.raises(ConversionError, match="--outtype q4_0 is unknown; choose from f32"):
        export_model("nowhere", tmp_path / "out", "gguf", outtype="q4_0")
    with pytest.raises(ConversionError, match="--outtype f16 is for --format gguf"):
        export_model("nowhere", tmp_path / "out", "onnx", outtype="f16")
    with pytest.raises(ConversionError, match="--max_cache_len is for --format executorch"):
        export_model("nowhere", tmp_path / "out", "onnx", max_cache_len=64)
    with pytest.raises(CheckpointError):
        export_model(tmp_path / "nowhere", tmp_path / "out", "onnx")


def _open(file: Path, **options: Any) -> Any:
    from llama_cpp import Llama

    return Llama(str(file), verbose=False, **options)

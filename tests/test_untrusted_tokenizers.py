"""Tokenizers of a stranger's that make a text endless, give ids that the model does not have, or have fields of another type."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_tokenizers import KINDS
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from chatgpt_hf.checkpoints import check_tokenizer_fits, load_model
from chatgpt_hf.errors import TokenizerError
from chatgpt_hf.tokenization_chatgpt import load_tokenizer
from chatgpt_hf.untrusted_tokenizers import check_fields, check_parts


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "theirs"))


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> PreTrainedModel:
    """Has room for one more token than its tokenizer."""
    model = load_model(llama_folder)
    model.config.vocab_size += 1
    return model


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(load: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(TokenizerError) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    return str(caught.value)


def parsed(**parts: Any) -> Tokenizer:
    """A tokenizer that the library has parsed and not yet used."""
    empty = {"type": "WordLevel", "vocab": {}, "unk_token": "?"}
    return Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": empty, **parts}))


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def normalizers(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"normalizer": {"type": "Sequence", "normalizers": list(steps)}}


def decoders(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"decoder": {"type": "Sequence", "decoders": list(steps)}}


def split_at(**fields: Any) -> dict[str, Any]:
    return {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": False, **fields}


TEXT = {"Sequence": {"id": "A", "type_id": 0}}
SPECIAL = {"SpecialToken": {"id": "x", "type_id": 0}}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
METASPACE = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
BERT = {
    **{"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True},
    **{"strip_accents": None, "lowercase": True},
}


def template(single: list[Any], ids: list[int]) -> dict[str, Any]:
    tokens = {"x": {"id": "x", "ids": ids, "tokens": ["x"] * len(ids)}}
    return {"type": "TemplateProcessing", "single": single, "pair": [TEXT, TEXT], "special_tokens": tokens}


PADDING = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
MODEL: dict[str, Any] = {"vocab": {}, "unk_token": "?"}
# By parts: what the message says.
BOMBS: list[tuple[dict[str, Any], str]] = [
    (
        normalizers(*[replace("a", "aa")] * 24),
        "normalizer may make a text more than 100 times as long (Replace is step",
    ),
    (normalizers(normalizers(*[replace("a", "aa")] * 24)["normalizer"]), "normalizer may make a text"),
    (normalizers(*[replace("", "x")] * 24), "normalizer may make a text"),
    (normalizers(*[replace("x*", "x", "Regex")] * 24), "normalizer may make a text"),
    (normalizers(*[replace("(?=a)", "x", "Regex")] * 24), "normalizer may make a text"),
    (normalizers(*[replace("[a-z]+|", "x", "Regex")] * 24), "normalizer may make a text"),
    (normalizers(*[replace("a{1,0}", "x", "Regex")] * 24), "normalizer may make a text"),
    # Each "ﷺ" becomes 18 characters, two of them spaces.
    (normalizers(*[replace(" ", "ﷺ"), {"type": "NFKD"}] * 12), "normalizer may make a text"),
    (normalizers(*[BERT, replace(" ", "天")] * 12), "normalizer may make a text"),
    (normalizers(*[{"type": "ByteLevel"}] * 24), "normalizer may make a text"),
    (normalizers(*[{"type": "Prepend", "prepend": "ab"}] * 24), "normalizer may make a text"),
    ({"normalizer": {"type": "Prepend", "prepend": "a" * 50_000}}, "prepend of normalizer, Prepend has 50,000 "),
    # The library also reads steps without their type.
    ({"normalizer": {"prepend": "a" * 50_000}}, "prepend of normalizer, Prepend has 50,000 "),
    ({"normalizer": replace("e", "a" * 50_000)}, "content of normalizer, Replace has 50,000 characters"),
    ({"normalizer": replace("e", "a" * 500)}, "normalizer may make a text"),
    (normalizers(*[{"type": "NFC"}] * 300), "normalizer has more than 200 steps"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 12}}, "pre_tokenizer may make a text"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [METASPACE] * 12}}, "pre_tokenizer may make a text"),
    (
        {**normalizers(*[replace("a", "aa")] * 6), "pre_tokenizer": BYTE_LEVEL},
        "pre_tokenizer may make a text more than 100 times as long",
    ),
    (decoders(*[replace("a", "aa")] * 24), "decoder may make a text"),
    (decoders(*[{"type": "BPEDecoder", "suffix": ""}] * 24), "decoder may make a text"),
    (decoders(*[split_at(word_delimiter_token="")] * 24), "decoder may make a text"),
    (decoders({"type": "Strip", "content": " ", "start": 0, "stop": 5}), "stop of decoder, Strip is 5"),
    ({"post_processor": template([TEXT, SPECIAL], [0] * 2000)}, "post_processor, TemplateProcessing puts more than"),
    ({"post_processor": template([TEXT, *[SPECIAL] * 2000], [0])}, "post_processor, TemplateProcessing puts more"),
    ({"post_processor": template([TEXT] * 200, [0])}, "post_processor may make a text"),
    (
        {"post_processor": {"type": "Sequence", "processors": [template([TEXT, TEXT], [0])] * 24}},
        "post_processor may make a text",
    ),
    ({"padding": {"strategy": {"Fixed": 10**9}, **PADDING}}, "padding asks for 1,000,000,000 tokens"),
    (
        {"padding": {"strategy": "BatchLongest", **PADDING, "pad_to_multiple_of": 10**9}},
        "padding asks for 1,000,000,000 tokens",
    ),
    (
        {
            "model": {
                **MODEL,
                "type": "WordPiece",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 10**9,
            }
        },
        "max_input_chars_per_word of the model is 1,000,000,000",
    ),
    (
        {
            "model": {
                **MODEL,
                "type": "WordPiece",
                "continuing_subword_prefix": "#" * 5000,
                "max_input_chars_per_word": 100,
            }
        },
        "continuing_subword_prefix of the model has 5,000 characters",
    ),
    (
        {"model": {"type": "BPE", "vocab": {}, "merges": [], "end_of_word_suffix": "x" * 5000}},
        "end_of_word_suffix of the model has 5,000 characters",
    ),
]


@pytest.mark.parametrize(("parts", "reason"), BOMBS, ids=[str(number) for number in range(len(BOMBS))])
def test_steps_that_make_a_text_endless(parts: dict[str, Any], reason: str) -> None:
    message = refusal(check_parts, parsed(**parts))
    assert message.startswith(f"tokenizer.json: {reason}")
    assert message.endswith(". Correct it, or use another tokenizer.")


@pytest.mark.parametrize(
    "parts",
    [
        normalizers(replace("``", '"'), replace("''", '"'), {"type": "NFKD"}, replace(" {2,}", " ", "Regex")),
        normalizers({"type": "NFC"}, replace(r"\s+", " ", "Regex"), {"type": "Lowercase"}),
        normalizers({"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")),
        {"normalizer": BERT, "pre_tokenizer": METASPACE},
        decoders(replace("▁", " "), {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}),
        {"pre_tokenizer": BYTE_LEVEL, "decoder": BYTE_LEVEL, "post_processor": BYTE_LEVEL},
        normalizers(*[replace(chr(0x660 + digit), str(digit)) for digit in range(10)] * 5),
        normalizers(*[replace(r"[\t\u3000]\p{Zs}+", " ", "Regex")] * 50),
        {"post_processor": template([SPECIAL, TEXT, SPECIAL], [0])},
        {"padding": {"strategy": {"Fixed": 512}, **PADDING}},
    ],
    ids=[
        "ALBERT",
        "CLIP",
        "Llama 2",
        "BERT",
        "Llama 2 decoder",
        "GPT-2",
        "digits",
        "white space",
        "template",
        "padding",
    ],
)
def test_steps_of_ordinary_tokenizers(parts: dict[str, Any]) -> None:
    check_parts(parsed(**parts))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_tokenizers_of_every_family_pass(foreign_tokenizer: Callable[[str], Path], kind: str) -> None:
    check_parts(Tokenizer.from_file(str(foreign_tokenizer(kind) / "tokenizer.json")))


def test_a_bomb_is_refused_before_its_added_tokens_are_normalized(folder: Path) -> None:
    # 2**24 times the "a" of a token would still end, so that this fails instead of hanging without the check.
    token = {"id": 300, "content": "a", "special": False, "normalized": True, "single_word": False}
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    bomb = normalizers(*[replace("a", "aa")] * 24)
    edit(folder / "tokenizer.json", **bomb, added_tokens=[*tokens, {**token, "lstrip": False, "rstrip": False}])
    message = refusal(load_tokenizer, folder)
    assert f"no tokenizer could be loaded from {str(folder)!r}: tokenizer.json: normalizer may make" in message


def with_word(content: dict[str, Any], index: Any) -> None:
    content["model"]["vocab"]["zzz"] = index


def with_processor(content: dict[str, Any], index: Any) -> None:
    content["post_processor"] = template([TEXT, SPECIAL], [index])


def with_added(content: dict[str, Any], index: Any) -> None:
    content["added_tokens"].append({**content["added_tokens"][0], "content": "<zzz>", "id": index})


@pytest.mark.parametrize("change", [with_word, with_processor, with_added])
@pytest.mark.parametrize("index", [10**6, 2**32 - 1, -1, 5.5, 2**40, "5", None])
def test_ids_beyond_the_embedding(
    folder: Path, model: PreTrainedModel, change: Callable[[dict[str, Any], Any], None], index: Any
) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content, index)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    if isinstance(index, int) and 0 <= index < 2**32 and change is not with_added:
        tokenizer = load_tokenizer(folder)
        message = refusal(check_tokenizer_fits, model, tokenizer)
        assert f"The tokenizer has a token with the id {index} and the model's `vocab_size` is 301" in message
    elif isinstance(index, int) and 0 <= index < 2**32:
        # The library gives an added token the next free id, whatever its file says.
        check_tokenizer_fits(model, load_tokenizer(folder))
    else:
        assert f"no tokenizer could be loaded from {str(folder)!r}: " in refusal(load_tokenizer, folder)


FIELDS: list[tuple[str, Any]] = [
    *(("chat_template", value) for value in (5, True, [5], [{"name": "default"}], [{"name": 1, "template": "x"}])),
    *(("chat_template", value) for value in ([["a"]], {"default": 5}, {"default": {"default": "x"}}, ["x"])),
    *(("model_max_length", value) for value in ("x", 0, -1, [], True)),
    *((f"{name}_token", value) for name in ("bos", "eos", "pad", "unk") for value in (5, [], {}, {"content": 5})),
    *((f"{side}_side", value) for side in ("padding", "truncation") for value in ("up", 5, [])),
    *(("added_tokens_decoder", value) for value in ([], "x", {"x": {}}, {"1": "a"}, {"1": {"content": 5}})),
    *(("added_tokens_decoder", value) for value in ({"-1": {"content": "a"}}, {str(10**10): {"content": "a"}})),
    ("added_tokens_decoder", {"1" * 5000: {"content": "a"}}),
    *(("clean_up_tokenization_spaces", value) for value in ({}, "x", 1)),
    *(("tokenizer_class", value) for value in (5, [], {"a": 1})),
    *(("extra_special_tokens", value) for value in (3, "x", [3], {"a": 3})),
    *(("additional_special_tokens", value) for value in (3, [3])),
    *(("model_input_names", value) for value in (3, "x", [3])),
    ("chat_control_tokens", 3),
    ("split_special_tokens", "yes"),
]


@pytest.mark.parametrize(("field", "value"), FIELDS, ids=lambda each: f"{each!s:.40}")
def test_fields_of_another_type(tmp_path: Path, field: str, value: Any) -> None:
    message = refusal(check_fields, tmp_path / "tokenizer_config.json", {field: value})
    assert message.startswith(f"{tmp_path / 'tokenizer_config.json'}: {field} is ")
    assert ", which is not " in message


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template": None, "bos_token": None, "padding_side": None, "model_max_length": None},
        {"chat_template": "x", "padding_side": "left", "model_max_length": 1e30, "tokenizer_class": "GPT2Tokenizer"},
        {"chat_template": {"default": "x", "tool_use": "y"}, "extra_special_tokens": {"image_token": "<|im_start|>"}},
        {"chat_template": [{"name": "default", "template": "x"}], "extra_special_tokens": ["<|im_start|>"]},
        {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True}, "unknown_field": 5},
    ],
    ids=str,
)
def test_fields_that_transformers_writes(folder: Path, fields: dict[str, Any]) -> None:
    edit(folder / "tokenizer_config.json", **fields)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    check_fields(folder / "tokenizer_config.json", json.loads((folder / "tokenizer_config.json").read_text()))
    if fields.get("padding_side", "left"):
        load_tokenizer(folder)


def test_the_command_line_says_it_in_one_line(folder: Path, refused: Callable[..., str]) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", chat_template=5)
    message = refused("chat", str(folder), "--prompt", "Hi")
    assert f"{folder / 'tokenizer_config.json'}: chat_template is 5, which is not a text" in message

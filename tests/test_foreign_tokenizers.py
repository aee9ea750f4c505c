"""Tokenizers that were not made here: the ids are those of their tokenizer.json, everywhere and after they are saved again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from foreign_tokenizers import HARD_TEXTS, KINDS
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from chatgpt_hf.chat_templates import encode_chat_prompt, encode_conversation, encode_turns
from chatgpt_hf.errors import TokenizerError
from chatgpt_hf.evaluation.scoring import continuation
from chatgpt_hf.inference.generate import encode_prompt
from chatgpt_hf.text_encoding import text_encoder
from chatgpt_hf.tokenization_chatgpt import (
    document_marks,
    encode_documents,
    encode_texts,
    load_tokenizer,
    train_tokenizer,
)

CHAT = [
    {"role": "user", "content": "Hello there, how are you?"},
    {"role": "assistant", "content": "The dog  doesn't mind 1234."},
    {"role": "user", "content": " And\n the fox? "},
    {"role": "assistant", "content": "It jumps 天地.\n\n over"},
]
# What the tokenizer itself puts before a text.
BEGINS = {
    "llama3": ["<|begin_of_text|>"],
    "llama2": ["<s>"],
    "mistral": ["<s>"],
    "gemma": ["<bos>"],
    "wordpiece": ["[CLS]"],
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, foreign_tokenizer: Callable[[str], Path]) -> Path:
    return foreign_tokenizer(kind)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)


def test_ids_are_those_of_the_file_also_when_saved_again(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [stored.encode(text).ids for text in HARD_TEXTS]
    assert tokenizer(HARD_TEXTS)["input_ids"] == ids
    assert len(tokenizer) == stored.get_vocab_size()
    tokenizer.save_pretrained(tmp_path)
    for again in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert again(HARD_TEXTS)["input_ids"] == ids
        assert again.special_tokens_map == tokenizer.special_tokens_map
        assert again.chat_template == tokenizer.chat_template
        assert again.decode(ids[0]) == tokenizer.decode(ids[0])


def test_transformers_loses_parts_of_some_and_the_class_of_the_others_is_kept(
    foreign_tokenizer: Callable[[str], Path],
) -> None:
    """If this fails, transformers has changed, and `load_tokenizer` may become simpler."""
    text = "x\n    1234  times"
    lost, kept = set(), set()
    for kind in KINDS:
        auto, ours = AutoTokenizer.from_pretrained(foreign_tokenizer(kind)), load_tokenizer(foreign_tokenizer(kind))
        lost |= {kind} if auto(text)["input_ids"] != ours(text)["input_ids"] else set()
        kept |= {kind} if type(auto) is type(ours) else set()
    assert {"smollm", "llama2", "phi3"} >= lost
    assert "smollm" in lost
    assert kept >= {"gpt2", "qwen", "llama3", "unigram"}


def test_plain_text_and_documents(kind: str, tokenizer: PreTrainedTokenizerBase) -> None:
    plain = tokenizer(HARD_TEXTS)["input_ids"]
    assert encode_texts(tokenizer, HARD_TEXTS, with_end=True) == plain
    begin, end = document_marks(tokenizer)
    assert tokenizer.convert_ids_to_tokens(begin) == BEGINS.get(kind, [])
    assert end == ([tokenizer.sep_token_id] if kind == "wordpiece" else [])
    assert encode_documents(tokenizer, HARD_TEXTS) == [ids if end else [*ids, tokenizer.eos_token_id] for ids in plain]
    assert encode_prompt(tokenizer, "Hello there")[: len(begin)] == begin
    # As in transformers' `generate` without a prompt.
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    assert encode_prompt(tokenizer, "") == (begin or [first])


def test_conversations_are_what_the_library_makes_of_them(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode_turns(tokenizer, CHAT)
    assert encoded.input_ids == tokenizer.apply_chat_template(CHAT)["input_ids"]
    library = tokenizer.apply_chat_template(CHAT[:3], add_generation_prompt=True)
    assert encode_chat_prompt(tokenizer, CHAT[:3]) == library["input_ids"]
    for number, message in ((1, CHAT[1]), (2, CHAT[3])):
        ids = [token for token, turn in zip(encoded.input_ids, encoded.turn, strict=True) if turn == number]
        said = tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert said == tokenizer.decode(tokenizer(message["content"])["input_ids"], skip_special_tokens=True).strip()
        # The end mark is learned.
        assert ids[-1] in tokenizer.all_special_ids or ids[-1] in tokenizer.added_tokens_decoder


def test_text_never_becomes_a_special_token(tokenizer: PreTrainedTokenizerBase) -> None:
    specials = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    unknown = specials.get(tokenizer.unk_token)
    text = "".join(f" {content}x" for content in specials)
    for ids in encode_texts(tokenizer, [text, f"\U000f0000{text}", *specials]):
        assert not {*ids[len(document_marks(tokenizer).begin) :]} & {*specials.values()} - {unknown}
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    harmless = [{**message, "content": "x"} for message in messages]
    count = [
        sum(
            index in specials.values() and index != unknown
            for index in encode_conversation(tokenizer, each)["input_ids"]
        )
        for each in (messages, harmless)
    ]
    assert count[0] == count[1]


def test_a_changed_tokenizer_gets_a_new_encoder(foreign_tokenizer: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(foreign_tokenizer("gpt2"))
    before = text_encoder(tokenizer, ["a"])
    assert text_encoder(tokenizer, ["b"]) is before
    tokenizer.add_tokens(["fox"])
    assert text_encoder(tokenizer, ["a"]) is not before
    assert encode_texts(tokenizer, ["a fox"]) == [tokenizer("a fox")["input_ids"]]


def test_documents_of_our_own_tokenizers_begin_with_bos() -> None:
    tokenizer = train_tokenizer(["a b c"], 270, show_progress=False)
    assert document_marks(tokenizer) == ([0], [0])
    assert encode_prompt(tokenizer, "") == [0]
    assert encode_texts(tokenizer, ["a"]) == [[0, *tokenizer("a")["input_ids"]]]


def test_a_continuation_has_bos_where_the_tokenizer_puts_it(foreign_tokenizer: Callable[[str], Path]) -> None:
    for kind in ("qwen", "llama2"):
        tokenizer = load_tokenizer(foreign_tokenizer(kind))
        ids, begin = continuation(tokenizer, "The quick", " brown fox", max_length=99)
        assert ids == tokenizer("The quick brown fox")["input_ids"]
        assert tokenizer.decode(ids[begin:]).strip() == "brown fox"
        # lm-evaluation-harness begins with bos or else eos if there is no context.
        ids, begin = continuation(tokenizer, "", "brown", max_length=99)
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        assert (ids[0], begin) == (first, 1)


def test_a_tokenizer_whose_code_would_have_to_run_is_read_from_its_file(
    foreign_tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(foreign_tokenizer("qwen"), tmp_path, dirs_exist_ok=True)
    expected = load_tokenizer(tmp_path)(HARD_TEXTS)["input_ids"]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    settings |= {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}, "tokenizer_class": "Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(tmp_path)(HARD_TEXTS)["input_ids"] == expected
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')
    with pytest.raises(TokenizerError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.slow
def test_the_real_tokenizer_on_3000_texts(real_model: Callable[..., Path], shared_data: Path, tmp_path: Path) -> None:
    folder = real_model("bfloat16")
    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    lines = (shared_data / "corpus" / "wikitext2_valid.txt").read_text("utf-8").splitlines()
    rows = (shared_data / "sft" / "dolly_hhrlhf_small_1000.jsonl").read_text("utf-8").splitlines()
    texts = [line for line in lines if line.strip()][:2000]
    texts += [str(value) for row in rows for value in json.loads(row).values()][:800]
    texts += [f"{'    ' * (n % 5)}x_{n} = {n * 7919}.{n}\n\tif {n} > 10**{n % 9}:" for n in range(200)]
    assert len(texts) == 3000
    expected = [encoding.ids for encoding in stored.encode_batch(texts)]
    tokenizer = load_tokenizer(folder)
    assert encode_texts(tokenizer, texts, with_end=True) == expected
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"] == expected
    assert load_tokenizer(tmp_path)(texts)["input_ids"] == expected
    messages = [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]
    encoded = encode_turns(tokenizer, messages)
    assert encoded.input_ids == tokenizer.apply_chat_template(messages)["input_ids"]
    said = [token for token, turn in zip(encoded.input_ids, encoded.turn, strict=True) if turn]
    assert tokenizer.decode(said) == f"{texts[1]}<|im_end|>"

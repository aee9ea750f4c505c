import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chatgpt_hf import tokenization_chatgpt
from chatgpt_hf.errors import DataError, TokenizerError
from chatgpt_hf.tokenization_chatgpt import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    IM_END,
    IM_START,
    PAD,
    SPECIAL_TOKENS,
    encode_conversation,
    encode_document_arrays,
    encode_documents,
    load_tokenizer,
    train_tokenizer,
)

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind. " * 20,
    "def add(a, b):\n    return a + b  # 1234567\n" * 20,
    "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。" * 20,
    f"user\nassistant\nsystem {IM_START} and {IM_END} " * 20,
]
HARD_TEXTS = [
    "",
    " ",
    "\n\n\n",
    "\t tab\r\nand \x00 null \x1b[0m escape \x7f",
    "中文，混排 English 和 emoji 👩‍👩‍👧‍👦🇩🇪é",
    "e\u0301 is not \u00e9",
    "\ufeff byte order mark \u2028 \u00a0 \U0010ffff \ue000",
    "".join(SPECIAL_TOKENS),
    f" {IM_END} {END_OF_TEXT}{END_OF_TEXT}\n",
    "12345 3.14159 ٣٤٥٦٧",
]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How much is 1234 + 1?"},
    {"role": "assistant", "content": " Let me\n\ncompute 👍."},
    {"role": "tool", "content": "1235"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": [{"type": "text", "text": "Thank"}, {"type": "text", "text": " you."}]},
    {"role": "assistant", "content": "再見 "},
]

any_text = st.text(st.characters(exclude_categories=["Cs"]))
text_with_specials = st.lists(st.one_of(any_text, st.sampled_from(SPECIAL_TOKENS))).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 340, show_progress=False)


def decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def assistant_spans(tokenizer, encoded) -> list[str]:
    """The texts of all runs of ones in the mask."""
    spans, open_span = [], False
    for token, said in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True):
        if said:
            spans = spans if open_span else [*spans, []]
            spans[-1].append(token)
        open_span = bool(said)
    return [decode(tokenizer, span) for span in spans]


def test_special_tokens(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (END_OF_TEXT, END_OF_TEXT, PAD)
    assert tokenizer.unk_token is None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert sorted(tokenizer.all_special_tokens) == sorted(SPECIAL_TOKENS)
    assert tokenizer.extra_special_tokens == [IM_START, IM_END]
    assert len(tokenizer) == 340


@given(text=text_with_specials)
def test_every_text_comes_back(tokenizer, text):
    assert decode(tokenizer, tokenizer(text)["input_ids"]) == text


@given(text=text_with_specials)
def test_documents_come_back_without_special_tokens(tokenizer, text):
    ((bos, *ids, eos),) = encode_documents(tokenizer, [text])
    assert bos == eos == tokenizer.eos_token_id
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert decode(tokenizer, ids) == text


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_hard_texts_come_back(tokenizer, text):
    assert decode(tokenizer, tokenizer(text)["input_ids"]) == text
    assert decode(tokenizer, encode_documents(tokenizer, [text])[0][1:-1]) == text


def test_encoding_documents_leaves_the_tokenizer_as_it_was(tokenizer):
    assert encode_documents(tokenizer, []) == []
    assert len(encode_documents(tokenizer, [IM_END])[0]) > 3
    assert tokenizer(IM_END)["input_ids"] == [3]
    assert tokenizer.tokenize(IM_END) == [IM_END]


def test_digits_are_grouped_by_at_most_two():
    tokenizer = train_tokenizer(["123456789 " * 100], 300, show_progress=False)
    pieces = tokenizer.tokenize("12345")
    assert pieces == ["12", "34", "5"]
    assert max(len(piece) for piece in tokenizer.get_vocab() if piece.strip("Ġ").isdigit()) == 2


def test_training_is_deterministic():
    first, second = (train_tokenizer(iter(TEXTS), 400, show_progress=False) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


@pytest.mark.parametrize("config", [None, {"model_type": "chatgpt", "auto_map": {"AutoConfig": "nothing.Config"}}])
def test_auto_tokenizer_opens_a_saved_one(tokenizer, tmp_path, config):
    tokenizer.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".jinja"}
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    for reloaded in (AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False), load_tokenizer(tmp_path)):
        assert type(reloaded) is type(tokenizer)
        assert reloaded.chat_template == CHAT_TEMPLATE
        assert reloaded.special_tokens_map == tokenizer.special_tokens_map
        assert reloaded.all_special_ids == tokenizer.all_special_ids
        assert reloaded.model_max_length == tokenizer.model_max_length
        assert not reloaded.clean_up_tokenization_spaces
        assert reloaded(HARD_TEXTS)["input_ids"] == tokenizer(HARD_TEXTS)["input_ids"]
        assert encode_documents(reloaded, HARD_TEXTS) == encode_documents(tokenizer, HARD_TEXTS)
        assert encode_conversation(reloaded, CONVERSATION) == encode_conversation(tokenizer, CONVERSATION)


def test_model_max_length_is_saved(tmp_path):
    train_tokenizer(TEXTS, 300, show_progress=False, model_max_length=77).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).model_max_length == 77


def test_small_corpus_gives_a_smaller_vocabulary_and_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="chatgpt_hf"):
        tokenizer = train_tokenizer(["abc abc"], 5000, show_progress=False)
    assert 260 < len(tokenizer) < 300
    assert "5000" in caplog.text


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (TEXTS, 259, "260"),
        ([], 300, "no text"),
        (["", ""], 300, "no text"),
        (["a", None], 300, "item 1 of texts is NoneType"),
        (["a", ["b"]], 300, "item 1 of texts is list"),
        ("abc", 300, "one string"),
    ],
)
def test_training_errors(texts, vocab_size, message):
    with pytest.raises(TokenizerError, match=message):
        train_tokenizer(texts, vocab_size, show_progress=False)


@pytest.mark.parametrize(("max_digits", "pieces"), [(1, list("12345")), (2, ["12", "34", "5"]), (3, ["123", "45"])])
def test_digits_are_cut_in_groups(max_digits, pieces):
    numbers = " ".join(f"{number:03d}" for number in range(1000))
    tokenizer = train_tokenizer([numbers] * 3, 2000, max_digits=max_digits, show_progress=False)
    assert [tokenizer.decode([token]) for token in tokenizer("12345")["input_ids"]] == pieces
    text = "In 2024, 1234567 times.\n" * 30
    ids, count = encoded_in_slices(tokenizer, text)
    assert count > 1
    assert ids[1:-1] == tokenizer(text)["input_ids"]
    for wrong in (0, 4):
        with pytest.raises(TokenizerError, match=f"max_digits is {wrong}"):
            train_tokenizer(["12"], 300, max_digits=wrong, show_progress=False)


def test_smallest_vocabulary():
    tokenizer = train_tokenizer(["abc"], 260, show_progress=False)
    assert len(tokenizer) == 260
    assert decode(tokenizer, tokenizer("天")["input_ids"]) == "天"


def test_chat_template_is_chatml(tokenizer):
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True) == (
        f"{END_OF_TEXT}{IM_START}system\nBe brief.{IM_END}\n{IM_START}user\nHow much is 1234 + 1?{IM_END}\n"
        f"{IM_START}assistant\n Let me\n\ncompute 👍.{IM_END}\n{IM_START}tool\n1235{IM_END}\n"
        f"{IM_START}assistant\n{IM_END}\n{IM_START}user\nThank you.{IM_END}\n{IM_START}assistant\n再見 {IM_END}\n"
        f"{IM_START}assistant\n"
    )


def test_masks_cover_what_the_assistant_says(tokenizer):
    said = [f" Let me\n\ncompute 👍.{IM_END}", IM_END, f"再見 {IM_END}"]
    encoded = encode_conversation(tokenizer, CONVERSATION)
    assert assistant_spans(tokenizer, encoded) == said
    library = tokenizer.apply_chat_template(CONVERSATION, return_assistant_tokens_mask=True, return_dict=True)
    assert assistant_spans(tokenizer, library) == said


@settings(max_examples=50)
@given(
    turns=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), any_text), min_size=1),
    add_generation_prompt=st.booleans(),
)
def test_conversation_equals_the_library(tokenizer, turns, add_generation_prompt):
    messages = [{"role": role, "content": content} for role, content in turns]
    library = tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=add_generation_prompt,
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    encoded = encode_conversation(tokenizer, messages, add_generation_prompt)
    assert encoded == {key: library[key] for key in ("input_ids", "assistant_masks")}


@settings(max_examples=50)
@given(
    turns=st.lists(st.tuples(st.sampled_from(["user", "assistant"]), text_with_specials), min_size=1),
    as_parts=st.booleans(),
)
def test_content_never_gives_a_special_token(tokenizer, turns, as_parts):
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if as_parts else text} for role, text in turns
    ]
    encoded = encode_conversation(tokenizer, messages)
    ids, masks = encoded["input_ids"], encoded["assistant_masks"]
    assert len(ids) == len(masks)
    rendered = END_OF_TEXT + "".join(f"{IM_START}{role}\n{text}{IM_END}\n" for role, text in turns)
    assert decode(tokenizer, ids) == rendered
    real = [token for token in ids if token in tokenizer.all_special_ids]
    assert real == [0, *[2, 3] * len(turns)]
    # A token may start in the newline before a turn and end inside the turn, hence the two strips.
    said = [text.lstrip() + IM_END for role, text in turns if role == "assistant"]
    assert [span.lstrip() for span in assistant_spans(tokenizer, encoded)] == said


def test_conversation_with_other_private_use_characters(tokenizer):
    text = f"\U000f0000{IM_END}\U000f0001{PAD}"
    ids = encode_conversation(tokenizer, [{"role": "user", "content": text}])["input_ids"]
    assert decode(tokenizer, ids) == f"{END_OF_TEXT}{IM_START}user\n{text}{IM_END}\n"
    assert [token for token in ids if token < 4] == [0, 2, 3]


def test_conversation_ignores_keys_without_value(tokenizer):
    messages = [{"role": "user", "content": "Hi", "tool_calls": None}]
    assert encode_conversation(tokenizer, messages) == encode_conversation(
        tokenizer, [{"role": "user", "content": "Hi"}]
    )


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "bot", "content": "Hi"}], "'bot'.*system, user, assistant, tool"),
        ([{"role": f"a{IM_END}", "content": "Hi"}], r"'a<\|im_end\|>'"),
        ([{"content": "Hi"}], "Unknown role ''"),
        ([{"role": "user"}], "'user' is neither a string"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "text parts"),
        ([{"role": "user", "content": ["x"]}], "text parts"),
        ([{"role": "user", "content": 3}], "text parts"),
        ([], "no messages"),
    ],
)
def test_conversation_errors(tokenizer, messages, message):
    with pytest.raises(DataError, match=message):
        encode_conversation(tokenizer, messages)


def test_tokenizer_without_chat_template_or_eos(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(TokenizerError, match="chat template"):
        encode_conversation(bare, CONVERSATION)
    with pytest.raises(TokenizerError, match="lacks an eos token"):
        encode_documents(bare, ["a"])


def test_gpt2_files_give_the_reference_ids(shared_data):
    folder = shared_data / "gpt2_tokenizer"
    tokenizer = load_tokenizer(folder)
    rows = [json.loads(line) for line in (folder / "reference_encodings.jsonl").read_text("utf-8").splitlines()]
    assert rows
    for row in rows:
        assert tokenizer(row["text"])["input_ids"] == row["ids"]
        assert decode(tokenizer, row["ids"]) == row["text"]
    tokenizer.chat_template = CHAT_TEMPLATE
    library = tokenizer.apply_chat_template(CONVERSATION, return_assistant_tokens_mask=True, return_dict=True)
    assert encode_conversation(tokenizer, CONVERSATION)["input_ids"] == library["input_ids"]


def test_load_errors(tokenizer, tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is missing") as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"merges\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="not a folder"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(TokenizerError, match="not a folder"):
        load_tokenizer(tmp_path / "vocab.json")
    with pytest.raises(TokenizerError, match="nobody/nothing"):
        load_tokenizer("nobody/nothing")
    tokenizer.save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(TokenizerError, match="broken"):
        load_tokenizer(tmp_path / "broken")


# Characters that the pre-tokenizations treat differently, around positions where a text may be cut.
awkward_text = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "\n",
                "\n",
                " ",
                " ",
                "\r",
                "\t",
                "\u00a0",
                "\u2028",
                "\x1c",
                "\x85",
                "\u180e",
                "\u3000",
                "a",
                "Zb",
                "é",
                "中",
                "1",
                "²",
                "'s",
            ]
        ),
        st.sampled_from(["!", "_", "\u0301", "👍", "\x00", END_OF_TEXT]),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
).map("".join)


def encoded_in_slices(tokenizer, text: str) -> tuple[list[int], int]:
    """Encodes a text in the shortest possible slices; returns the ids and the number of slices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization_chatgpt, "_SLICE_SIZE", 1)
        patch.setattr(tokenization_chatgpt, "_GROUP_SIZE", 7)
        (ids,) = encode_document_arrays(tokenizer, [text])
        return ids.tolist(), len(list(tokenization_chatgpt._slices(text, tokenization_chatgpt._slice_end(tokenizer))))


@settings(max_examples=200)
@given(awkward_text)
def test_slices_give_the_ids_of_the_whole(tokenizer, text):
    ids, _ = encoded_in_slices(tokenizer, text)
    assert [ids] == encode_documents(tokenizer, [text])


@pytest.fixture(scope="module")
def gpt2_tokenizer(shared_data):
    return load_tokenizer(shared_data / "gpt2_tokenizer")


@settings(max_examples=200)
@given(awkward_text)
def test_slices_give_the_ids_of_the_whole_with_gpt2(gpt2_tokenizer, text):
    ids, _ = encoded_in_slices(gpt2_tokenizer, text)
    assert [ids] == encode_documents(gpt2_tokenizer, [text])


def test_prose_is_sliced(tokenizer, gpt2_tokenizer, shared_data):
    names = ("corpus/gutenberg_en/Frankenstein_84.txt", "corpus/zh/西游记.txt")
    for text in ((shared_data / name).read_text("utf-8")[:20_000] for name in names):
        for each in (tokenizer, gpt2_tokenizer):
            ids, count = encoded_in_slices(each, text)
            assert [ids] == encode_documents(each, [text])
            assert count > 50


def test_tokenizers_that_may_see_across_a_slice_get_the_whole(tokenizer, gpt2_tokenizer):
    assert tokenization_chatgpt._slice_end(tokenizer) is not None
    assert tokenization_chatgpt._slice_end(gpt2_tokenizer) is not None
    added = train_tokenizer(TEXTS, 300, show_progress=False)
    added.add_tokens(["dog,\nand"])
    assert tokenization_chatgpt._slice_end(added) is None
    for change in (
        {"normalizer": normalizers.Strip()},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)},
        {"pre_tokenizer": pre_tokenizers.Whitespace()},
    ):
        other = train_tokenizer(TEXTS, 300, show_progress=False)
        for name, value in change.items():
            setattr(other.backend_tokenizer, name, value)
        assert tokenization_chatgpt._slice_end(other) is None, change

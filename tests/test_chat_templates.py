"""Chat templates of many families: what the assistant says in them, and what is refused."""

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from foreign_tokenizers import (
    ALPACA,
    CHATML,
    CHATML_WITH_DEFAULT_SYSTEM,
    GEMMA,
    LLAMA2,
    LLAMA3,
    MISTRAL,
    PHI3,
    QWEN_TOOLS,
    REASONING,
    VICUNA,
    ZEPHYR,
)
from transformers import PreTrainedTokenizerBase

from chatgpt_hf import chat_templates
from chatgpt_hf.chat_templates import (
    encode_chat_prompt,
    encode_conversation,
    encode_turns,
    read_chat_template,
    shown_of_tools,
)
from chatgpt_hf.data.conversations import (
    encode_messages,
    load_conversations,
    tokenize_conversations,
    warn_of_keys,
)
from chatgpt_hf.data.packing import IGNORE_INDEX
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf.errors import DataError, TemplateTimeout, TokenizerError
from chatgpt_hf.tokenization_chatgpt import CHAT_TEMPLATE, load_tokenizer, train_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Fine <|im_end|> yes."},
    {"role": "user", "content": "And\nthe fox?"},
    {"role": "assistant", "content": "It jumps.\n\n- over"},
]
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "ü"}}}
WITH_CALL = [
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "It is 3."},
]


@pytest.fixture
def tokenizer_of(foreign_tokenizer: Callable[[str], Path]) -> Callable[..., PreTrainedTokenizerBase]:
    def load(kind: str, template: Any = None) -> PreTrainedTokenizerBase:
        tokenizer = load_tokenizer(foreign_tokenizer(kind))
        if template is not None:
            tokenizer.chat_template = template
        return tokenizer

    return load


def said(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any) -> list[str]:
    """The text of each of the assistant's turns, with its special tokens."""
    encoded = encode_turns(tokenizer, messages, **options)
    return [
        tokenizer.decode(
            [token for token, turn in zip(encoded.input_ids, encoded.turn, strict=True) if turn == number]
        )
        for number in range(1, len(encoded.turns) + 1)
    ]


@pytest.mark.parametrize(
    ("template", "kind", "ends", "space"),
    [
        (CHATML, "qwen", ("<|im_end|>", "<|im_end|>"), ""),
        (CHATML_WITH_DEFAULT_SYSTEM, "smollm", ("<|im_end|>", "<|im_end|>"), ""),
        (QWEN_TOOLS, "qwen", ("<|im_end|>", "<|im_end|>"), ""),
        (LLAMA2, "llama2", (" </s>", " </s>"), ""),
        (MISTRAL, "mistral", ("</s>", "</s>"), ""),
        (MISTRAL, "gpt2", ("<|endoftext|>", "<|endoftext|>"), " "),
        (LLAMA3, "llama3", ("<|eot_id|>", "<|eot_id|>"), ""),
        (GEMMA, "gemma", ("<end_of_turn>", "<end_of_turn>"), ""),
        (PHI3, "phi3", ("<|end|>", "<|end|>"), ""),
        (ZEPHYR, "gpt2", ("<|endoftext|>", "<|endoftext|>"), ""),
        (VICUNA, "gpt2", ("<|endoftext|>", "<|endoftext|>"), " "),
        (ALPACA, "gpt2", ("", "<|endoftext|>"), ""),
    ],
)
def test_what_the_assistant_says_is_found_without_marks(
    template: str, kind: str, ends: tuple[str, str], space: str, tokenizer_of: Callable[..., PreTrainedTokenizerBase]
) -> None:
    tokenizer = tokenizer_of(kind, template)
    for first in ([], [SYSTEM]) if template not in (GEMMA, MISTRAL) else ([],):
        found = said(tokenizer, [*first, *CHAT])
        assert found == [space + CHAT[1]["content"] + ends[0], space + CHAT[3]["content"] + ends[1]]
    # What it learns continues what it will be given.
    encoded, prompt = encode_turns(tokenizer, CHAT[:2]), encode_chat_prompt(tokenizer, CHAT[:1])
    begin = encoded.turn.index(1)
    assert encoded.input_ids[:begin] == prompt[:begin]


def test_thoughts_that_the_template_adds(tokenizer_of: Callable[..., PreTrainedTokenizerBase]) -> None:
    tokenizer = tokenizer_of("qwen", REASONING)
    # The prompt ends with an opened thought, which the last answer continues and earlier answers lack.
    assert tokenizer.decode(encode_chat_prompt(tokenizer, CHAT[:1])).endswith("assistant\n<think>\n")
    assert said(tokenizer, CHAT) == [
        f"{CHAT[1]['content']}<|im_end|>",
        f"\n</think>\n\n{CHAT[3]['content']}<|im_end|>",
    ]


def test_tools_and_calls(tokenizer_of: Callable[..., PreTrainedTokenizerBase]) -> None:
    tokenizer = tokenizer_of("qwen")
    expected = [
        '\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "ü"}}\n</tool_call><|im_end|>',
        "It is 3.<|im_end|>",
    ]
    # After the prompt's line feed, if the call stands alone.
    assert [text.removeprefix("\n") for text in said(tokenizer, WITH_CALL)] == [expected[0][1:], expected[1]]
    encoded = encode_turns(tokenizer, WITH_CALL, tools=[TOOL])
    assert encoded.input_ids == tokenizer.apply_chat_template(WITH_CALL, tools=[TOOL])["input_ids"]
    assert '"description": "Adds."' in encoded.text
    # A clear refusal of roles that a template has no place for.
    with pytest.raises(DataError, match="roles must alternate"):
        encode_conversation(tokenizer_of("mistral"), WITH_CALL)
    with pytest.raises(DataError, match="System role not supported"):
        encode_chat_prompt(tokenizer_of("gemma"), [SYSTEM, *CHAT[:1]])


def test_json_arguments_and_text_parts_as_the_template_takes_them(
    tokenizer_of: Callable[..., PreTrainedTokenizerBase],
) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "ü"}'}}
    with_json = [WITH_CALL[0], {**WITH_CALL[1], "tool_calls": [call]}, *WITH_CALL[2:]]
    in_parts = [
        {"role": "user", "content": [{"type": "text", "text": "1 +"}, {"type": "text", "text": "2?"}]},
        *with_json[1:],
    ]
    qwen = tokenizer_of("qwen")
    assert encode_conversation(qwen, with_json) == encode_conversation(qwen, WITH_CALL)
    assert encode_conversation(qwen, in_parts) == encode_conversation(qwen, WITH_CALL)
    # A template that concatenates strings gets the string.
    strings = tokenizer_of(
        "gpt2",
        "{% for m in messages %}{{ m.tool_calls[0].function.arguments + '!' if m.tool_calls else m.content }}{% endfor %}",
    )
    assert '{"a": 1, "b": "ü"}!' in strings.decode(encode_chat_prompt(strings, with_json))
    # Ours takes both as they are.
    ours = train_tokenizer(["a b"], 270, show_progress=False)
    assert '{"name": "add", "arguments": {"a": 1, "b": "ü"}}' in ours.decode(encode_chat_prompt(ours, with_json))


def test_named_templates(tokenizer_of: Callable[..., PreTrainedTokenizerBase]) -> None:
    tokenizer = tokenizer_of("qwen", {"default": CHATML, "tool_use": QWEN_TOOLS})
    assert encode_turns(tokenizer, CHAT).template == CHATML
    encoded = encode_turns(tokenizer, WITH_CALL, tools=[TOOL])
    assert encoded.template == QWEN_TOOLS
    assert encoded.input_ids == tokenizer.apply_chat_template(WITH_CALL, tools=[TOOL])["input_ids"]
    tokenizer.chat_template = {"rag": CHATML}
    with pytest.raises(TokenizerError, match="rag"):
        encode_chat_prompt(tokenizer, CHAT)


@pytest.mark.parametrize(
    ("family", "kind"), [("qwen2_5", "qwen"), ("llama3", "llama3"), ("qwen3", "qwen"), ("gemma", "gemma")]
)
def test_families_that_trl_knows(family: str, kind: str, tokenizer_of: Callable[..., PreTrainedTokenizerBase]) -> None:
    file = Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja"
    tokenizer = tokenizer_of(kind, file.read_text("utf-8"))
    encoded = encode_turns(tokenizer, CHAT)
    assert encoded.input_ids == encode_turns(tokenizer, CHAT, add_generation_prompt=False).input_ids
    assert encoded.text == tokenizer.apply_chat_template(CHAT, tokenize=False)
    for text, message in zip(encoded.turns, (CHAT[1], CHAT[3]), strict=True):
        assert text.strip().removeprefix("<think>\n\n</think>").strip() in (
            message["content"],
            message["content"].replace("<|im_end|>", ""),
        )


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("{{ raise_exception('only poems') }}", DataError, "refuses the conversation: only poems"),
        ("{{ messages[0].content + 1 }}", DataError, "TypeError"),
        ("{{ messages[7].content }}", DataError, "has no element 7"),
        ("{{ 1 / 0 }}", DataError, "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", DataError, "RecursionError"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            TemplateTimeout,
            "loop for ever",
        ),
        ("{% for a in range(10 ** 9) %}x{% endfor %}", DataError, "OverflowError"),
        ("{% if false %}x{% endif %}\n ", DataError, "prints nothing"),
        ("{% for m in messages %}", TokenizerError, "not valid Jinja: line 1"),
        (
            "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}",
            DataError,
            "generation %} marks",
        ),
        ("{{ messages[-1].content }}", DataError, "generation %} marks"),
    ],
)
def test_templates_that_cannot_be_used(
    template: str,
    error: type[Exception],
    message: str,
    tokenizer_of: Callable[..., PreTrainedTokenizerBase],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat_templates, "RENDER_SECONDS", 0.3 if "for ever" in message else 60)
    tokenizer = tokenizer_of("gpt2", template)
    with pytest.raises(error, match=message):
        encode_conversation(tokenizer, CHAT)
    if "marks" not in message:
        with pytest.raises(error, match=message):
            encode_chat_prompt(tokenizer, CHAT[:1])


def test_a_prompt_asks_for_no_marks(
    tokenizer_of: Callable[..., PreTrainedTokenizerBase],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        encode_chat_prompt(tokenizer_of("mistral"), CHAT[:1])
        encode_conversation(tokenizer_of("mistral"), CHAT)
    assert caplog.records == []


def test_threads_may_share_a_tokenizer() -> None:
    tokenizer = train_tokenizer(["a b c d"], 270, show_progress=False)
    expected = encode_conversation(tokenizer, CHAT), encode_chat_prompt(tokenizer, CHAT[:1])
    wrong: list[object] = []

    def work() -> None:
        for _ in range(30):
            try:
                got = encode_conversation(tokenizer, CHAT), encode_chat_prompt(tokenizer, CHAT[:1])
            except Exception as error:
                wrong.append(error)
            else:
                wrong.extend([] if got == expected else [got])

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_template_from_elsewhere(
    tokenizer_of: Callable[..., PreTrainedTokenizerBase], foreign_tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    tokenizer = tokenizer_of("gpt2")
    file = tmp_path / "mine.jinja"
    file.write_text(CHAT_TEMPLATE, encoding="utf-8")
    assert read_chat_template(str(file), tokenizer) == CHAT_TEMPLATE
    assert read_chat_template(str(foreign_tokenizer("smollm")), tokenizer) == CHATML_WITH_DEFAULT_SYSTEM
    with pytest.raises(TokenizerError, match=r"contains <\|eot_id\|>|<\|start_header_id\|>"):
        read_chat_template(str(foreign_tokenizer("llama3")), tokenizer)
    with pytest.raises(TokenizerError, match=r"no chat template .*absent\.jinja"):
        read_chat_template(str(tmp_path / "absent.jinja"), tokenizer)
    folder = tmp_path / "bare"
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(TokenizerError, match="has no chat template"):
        read_chat_template(str(folder), tokenizer)


@pytest.mark.slow
def test_every_row_of_real_data_with_the_real_tokenizer(real_model: Callable[..., Path], shared_data: Path) -> None:
    tokenizer = load_tokenizer(real_model("bfloat16"))
    sources = parse_sources(str(shared_data / "sft" / "dolly_hhrlhf_small_1000.jsonl"))
    conversations = load_conversations(sources)["train"].select(range(200))
    for row, messages in zip(tokenize_conversations(conversations, tokenizer), conversations["messages"], strict=True):
        assert row["input_ids"] == tokenizer.apply_chat_template(messages)["input_ids"]
        learned = [token for token in row["labels"] if token != IGNORE_INDEX]
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        assert tokenizer.decode(learned) == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_sft_with_a_template_of_the_users(
    cli: Callable[..., Any], sft_options: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    file = tmp_path / "chatml.jinja"
    file.write_text(CHATML, encoding="utf-8")
    out = tmp_path / "out"
    result = cli("sft", *sft_options, "--chat_template_path", file, "--output_dir", out, "--max_steps", 1)
    assert result.code == 0, result.err
    assert load_tokenizer(out).chat_template == CHATML
    assert json.loads((out / "generation_config.json").read_text("utf-8"))["eos_token_id"] == [3, 0]
    file.write_text("{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}", encoding="utf-8")
    message = refused("sft", *sft_options, "--chat_template_path", file, "--output_dir", tmp_path / "no")
    assert "does not mark what the assistant says" in message
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (CHATML, (False, False, True)),
        (CHATML_WITH_DEFAULT_SYSTEM, (False, False, True)),
        (CHATML + "{# tools #}", (False, False, True)),
        (CHATML + "{% if tools %}You have tools.{% endif %}", (False, False, True)),
        (CHATML.replace("messages %}", "messages if message['role'] != 'tool' %}", 1), (False, False, False)),
        (QWEN_TOOLS, (True, True, True)),
        (CHAT_TEMPLATE, (True, True, True)),
        # It refuses messages of tools itself.
        (MISTRAL, (False, False, True)),
        ({"default": CHATML, "tool_use": QWEN_TOOLS}, (True, False, True)),
        # It refuses everything, so a conversation will tell.
        ("{{ raise_exception('no') }}", (True, True, True)),
    ],
)
def test_what_a_template_shows_of_tools(
    template: Any, shown: tuple[bool, ...], tokenizer_of: Callable[..., PreTrainedTokenizerBase]
) -> None:
    assert shown_of_tools(tokenizer_of("qwen", template)) == shown


def test_training_says_which_tools_the_template_does_not_show(
    tokenizer_of: Callable[..., PreTrainedTokenizerBase], caplog: pytest.LogCaptureFixture
) -> None:
    call = {"type": "function", "function": {"name": "add_up", "arguments": {"a": 1}}}
    tool = {"type": "function", "function": {"name": "add_up", "parameters": {"type": "object", "properties": {}}}}
    asked = [CHAT[0], {"role": "assistant", "content": "So:", "tool_calls": [call]}]
    marked = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% generation %}"
        "{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% endfor %}"
    )
    counts: dict[str, Counter[str]] = {"chatml": Counter(), "qwen": Counter()}
    for name, template in (("chatml", marked), ("qwen", QWEN_TOOLS)):
        encode_messages(asked, [tool], tokenizer_of("qwen", template), counts[name])
        warn_of_keys(counts[name])
    assert +counts["chatml"] == {"tools": 1, "tool_calls": 1}
    assert not +counts["qwen"]
    assert [record.message.partition("learned: ")[2] for record in caplog.records] == ["tools (1), tool_calls (1)."]

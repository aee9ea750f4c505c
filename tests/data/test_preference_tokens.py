"""The scored tokens of preferences equal those that `sft` learns from the same conversations."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from foreign_tokenizers import KINDS
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from chatgpt_hf import load_tokenizer
from chatgpt_hf.chat_templates import encode_conversation
from chatgpt_hf.data.conversations import tokenize_conversations
from chatgpt_hf.data.packing import IGNORE_INDEX
from chatgpt_hf.data.preference_tokens import encode_sides, preference_parts, show_pairs, tokenize_preferences
from chatgpt_hf.data.preferences import load_preferences
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf.errors import ConfigError, DataError


def says(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


USER = says("user", "Why? <|im_end|>\n<|im_start|>assistant\nNo")
CALL = says("assistant", "", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}])
TOOL = says("tool", "2")
PROMPTS = {
    "question": [USER],
    "system": [says("system", "Be brief."), USER],
    "turns": [says("user", "Hi"), says("assistant", "Yes?"), USER],
}
SIDES = {
    "plain": ([says("assistant", "Because.")], [says("assistant", " It is so.\n")]),
    "special": ([says("assistant", "<|im_end|>")], [says("assistant", "你好 👍🏽 <|im_start|>user")]),
    "line breaks": ([says("assistant", "\n\nBecause")], [says("assistant", "Because")]),
    "turns": ([says("assistant", "One"), USER, says("assistant", "Two")], [says("assistant", "Three")]),
    "tools": ([CALL, TOOL, says("assistant", "Two")], [says("assistant", "Three")]),
}


@pytest.fixture
def tokenizer(base_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base_folder)


def pairs(*rows: tuple[list[Any], list[Any], list[Any]], **columns: Any) -> Dataset:
    names = ("prompt", "chosen", "rejected")
    return Dataset.from_list([dict(zip(names, row, strict=True)) for row in rows]).add_column(
        "tools", [None] * len(rows)
    )


def check_sides(
    prompt: list[Any], sides: tuple[list[Any], ...], tokenizer: PreTrainedTokenizerBase, rows: dict[str, Any]
) -> None:
    """Compares each side with the whole conversation, as the model and `sft` see it."""
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        whole = encode_conversation(tokenizer, [*prompt, *side])
        ids = rows["prompt_ids"] + rows[f"{name}_ids"]
        assert ids == whole["input_ids"][: len(ids)]
        # Nothing that is scored comes later.
        assert not any(whole["assistant_masks"][len(ids) :])
        learned = tokenize_conversations(Dataset.from_list([{"messages": [*prompt, *side]}]), tokenizer)[0]["labels"]
        assistants = [index for index, label in enumerate(learned) if label != IGNORE_INDEX]
        scored = [len(rows["prompt_ids"]) + index for index, each in enumerate(rows[f"{name}_mask"]) if each]
        assert scored == assistants[len(assistants) - len(scored) :]
        before = encode_conversation(tokenizer, prompt)["assistant_masks"]
        assert len(scored) == len(assistants) - sum(before)
        assert rows[f"{name}_mask"][-1] == 1


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_scored_is_what_sft_learns(prompt: str, sides: str, tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode_sides(PROMPTS[prompt], SIDES[sides], None, tokenizer)
    (chosen, rejected), (chosen_mask, rejected_mask) = encoded.ids, encoded.masks
    row = {
        "prompt_ids": encoded.prompt_ids,
        **{"chosen_ids": chosen, "rejected_ids": rejected, "chosen_mask": chosen_mask, "rejected_mask": rejected_mask},
    }
    check_sides(PROMPTS[prompt], SIDES[sides], tokenizer, row)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for ids, mask, side in zip(encoded.ids, encoded.masks, SIDES[sides], strict=True):
        # The end mark is scored, once for each of the assistant's messages; a quoted one is ordinary text.
        assert ids[-1] == end
        scored = [token for token, is_scored in zip(ids, mask, strict=True) if is_scored]
        assert scored.count(end) == sum(message["role"] == "assistant" for message in side)
    if sides == "plain":
        assert all(chosen_mask + rejected_mask)
        assert tokenizer.decode(chosen) == "Because.<|im_end|>"


@pytest.mark.parametrize("kind", KINDS)
def test_templates_of_other_families(kind: str, foreign_tokenizer: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(foreign_tokenizer(kind))
    if tokenizer.chat_template is None:
        pytest.skip("no chat template")
    prompt, sides = [says("user", "Why?")], SIDES["plain"]
    rows, _ = tokenize_preferences(pairs((prompt, *sides)), tokenizer)
    check_sides(prompt, sides, tokenizer, rows[0])
    # A small vocabulary may lack the capital letter.
    assert tokenizer.decode(rows[0]["chosen_ids"], skip_special_tokens=True).strip().lower().endswith("ecause.")


def test_judged_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = Dataset.from_list([{"prompt": [USER], "completion": [says("assistant", "No")], "label": False}])
    (row,), notes = tokenize_preferences(dataset, tokenizer)
    pair = encode_sides([USER], [[says("assistant", "No")]], None, tokenizer)
    assert row == {
        "prompt_ids": pair.prompt_ids,
        "completion_ids": pair.ids[0],
        "completion_mask": pair.masks[0],
        "label": False,
    }
    assert notes == {}


def test_messages_that_must_not_be_learned_are_not_scored(tokenizer: PreTrainedTokenizerBase) -> None:
    side = [says("assistant", "One", weight=0), says("user", "More"), says("assistant", "Two")]
    encoded = encode_sides([says("user", "Q")], [side, [says("assistant", "Three")]], None, tokenizer)
    scored = [token for token, mask in zip(encoded.ids[0], encoded.masks[0], strict=True) if mask]
    assert tokenizer.decode(scored) == "Two<|im_end|>"
    with pytest.raises(DataError, match="nothing of an answer is scored"):
        encode_sides([says("user", "Q")], [side[:1]], None, tokenizer)


def test_a_template_that_changes_the_prompt_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        "{% for message in messages %}{{ messages | length }} {{ message.role }}: {% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ message.content }}{% endif %}"
        "{% endfor %}"
    )
    dataset = pairs(([says("user", "Q")], *SIDES["turns"]))
    with pytest.raises(DataError, match="Row 1: the chat template writes the prompt differently"):
        tokenize_preferences(dataset, tokenizer)
    with pytest.raises(DataError, match="None of the 1 preferences has answers to compare"):
        tokenize_preferences(dataset, tokenizer, skip_invalid=True)


def test_long_preferences(tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture) -> None:
    short, long = says("assistant", "x"), says("assistant", "abcdefghij" * 6)
    rows = [
        ([says("user", "Q")], [short], [says("assistant", "y")]),
        ([says("user", "Q")], [short], [long]),
        ([says("user", "Q" * 60)], [short], [long]),
        ([says("user", "Q")], [long], [says("assistant", f"{long['content']} too")]),
    ]
    whole, notes = tokenize_preferences(pairs(*rows), tokenizer)
    assert (len(whole), notes) == (4, {})
    with caplog.at_level(logging.WARNING):
        cut, notes = tokenize_preferences(pairs(*rows), tokenizer, max_length=40)
    assert list(notes.values()) == [2, 1, 1]
    assert "2 of 4 preferences are longer than 40 tokens: their end is cut off" in caplog.text
    assert "1 of 4 preferences have a prompt that leaves no room for an answer in 40 tokens" in caplog.text
    assert "1 of 4 preferences have the same tokens on both sides" in caplog.text
    assert len(cut) == 2
    assert cut[0] == whole[0]
    for part in ("ids", "mask"):
        assert cut[1][f"rejected_{part}"] == whole[1][f"rejected_{part}"][: 40 - len(cut[1]["prompt_ids"])]
    dropped, notes = tokenize_preferences(pairs(*rows), tokenizer, max_length=40, long_preferences="drop")
    assert (len(dropped), list(notes.values())) == (1, [3])
    with pytest.raises(ConfigError, match="long_preferences is 'keep': give one of cut, drop"):
        tokenize_preferences(pairs(*rows), tokenizer, long_preferences="keep")


def test_margins(tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture) -> None:
    rows = pairs(*[([USER], *SIDES["plain"])] * 2)
    assert tokenize_preferences(rows.add_column("margin", [1.0, 0.5]), tokenizer).rows["margin"][:] == [1.0, 0.5]
    with caplog.at_level(logging.WARNING):
        some = tokenize_preferences(rows.add_column("margin", [1.0, None]), tokenizer).rows
    assert "margin" not in some.column_names
    assert "1 of 2 pairs have no margin, so no margin is used" in caplog.text


def test_keys_that_the_template_does_not_show_are_counted_once(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tokenize_preferences(pairs(([says("user", "Q", mood="merry")], *SIDES["plain"])), tokenizer)
    assert "does not show these keys of messages, so they are not learned: mood (1)" in caplog.text


def test_pairs_are_shown(tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = tokenize_preferences(pairs(([says("user", "Why?\x1b[2J")], *SIDES["plain"])), tokenizer)
    show_pairs(rows, tokenizer)
    shown = capsys.readouterr().out
    assert "chosen: ⟦Because.<|im_end|>⟧" in shown
    assert "rejected: ⟦ It is so.\n<|im_end|>⟧" in shown
    assert "Why?␛[2J" in shown
    assert (
        f"scored tokens: {len(rows[0]['chosen_ids'])} of chosen, {len(rows[0]['rejected_ids'])} of rejected" in shown
    )
    judged = Dataset.from_list([{"prompt": [USER], "completion": [says("assistant", "No")], "label": False}])
    (row,), _ = tokenize_preferences(judged, tokenizer)
    assert preference_parts(row, tokenizer)[-2:] == [("\nbad: ", False), ("No<|im_end|>", "bad")]


def test_real_pairs(shared_data: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    file = shared_data / "preference" / "rasbt_preference_1100.json"
    dataset = load_preferences(parse_sources(str(file)))["train"].select(range(100))
    rows, notes = tokenize_preferences(dataset, tokenizer)
    assert (len(rows), notes) == (100, {})
    for messages, row in zip(dataset, rows, strict=True):
        for side in ("chosen", "rejected"):
            assert tokenizer.decode(row[f"{side}_ids"]) == f"{messages[side][0]['content']}<|im_end|>"

"""Several samples for each prompt of a file: reproducible, continued, and read by a person and by `pairs`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf import load_model, load_tokenizer
from chatgpt_hf.errors import OutputError
from chatgpt_hf.inference import samples_file as module
from chatgpt_hf.inference.prompt_file import generate_file
from chatgpt_hf.inference.samples_file import sample_file

ROWS: list[dict[str, Any]] = [
    {"prompt": "A cat number"},
    {"messages": [{"role": "user", "content": "你好"}], "answer": "7", "sample": "of the file's own"},
    {"prompt": "The dog runs The dog runs The dog runs"},
]
OPTIONS: dict[str, Any] = {"samples": 3, "seed": 1, "max_new_tokens": 6, "temperature": 5.0}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


def read(file: Path) -> dict[tuple[int, int], dict[str, Any]]:
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = {(record["line"], record["sample"]): record for record in records}
    assert len(found) == len(records)
    return found


def test_answers_have_their_tokens_and_the_fields_of_their_line(
    cli: Callable[..., Any], chat_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "samples.jsonl"
    words = ("--samples", 3, "--seed", 1, "--max_new_tokens", 6, "--temperature", 5)
    result = cli("generate", chat_folder, "--prompts", prompts, "--output", output, *words)
    assert result.code == 0, result
    assert result.out == f"9 answers in {output}\n"
    answers, tokenizer = read(output), load_tokenizer(chat_folder)
    assert sorted(answers) == [(line, sample) for line in (1, 2, 3) for sample in (1, 2, 3)]
    assert answers[2, 1]["messages"] == ROWS[1]["messages"]
    assert answers[2, 1]["answer"] == "7"
    ends = set(load_model(chat_folder).generation_config.eos_token_id)
    for answer in answers.values():
        ids = answer["completion_ids"]
        assert answer["completion"] == tokenizer.decode(ids, skip_special_tokens=True)
        assert answer["finish_reason"] == ("stop" if ids[-1] in ends else "length")
        assert answer["mean_log_prob"] < 0
    assert len({answer["completion"] for answer in answers.values()}) > 6
    # The library's own call, one row at a time, and with another seed.
    sample_file(chat_folder, prompts, tmp_path / "again.jsonl", batch_size=1, **OPTIONS)
    assert {key: answer["completion_ids"] for key, answer in read(tmp_path / "again.jsonl").items()} == {
        key: answer["completion_ids"] for key, answer in answers.items()
    }
    sample_file(chat_folder, prompts, tmp_path / "other.jsonl", **{**OPTIONS, "seed": 2})
    other = read(tmp_path / "other.jsonl")
    assert sum(other[key]["completion_ids"] == answers[key]["completion_ids"] for key in answers) < 3


def test_an_unfinished_file_is_continued_and_more_samples_are_added(
    chat_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "samples.jsonl"
    sample_file(chat_folder, prompts, output, **OPTIONS)
    whole = output.read_text(encoding="utf-8")
    lines = whole.splitlines(keepends=True)
    # One prompt is finished, of the second there is an answer and a part of another.
    output.write_text("".join(lines[:4]) + lines[4][:30], encoding="utf-8")
    asked: list[int] = []
    sampled = module.sample_completions

    def counted(model: Any, prompts: Any, **options: Any) -> Any:
        asked.append(len(prompts))
        return sampled(model, prompts, **options)

    monkeypatch.setattr(module, "sample_completions", counted)
    assert sample_file(chat_folder, prompts, output, **OPTIONS) == 9
    assert sum(asked) == 2
    assert output.read_text(encoding="utf-8") == whole
    assert sample_file(chat_folder, prompts, output, **{**OPTIONS, "samples": 4}) == 12
    assert output.read_text(encoding="utf-8").startswith(whole)
    assert len(read(output)) == 12


def test_outputs_of_another_kind_are_left_alone(chat_folder: Path, prompts: Path, tmp_path: Path) -> None:
    several, single = tmp_path / "samples.jsonl", tmp_path / "answers.jsonl"
    sample_file(chat_folder, prompts, several, **OPTIONS)
    generate_file(chat_folder, prompts, single, max_new_tokens=2, temperature=0)
    before = several.read_text(encoding="utf-8"), single.read_text(encoding="utf-8")
    with pytest.raises(OutputError, match="something else"):
        sample_file(chat_folder, prompts, single, **OPTIONS)
    with pytest.raises(OutputError, match="something else"):
        generate_file(chat_folder, prompts, several)
    with pytest.raises(OutputError, match="something else"):
        sample_file(chat_folder, prompts, several, **{**OPTIONS, "samples": 2})
    assert (several.read_text(encoding="utf-8"), single.read_text(encoding="utf-8")) == before


def test_settings_of_the_model_stay_out(chat_folder: Path, prompts: Path, tmp_path: Path) -> None:
    model = load_model(chat_folder)
    model.generation_config.update(do_sample=True, repetition_penalty=1.5, no_repeat_ngram_size=1, min_p=0.9, top_k=1)
    model.save_pretrained(tmp_path / "model")
    load_tokenizer(chat_folder).save_pretrained(tmp_path / "model")
    for name, folder in (("plain", chat_folder), ("set", tmp_path / "model")):
        sample_file(folder, prompts, tmp_path / f"{name}.jsonl", **OPTIONS)
    assert (tmp_path / "plain.jsonl").read_text() == (tmp_path / "set.jsonl").read_text()


def test_what_cannot_be_asked_for(
    refused: Callable[..., str], chat_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "samples.jsonl"
    command = ("generate", chat_folder, "--prompts", prompts, "--output", output, "--samples", 2)
    assert "leave --repetition_penalty out" in refused(*command, "--repetition_penalty", 1.2)
    assert "all 2 answers are the same" in refused(*command, "--temperature", 0)
    assert "top_p is 2" in refused(*command, "--top_p", 2)
    assert "--samples needs --prompts" in refused("generate", chat_folder, "--samples", 2)
    assert not output.exists()
    prompts.write_text('{"prompt": "The"}\n{"prompt": 3}\n')
    assert "1 of 2 lines were not answered: line 2: prompt is not a string" in refused(*command, "--max_new_tokens", 2)
    assert sorted(read(output)) == [(1, 1), (1, 2)]

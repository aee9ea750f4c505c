"""Prompts from a file: the same answers as one by one, errors that name broken lines, continuing unfinished files."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chatgpt_hf import ChatGPTForCausalLM, chat_templates, load_model, load_tokenizer
from chatgpt_hf.errors import ConfigError, DataError, OutputError, TemplateTimeout
from chatgpt_hf.inference import prompt_file as module
from chatgpt_hf.inference.generate import encode_prompt
from chatgpt_hf.inference.prompt_file import generate_file
from chatgpt_hf.tokenization_chatgpt import encode_conversation

ROWS: list[dict[str, Any]] = [
    {"prompt": "A cat number"},
    {"messages": [{"role": "user", "content": "你好"}], "source": "test"},
    {"prompt": "1, 2,"},
    {"messages": [{"role": "user", "content": "Who are you?"}]},
    *({"prompt": "The dog runs " * count} for count in range(1, 7)),
    {"prompt": ""},
]


def write(file: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def read(file: Path) -> dict[int, dict[str, Any]]:
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len({record["line"] for record in records}) == len(records)
    return {record["line"]: record for record in records}


def one_by_one(folder: Path, row: dict[str, Any], max_new_tokens: int) -> tuple[str, str]:
    """The greedy completion of a row by `generate`, and how it ended."""
    model, tokenizer = load_model(folder, ChatGPTForCausalLM).eval(), load_tokenizer(folder)
    ids = (
        encode_prompt(tokenizer, row["prompt"])
        if "prompt" in row
        else encode_conversation(tokenizer, row["messages"], add_generation_prompt=True)["input_ids"]
    )
    room = min(max_new_tokens, model.config.max_position_embeddings - len(ids))
    tokens = torch.tensor([ids])
    answer = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=room)
    ends = model.generation_config.eos_token_id
    said = answer[0, len(ids) :].tolist()
    stopped = said[-1] in ([ends] if isinstance(ends, int) else ends)
    return tokenizer.decode(said, skip_special_tokens=True), "stop" if stopped else "length"


@pytest.mark.parametrize("max_concurrent", [1, 4, 16])
def test_answers_are_those_of_one_by_one(max_concurrent: int, chat_folder: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", ROWS)
    count = generate_file(
        chat_folder,
        prompts,
        tmp_path / "answers.jsonl",
        max_new_tokens=12,
        temperature=0,
        max_concurrent=max_concurrent,
    )
    assert count == len(ROWS)
    answers = read(tmp_path / "answers.jsonl")
    assert sorted(answers) == list(range(1, len(ROWS) + 1))
    for number, row in enumerate(ROWS, start=1):
        completion, reason = one_by_one(chat_folder, row, 12)
        assert answers[number] == {"line": number, **row, "completion": completion, "finish_reason": reason}
    assert {answer["finish_reason"] for answer in answers.values()} == {"stop", "length"}


def test_a_run_that_was_cut_short_is_gone_on_with(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, output = write(tmp_path / "prompts.jsonl", ROWS), tmp_path / "answers.jsonl"
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0}
    generate_file(chat_folder, prompts, output, **options)
    whole = output.read_text(encoding="utf-8")
    lines = whole.splitlines(keepends=True)
    # The fifth record is incomplete.
    output.write_text("".join(lines[:4]) + lines[4][:20], encoding="utf-8")
    asked: list[int] = []
    generated = module.answers

    def counted(model: Any, rows: Any, *others: Any) -> Any:
        asked.extend(row.line for row in rows)
        return generated(model, rows, *others)

    monkeypatch.setattr(module, "answers", counted)
    generate_file(chat_folder, prompts, output, **options)
    assert len(asked) == len(ROWS) - 4
    assert output.read_text(encoding="utf-8").startswith("".join(lines[:4]))
    assert sorted(output.read_text(encoding="utf-8").splitlines()) == sorted(whole.splitlines())
    asked.clear()
    generate_file(chat_folder, prompts, output, **options)
    assert not asked


def test_broken_lines_are_named_and_the_others_answered(
    cli: Callable[..., Any], chat_folder: Path, tmp_path: Path
) -> None:
    broken = [
        ROWS[0],
        '{"prompt": "cut sho',
        {"text": "no prompt"},
        {"prompt": 7},
        {"messages": [{"role": "nobody", "content": "Hi"}]},
        {"prompt": "far too long " * 60},
        '{"prompt": "half a character: \\ud83d"}',
        "",
        ROWS[1],
    ]
    prompts, output = write(tmp_path / "prompts.jsonl", broken), tmp_path / "answers.jsonl"
    command = (
        "generate",
        chat_folder,
        "--prompts",
        prompts,
        "--output",
        output,
        "--max_new_tokens",
        4,
        "--temperature",
        0,
    )
    result = cli(*command)
    assert result.code == 2
    message = result.err.rpartition("error: ")[2]
    assert "6 of 8 lines were not answered" in message
    for words in (
        "line 2: not JSON",
        "line 3: not an object with either prompt or messages",
        "line 4: prompt is not a string",
        "line 5: ",
        "line 6: it takes",
        "line 7: it has half of a surrogate pair",
        "the model's context is 128",
    ):
        assert words in message
    assert sorted(read(output)) == [1, 9]
    # When the file is corrected, the same command answers the rest.
    write(prompts, [ROWS[0], *ROWS[2:8], "", ROWS[1]])
    result = cli(*command)
    assert result.code == 0, result
    assert result.out == f"8 answers in {output}\n"
    assert sorted(read(output)) == [1, 2, 3, 4, 5, 6, 7, 9]


def test_fields_of_the_outputs_names_are_replaced(chat_folder: Path, tmp_path: Path) -> None:
    """For example, lines of files for fine-tuning already have a completion."""
    rows = [{"prompt": "The", "completion": "wrong", "line": 7, "finish_reason": None, "id": 3}, {"prompt": "A cat"}]
    prompts, output = write(tmp_path / "prompts.jsonl", rows), tmp_path / "answers.jsonl"
    for _ in range(2):
        assert generate_file(chat_folder, prompts, output, max_new_tokens=3, temperature=0) == 2
    answers = read(output)
    assert sorted(answers) == [1, 2]
    completion, reason = one_by_one(chat_folder, rows[0], 3)
    assert answers[1] == {"prompt": "The", "line": 1, "completion": completion, "finish_reason": reason, "id": 3}


@pytest.mark.usefixtures("capsys")  # pytest keeps stderr in a file, which the limit would hold for too
def test_a_full_disk_is_one_line_and_the_answers_before_it_are_kept(chat_folder: Path, tmp_path: Path) -> None:
    prompts, output = write(tmp_path / "prompts.jsonl", ROWS[:2]), tmp_path / "answers.jsonl"
    assert generate_file(chat_folder, prompts, output, max_new_tokens=3, temperature=0) == 2
    whole = read(output)
    first = output.read_text().splitlines(keepends=True)[0]
    output.write_text(first)
    # Python ignores SIGXFSZ, so a write beyond the limit fails, as on a full disk.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(first.encode()) + 5, hard))
    try:
        with pytest.raises(OutputError, match=r"Could not write to .*answers.jsonl: File too large. Existing files"):
            generate_file(chat_folder, prompts, output, max_new_tokens=3, temperature=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert generate_file(chat_folder, prompts, output, max_new_tokens=3, temperature=0) == 2
    assert read(output) == whole


def test_an_output_of_something_else_is_left_alone(chat_folder: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", ROWS[:2])
    for content in ('{"line": 1, "prompt": "another", "completion": "x"}\n', "notes\n", '{"line": 9}\n', '["line"]\n'):
        output = tmp_path / "answers.jsonl"
        output.write_text(content)
        with pytest.raises(OutputError, match="answers to other prompts, or something else"):
            generate_file(chat_folder, prompts, output)
        assert output.read_text() == content


def test_what_cannot_be_asked_for(refused: Callable[..., str], chat_folder: Path, tmp_path: Path) -> None:
    prompts, output = write(tmp_path / "prompts.jsonl", ROWS[:1]), tmp_path / "answers.jsonl"
    assert "--prompts needs --output" in refused("generate", chat_folder, "--prompts", prompts)
    assert "--output is for the answers to --prompts" in refused("generate", chat_folder, "--output", output)
    both = ("generate", chat_folder, "--prompts", prompts, "--output", output)
    assert "are for one text, not for --prompts" in refused(*both, "--bad_words", "cat")
    assert "--seed is for one text or for --samples" in refused(*both, "--seed", 1)
    assert "cannot apply repetition_penalty" in refused(*both, "--repetition_penalty", 1.2)
    assert "--prompts: there is no file" in refused(
        "generate", chat_folder, "--prompts", tmp_path / "none", "--output", output
    )
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "is empty" in refused("generate", chat_folder, "--prompts", tmp_path / "empty.jsonl", "--output", output)
    assert not output.exists()


def test_models_that_need_more_of_the_past_are_refused(base_folder: Path, tmp_path: Path) -> None:
    model = load_model(base_folder, ChatGPTForCausalLM)
    config = model.config.to_dict() | {"conv_kernel_size": 3, "layer_types": None}
    ChatGPTForCausalLM(type(model.config)(**config)).save_pretrained(tmp_path / "model")
    load_tokenizer(base_folder).save_pretrained(tmp_path / "model")
    prompts = write(tmp_path / "prompts.jsonl", ROWS[:1])
    with pytest.raises(ConfigError, match="convolutions or n-grams"):
        generate_file(tmp_path / "model", prompts, tmp_path / "answers.jsonl")


def test_sampling_parameters_arrive(chat_folder: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "The"}] * 12)
    generate_file(chat_folder, prompts, tmp_path / "hot.jsonl", temperature=20.0, max_new_tokens=8)
    generate_file(chat_folder, prompts, tmp_path / "cold.jsonl", temperature=20.0, top_k=1, max_new_tokens=8)
    assert len({answer["completion"] for answer in read(tmp_path / "hot.jsonl").values()}) > 6
    assert len({answer["completion"] for answer in read(tmp_path / "cold.jsonl").values()}) == 1
    with pytest.raises(DataError, match="cannot be read"):
        generate_file(chat_folder, tmp_path / "gone", tmp_path / "x.jsonl")


def test_lines_that_fail_while_they_are_answered_are_counted_once(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: Any, rows: Any, *others: Any) -> Any:
        yield from ((row, [], "no room") for row in rows)

    monkeypatch.setattr(module, "answers", fail)
    prompts = write(tmp_path / "prompts.jsonl", [ROWS[0], "no JSON", ROWS[1]])
    with pytest.raises(DataError, match=r"3 of 3 lines were not answered: line 2: .*line 1: no room; line 3: no room"):
        generate_file(chat_folder, prompts, tmp_path / "answers.jsonl")


def test_a_setting_of_the_model_that_cannot_be_applied(chat_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = load_model(chat_folder)
    model.generation_config.repetition_penalty = 1.1
    model.save_pretrained(folder)
    load_tokenizer(chat_folder).save_pretrained(folder)
    prompts, output = write(tmp_path / "prompts.jsonl", ROWS[:1]), tmp_path / "answers.jsonl"
    words = r"repetition_penalty \(1.1, from the model's generation_config.json\): .*give --repetition_penalty 1,"
    with pytest.raises(ConfigError, match=words):
        generate_file(folder, prompts, output)
    with pytest.raises(ConfigError, match=r"cannot apply repetition_penalty: without"):
        generate_file(folder, prompts, output, repetition_penalty=1.3)
    assert generate_file(folder, prompts, output, repetition_penalty=1, max_new_tokens=2) == 1


def test_templates_that_do_not_end_or_are_not_there(
    tmp_path: Path, chat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [ROWS[1]] * 2)
    tokenizer = load_tokenizer(chat_folder)
    tokenizer.chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(chat_templates, "RENDER_SECONDS", 0.3)
    # Not tried on the second line, which would take as long.
    with pytest.raises(TemplateTimeout, match=r"prompts.jsonl: line 1: .*loop for ever"):
        module.read_prompts(prompts, tokenizer, 128, 4)
    tokenizer.chat_template = None
    _, faults = module.read_prompts(prompts, tokenizer, 128, 4)
    assert faults[0] == "line 1: the tokenizer has no chat template, which conversations need: this is a base model"

"""pass@k on HumanEval's own problems, and with a model that has memorized two functions."""

import copy
import gzip
import itertools
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, train_tokenizer
from chatgpt_hf.errors import ConfigError, DataError, TokenizerError
from chatgpt_hf.evaluation import code
from chatgpt_hf.evaluation.code import (
    CHAT_QUESTION,
    Problem,
    evaluate_code,
    pass_at_k,
    read_problems,
    score_completions,
)
from chatgpt_hf.evaluation.generation import Completion
from chatgpt_hf.evaluation.record import Evaluation
from chatgpt_hf.evaluation.sandbox import Outcome, run_program
from chatgpt_hf.tokenization_chatgpt import encode_documents

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux alone")

# Time limit in seconds for programs that end by themselves: far above what they need on a slow and busy machine.
PATIENCE = 300
ADD = Problem(
    "Test/0",
    'def add(a, b):\n    """The sum of a and b."""\n',
    "add",
    "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
    "    return a + b\n",
)
DOUBLE = Problem(
    "Test/1",
    'def double(text):\n    """The text, twice."""\n',
    "double",
    "def check(candidate):\n    assert candidate('ab') == 'abab'\n",
    "    return text * 2\n",
)


def solutions(problems: list[Problem]) -> list[list[str]]:
    return [[problem.canonical_solution or ""] for problem in problems]


@pytest.fixture(scope="module")
def humaneval(shared_data: Path) -> list[Problem]:
    return read_problems(shared_data / "eval" / "humaneval_0_99.jsonl.gz")


def test_canonical_solutions_pass_and_nothing_else(humaneval: list[Problem]) -> None:
    chosen = humaneval[::10]
    found = score_completions(chosen, solutions(chosen), timeout=PATIENCE, progress=False)
    assert found.measures["pass@1"].value == 1, found.examples
    empty = score_completions(chosen, [["    pass\n"]] * 10, timeout=PATIENCE, progress=False)
    assert empty.measures["pass@1"].value == 0
    wrong = solutions([*chosen[1:], chosen[0]])
    assert score_completions(chosen, wrong, timeout=PATIENCE, progress=False).measures["pass@1"].value == 0


@pytest.mark.slow
def test_all_canonical_solutions_pass_and_nothing_else(humaneval: list[Problem]) -> None:
    assert len(humaneval) == 100
    found = score_completions(humaneval, solutions(humaneval), timeout=PATIENCE, progress=False)
    assert [example for example in found.examples if not example["samples"][0]["passed"]] == []
    found = score_completions(humaneval, [["    pass\n"]] * 100, timeout=PATIENCE, progress=False)
    assert [example for example in found.examples if example["samples"][0]["passed"]] == []


def test_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def patient(source: str, *, timeout: float, **limits: Any) -> Outcome:
        """Times out only programs that never end, even on a busy machine."""
        given.append(timeout)
        return run_program(source, timeout=timeout if "while True" in source else PATIENCE, **limits)

    monkeypatch.setattr(sys.modules[score_completions.__module__], "run_program", patient)
    written = [
        ["    return a + b\n", "    return a - b\n", "    return b + a", "    return"],
        ["    return text", "    return text +\n", "    raise SystemExit\n", "    while True: pass\n"],
    ]
    found = score_completions(
        [ADD, DOUBLE], written, ks=(1, 2, 4), data="two", timeout=1, num_workers=2, progress=False
    )
    assert given == [1] * 8
    assert found.task == "code"
    assert found.data == "two"
    assert {name: measure.value for name, measure in found.measures.items()} == pytest.approx(
        {"pass@1": 0.25, "pass@2": (1 - 1 / 6) / 2, "pass@4": 0.5}
    )
    assert all(measure.aggregate == "mean" and measure.higher_is_better for measure in found.measures.values())
    assert found.measures["pass@1"].statistics.tolist() == [[0.5, 1], [0, 1]]
    assert [example["task_id"] for example in found.examples] == ["Test/0", "Test/1"]
    samples = [sample for example in found.examples for sample in example["samples"]]
    assert [sample["completion"] for sample in samples] == [*written[0], *written[1]]
    reasons = [sample["reason"] for sample in samples]
    assert reasons[:4] == ["passed", "AssertionError:", "passed", "AssertionError:"]
    assert reasons[4] == "AssertionError:"
    assert reasons[5].startswith("SyntaxError: invalid syntax")
    assert reasons[6].startswith("SystemExit")
    assert reasons[7] == "timed out"
    assert [sample["passed"] for sample in samples] == [reason == "passed" for reason in reasons]
    found.save(tmp_path / "evaluation")
    assert Evaluation.load(tmp_path / "evaluation").examples == found.examples


def test_helpers_are_those_of_the_prompt() -> None:
    """As in HumanEval's problems 32, 38 and 50; a program that replaces the helper gains nothing."""
    problem = Problem(
        "Test/2",
        'def turn(text):\n    return text[1:] + text[:1]\n\n\ndef turn_back(text):\n    """Undoes turn."""\n',
        "turn_back",
        "def check(candidate):\n    assert candidate(turn('abc')) == 'abc'\n    assert turn_back is candidate\n",
    )
    written = ["    return text[-1:] + text[:-1]\n", "    return text\n\n\ndef turn(text):\n    return text\n"]
    found = score_completions([problem], [written], timeout=PATIENCE, progress=False)
    assert [sample["reason"] for sample in found.examples[0]["samples"]] == ["passed", "AssertionError:"]


def test_programs_that_could_write_no_file_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without_files(*_arguments: Any, **_options: Any) -> Outcome:
        return Outcome(True, "passed", "", "unshare: Operation not permitted")

    monkeypatch.setattr(code, "run_program", without_files)
    found = score_completions([ADD], solutions([ADD]), timeout=PATIENCE, progress=False)
    assert found.settings["no_files"] == "unshare: Operation not permitted"
    assert "could write no files" in caplog.text


@pytest.mark.parametrize(("samples", "passed"), [(5, 0), (5, 2), (5, 4), (5, 5), (7, 3)])
def test_pass_at_k_is_the_share_of_draws_with_one_that_passes(samples: int, passed: int) -> None:
    for k in range(1, samples + 1):
        draws = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
        assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.fixture(scope="module")
def knowing() -> tuple[Any, Any]:
    """A model that has memorized `ADD`, continues after it, and gets the body of `DOUBLE` wrong."""
    texts = [
        f"{ADD.prompt}{ADD.canonical_solution}\nprint(add(1, 2))\n" + "rest = 1\n" * 5,
        f"{DOUBLE.prompt}    return text\n\ndef other():\n    pass\n" + "rest = 2\n" * 5,
    ]
    tokenizer = train_tokenizer(texts * 3, 280, show_progress=False)
    torch.manual_seed(0)
    config = ChatGPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = ChatGPTForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    documents = [torch.tensor([ids]) for ids in encode_documents(tokenizer, texts)]
    for _ in range(60):
        loss = sum((model(input_ids=ids, labels=ids).loss for ids in documents), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2
    return model.eval(), tokenizer


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_model_s_programs(batch_size: int, knowing: tuple[Any, Any]) -> None:
    found = evaluate_code(
        *knowing,
        [ADD, DOUBLE],
        max_new_tokens=80,
        batch_size=batch_size,
        data="two",
        timeout=PATIENCE,
        progress=False,
    )
    right, wrong = (example["samples"][0] for example in found.examples)
    assert right == {"completion": ADD.canonical_solution, "passed": True, "reason": "passed"}
    assert wrong == {"completion": "    return text\n", "passed": False, "reason": "AssertionError:"}
    assert found.measures["pass@1"].value == 0.5
    expected = {"samples": 1, "temperature": 0.0, "max_new_tokens": 80, "seed": 0, "batch_size": batch_size}
    assert found.settings.items() >= expected.items()


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (ADD.prompt, "def add(a, b):\n    return a + b\n\nprint(add(1, 2))"),
        ("def add(a, b):\n", "def add(a, b):\n    return a + b"),
        # Code that continues the function.
        (ADD.prompt, ADD.canonical_solution),
    ],
    ids=["whole", "no-docstring", "body"],
)
def test_a_chat_model_s_programs(
    prompt: str, answer: str, knowing: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question comes through the chat template, and the answer is a block of code."""
    model, tokenizer = knowing
    called: dict[str, Any] = {}

    def write(_model: Any, _tokenizer: Any, prompts: Any, **options: Any) -> list[Completion]:
        called.update(options, prompts=prompts)
        return [Completion([], answer, True)] * len(prompts)

    monkeypatch.setattr(code, "generate_completions", write)
    problem = replace(ADD, prompt=prompt)
    found = evaluate_code(model, tokenizer, [problem], chat=True, timeout=PATIENCE, progress=False)
    question = [{"role": "user", "content": CHAT_QUESTION.format(prompt)}]
    rendered = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(called["prompts"][0]) == f"{rendered}```python\n"
    assert called["stop"] == ("\n```",)
    assert found.measures["pass@1"].value == 1, found.examples
    assert found.settings["chat"] is True


def test_a_chat_needs_a_template(knowing: tuple[Any, Any]) -> None:
    model, tokenizer = knowing
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(TokenizerError, match="no chat template"):
        evaluate_code(model, tokenizer, [ADD], chat=True)


def test_samples(knowing: tuple[Any, Any]) -> None:
    def sampled(seed: int) -> Evaluation:
        return evaluate_code(
            *knowing,
            [ADD, DOUBLE],
            samples=3,
            ks=(1, 3),
            temperature=2.0,
            max_new_tokens=20,
            seed=seed,
            timeout=PATIENCE,
            progress=False,
        )

    state = torch.random.get_rng_state()
    first = sampled(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(first.measures) == ["pass@1", "pass@3"]
    written = [[sample["completion"] for sample in example["samples"]] for example in first.examples]
    assert all(len(set(texts)) > 1 for texts in written)
    random.seed(5)
    torch.rand(3)
    assert sampled(1).examples == first.examples
    assert sampled(2).examples != first.examples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 2}, "temperature is 0.0 and samples 2"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"samples": 2, "temperature": 0.5, "ks": (1, 3)}, r"ks is \[1, 3\], but a problem has 2 completions"),
        ({"ks": ()}, r"ks is \[\]"),
        ({"ks": (0,)}, r"ks is \[0\]"),
        ({"num_workers": 0}, "num_workers is 0"),
        ({"timeout": -1}, "timeout=-1"),
    ],
)
def test_options_without_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_code(None, None, [ADD], **options)  # type: ignore[arg-type]


def test_data_without_sense() -> None:
    with pytest.raises(DataError, match="no problems to evaluate on"):
        evaluate_code(None, None, [])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="There are 1 problems, but completions for 2"):
        score_completions([ADD], [[""], [""]])
    with pytest.raises(DataError, match="There are 0 problems"):
        score_completions([], [])
    with pytest.raises(ConfigError, match="but a problem has 0 completions"):
        score_completions([ADD], [[]])


ROW = {"task_id": "a", "prompt": "def f():\n", "entry_point": "f", "test": "def check(c): pass"}


def test_files(tmp_path: Path) -> None:
    rows = [{**ROW, "canonical_solution": "    pass\n", "more": 1}, {**ROW, "task_id": "b"}]
    text = "\n" + "".join(json.dumps(row) + "\n\n" for row in rows)
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_text("\ufeff" + text.lstrip(), encoding="utf-8")
    packed.write_bytes(gzip.compress(text.encode()))
    expected = [Problem(**ROW, canonical_solution="    pass\n"), Problem(**{**ROW, "task_id": "b"})]
    assert read_problems(plain) == read_problems(packed) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no problem"),
        (b"\n \n", "has no problem"),
        (json.dumps(ROW).encode() + b'\n{"task_id": ', "line 2 is broken JSON"),
        (b"[1]\n", "line 1 is not a JSON object"),
        (b"\n" + json.dumps({**ROW, "prompt": None}).encode(), "line 2 needs text in `prompt`, but has None"),
        (json.dumps({**ROW, "test": [1]}).encode(), r"line 1 needs text in `test`, but has \[1\]"),
        (json.dumps({**ROW, "canonical_solution": 1}).encode(), "line 1 needs text in `canonical_solution`"),
        (json.dumps({**ROW, "entry_point": "f()"}).encode(), r"line 1 has the `entry_point` 'f\(\)'"),
        (json.dumps({**ROW, "entry_point": "g"}).encode(), "line 1 has the `entry_point` g, which its `prompt` does"),
        (json.dumps({**ROW, "test": "def check(:"}).encode(), "line 1 has a `test` that is no Python: "),
        (json.dumps({**ROW, "test": "assert f()"}).encode(), "line 1 has a `test` without the function check"),
        (b'{"task_id": "a", "prompt": "def f():"}', "line 1 has no `entry_point`: HumanEval's fields are task_id, "),
        (b'{"task_id": 1, "text": "Add.", "test_list": []}', "line 1 is a problem of MBPP's: write it in HumanEval's"),
        (b"\n".join([json.dumps(ROW).encode()] * 2), "line 2 repeats the task_id a of an earlier line"),
        ('{"task_id": "ä"'.encode("latin-1"), "is not UTF-8"),
    ],
)
def test_broken_files(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_problems(file)
    assert str(file) in str(error.value)


def test_files_that_are_not_there_or_cut_short(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        read_problems(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="There is no file"):
        read_problems(tmp_path)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(random.Random(0).randbytes(1000).hex().encode())[:200])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz cannot be read"):
        read_problems(cut)

"""Evaluates programs that a model writes: pass@k on problems in HumanEval's format (Chen et al. 2021)."""

import ast
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..chat_templates import encode_chat_prompt
from ..data.files import has_content, open_bytes
from ..errors import ConfigError, DataError
from ..parsing import parse_json
from ..tokenization_chatgpt import encode_prompts
from .figures import Measure
from .generation import generate_completions
from .record import Evaluation
from .sandbox import Outcome, run_program

logger = logging.getLogger(__name__)

# Strings that end the body of a function (Chen et al. 2021, section 2.1).
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
# The message that asks a chat model for a function (lm-evaluation-harness' humaneval_instruct), and how its answer begins.
CHAT_QUESTION = (
    "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{}\n```\n"
)
CHAT_ANSWER = "```python\n"
_CHAT_STOP = ("\n```",)
# For nucleus sampling, from the same paper (section 3.2).
_TOP_P = 0.95


@dataclass(frozen=True)
class Problem:
    """One function to write.

    Attributes:
        prompt: A module that ends where the function's body begins.
        entry_point: The function's name.
        test: The source of a function `check(candidate)` that raises an error if the function is wrong.
        canonical_solution: A right continuation of the prompt.
    """

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str | None = None

    def program(self, completion: str) -> str:
        """Returns the program, without its test: the prompt and its completion."""
        return f"{self.prompt}{completion}\n"

    def given(self) -> str:
        """Returns the prompt as a module that can be run, for the test: it may define helper functions."""
        return self.prompt if self.ends_in_a_body() else f"{self.prompt}    pass\n"

    def ends_in_a_body(self) -> bool:
        """Returns whether the prompt's function is complete; a docstring is a body."""
        try:
            ast.parse(self.prompt)
        except (SyntaxError, ValueError):
            return False
        return True


_FIELDS = "task_id, prompt, entry_point and test"
_EMPTY = Problem("", "def nothing():\n", "nothing", "def check(candidate):\n    candidate()\n")


def read_problems(path: Path) -> list[Problem]:
    """Reads problems from a file in HumanEval's format: one JSON object per line, optionally compressed (.gz, .zst).

    Raises:
        DataError: If the file cannot be read or has no problem, or a line is not a problem.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    has_content(path)
    problems: dict[str, Problem] = {}
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number} is broken JSON: {error}") from error
            problem = _problem(row, f"{path}, line {number}")
            if problem.task_id in problems:
                raise DataError(f"{path}, line {number} repeats the task_id {problem.task_id} of an earlier line.")
            problems[problem.task_id] = problem
    if not problems:
        raise DataError(f"{path} has no problem.")
    return list(problems.values())


def _problem(row: Any, where: str) -> Problem:
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object: write one problem per line.")
    if "test_list" in row:
        raise DataError(f"{where} is a problem of MBPP's: write it in HumanEval's fields, {_FIELDS}.")
    values = {}
    for field in fields(Problem):
        value = row.get(field.name)
        if value is None and field.name == "canonical_solution":
            continue
        if field.name not in row:
            raise DataError(f"{where} has no `{field.name}`: HumanEval's fields are {_FIELDS}.")
        if not isinstance(value, str):
            raise DataError(f"{where} needs text in `{field.name}`, but has {value!r:.80}.")
        values[field.name] = value
    problem = Problem(**values)
    if not problem.entry_point.isidentifier():
        raise DataError(
            f"{where} has the `entry_point` {problem.entry_point!r:.80}, which is not the name of a function."
        )
    # No answer could pass, and the score would be 0 without a word.
    if not re.search(rf"\b{problem.entry_point}\b", problem.prompt):
        raise DataError(f"{where} has the `entry_point` {problem.entry_point:.80}, which its `prompt` does not name.")
    try:
        ast.parse(problem.test)
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{where} has a `test` that is no Python: {error}") from error
    if not re.search(r"\bcheck\b", problem.test):
        raise DataError(f"{where} has a `test` without the function check(candidate).")
    return problem


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Returns the unbiased estimate of the chance that one of k samples passes (Chen et al. 2021, equation 1)."""
    if samples - passed < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(samples - passed + 1, samples + 1)))


def judge(problem: Problem, completion: str, **limits: Any) -> Outcome:
    """Runs the test of a problem on a completion of its prompt; takes the options of `run_program`, and raises its errors."""
    return run_program(
        problem.program(completion),
        entry_point=problem.entry_point,
        test=problem.test,
        given=problem.given(),
        **limits,
    )


def score_completions(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[str]],
    *,
    ks: Sequence[int] = (1,),
    data: str = "",
    timeout: float = 10,
    memory_mb: int = 512,
    num_workers: int = 1,
    unsafe_unconfined: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Runs the completions of each problem in `sandbox.run_program`.

    Args:
        completions: For each problem any number of continuations of its prompt, already cut at the end of the function.
        ks: The values of k for pass@k.
        data: The source of the problems.
        timeout, memory_mb, unsafe_unconfined: See `run_program`.
        num_workers: How many programs run at a time; with more workers than cores, correct programs may time out.

    Returns:
        Measures `pass@1` ..., over the problems; each example has all completions of its problem and their outcomes. If
        programs could write no files, the settings say why (`no_files`), and so does the log.

    Raises:
        DataError: If there is no problem, or the number of lists of completions is not the number of problems.
        ConfigError: If a k is above the number of completions, or this system cannot confine programs.
    """
    if not problems or len(problems) != len(completions):
        raise DataError(
            f"There are {len(problems)} problems, but completions for {len(completions)}: give one list for each problem."
        )
    _check(ks, min(map(len, completions)), num_workers)
    programs = [
        (problem, completion) for problem, written in zip(problems, completions, strict=True) for completion in written
    ]

    def run(program: tuple[Problem, str]) -> Outcome:
        return judge(*program, timeout=timeout, memory_mb=memory_mb, unsafe_unconfined=unsafe_unconfined)

    with ThreadPoolExecutor(num_workers) as pool:
        try:
            found = list(tqdm(pool.map(run, programs), total=len(programs), desc="Running", disable=not progress))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    settings: dict[str, Any] = {"timeout": timeout, "memory_mb": memory_mb}
    if reasons := sorted({outcome.no_files for outcome in found} - {""}):
        settings["no_files"] = reasons[0]
        logger.warning("Programs could write no files, so those that need one failed: %s.", reasons[0])
    outcomes = iter(found)
    examples, counts = [], []
    for problem, written in zip(problems, completions, strict=True):
        tried = [
            {"completion": completion, "passed": outcome.passed, "reason": outcome.reason}
            for completion, outcome in zip(written, islice(outcomes, len(written)), strict=True)
        ]
        counts.append((len(tried), sum(each["passed"] for each in tried)))
        examples.append({"task_id": problem.task_id, "prompt": problem.prompt, "samples": tried})
    measures = {
        f"pass@{k}": Measure("mean", np.array([[pass_at_k(samples, passed, k), 1] for samples, passed in counts]))
        for k in ks
    }
    return Evaluation("code", data, measures, examples, settings)


def _check(ks: Sequence[int], samples: int, num_workers: int) -> None:
    if not ks or not all(1 <= k <= samples for k in ks):
        raise ConfigError(f"ks is {list(ks)}, but a problem has {samples} completions: give 1 to {samples}.")
    if num_workers < 1:
        raise ConfigError(f"num_workers is {num_workers}: at least one program must run at a time.")


def evaluate_code(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    samples: int = 1,
    ks: Sequence[int] = (1,),
    temperature: float = 0.0,
    max_new_tokens: int = 512,
    chat: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    data: str = "",
    timeout: float = 10,
    memory_mb: int = 512,
    num_workers: int = 1,
    unsafe_unconfined: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Lets a model complete each problem, and scores the completions.

    Args:
        samples: Completions of each problem.
        temperature: 0 always takes the likeliest token; above 0, tokens are sampled from the likeliest 95 %.
        chat: Ask for each function in a message through the chat template. The answer is the first block of code; a
            function in it replaces the prompt's, and code without the function continues the prompt. Otherwise the model
            continues the bare prompt.
        seed: Seed of sampling; the caller's random state does not change.
        ks: See `score_completions`; also for `data`, `timeout`, `memory_mb`, `num_workers` and `unsafe_unconfined`.

    Raises:
        DataError: If there is no problem.
        ConfigError: If `samples` is above 1 at temperature 0, a k is above `samples`, or this system cannot confine
            programs.
        TokenizerError: If the tokenizer has no chat template, with `chat`.
    """
    if not problems:
        raise DataError("There are no problems to evaluate on.")
    _check(ks, samples, num_workers)
    if temperature < 0 or (samples > 1 and not temperature):
        raise ConfigError(
            f"temperature is {temperature} and samples {samples}: samples differ only at a temperature above 0; 0.2 for "
            "pass@1 and 0.8 for pass@100 are usual."
        )
    # Fails before hours of generation if this system cannot confine programs.
    judge(_EMPTY, "    pass", timeout=timeout, memory_mb=memory_mb, unsafe_unconfined=unsafe_unconfined)
    if chat:
        prompts = [_chat_prompt(tokenizer, problem) for problem in problems]
    else:
        prompts = encode_prompts(tokenizer, [problem.prompt for problem in problems])
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": _TOP_P, "top_k": 0}
    device = model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        written = generate_completions(
            model,
            tokenizer,
            [prompt for prompt in prompts for _ in range(samples)],
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
            desc="Writing",
            stop=_CHAT_STOP if chat else STOP,
            **sampling,
        )
    texts = [completion.text for completion in written]
    if chat:
        asked = [problem for problem in problems for _ in range(samples)]
        texts = [_after_prompt(problem, text) for problem, text in zip(asked, texts, strict=True)]
    completions = [texts[begin : begin + samples] for begin in range(0, len(texts), samples)]
    evaluation = score_completions(
        problems,
        completions,
        ks=ks,
        data=data,
        timeout=timeout,
        memory_mb=memory_mb,
        num_workers=num_workers,
        unsafe_unconfined=unsafe_unconfined,
        progress=progress,
    )
    evaluation.settings |= {
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "chat": chat,
        "seed": seed,
        "batch_size": batch_size,
    }
    return evaluation


def _chat_prompt(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> list[int]:
    """Encodes the question for a function and the beginning of its answer."""
    question = {"role": "user", "content": CHAT_QUESTION.format(problem.prompt)}
    asked = encode_chat_prompt(tokenizer, [question])
    begun = tokenizer(CHAT_ANSWER, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*asked, *begun]


def _after_prompt(problem: Problem, code: str) -> str:
    """Returns code from a chat model's answer as a completion of the problem's prompt."""
    if not re.search(rf"^def {problem.entry_point}\b", code, flags=re.MULTILINE):
        return code
    # The answer's function replaces the prompt's.
    return f"\n\n{code}" if problem.ends_in_a_body() else f"    pass\n\n\n{code}"

"""Benchmarks through lm-evaluation-harness: figures equal its own, and its command line's, to the last digit."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import collect_env
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

pytest.importorskip("lm_eval")
import lm_eval.tasks

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.checkpoints import load_model
from chatgpt_hf.errors import ConfigError, DataError, MissingDependency
from chatgpt_hf.evaluation.figures import paired_difference
from chatgpt_hf.evaluation.harness import BENCHMARKS, HARNESS_RESULTS_NAME, evaluate_benchmarks, write_tasks
from chatgpt_hf.evaluation.record import Evaluation

PLACES = ["the garden", "a house with many windows", "the river", "the sky above"]
ANIMALS = ["A cat", "The dog", "One small bird", "An old horse"]


@pytest.fixture(scope="module", autouse=True)
def _describe_the_machine_once() -> Iterator[None]:
    """At the end of every run the harness queries pip, gcc and others, which takes longer than the runs here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_env, "get_pretty_env_info", functools.cache(collect_env.get_pretty_env_info))
        # One process is enough for the bootstrap of a perplexity, too.
        patch.setenv("DISABLE_MULTIPROC", "1")
        yield


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base_folder)


def make_model(tokenizer: PreTrainedTokenizerBase, kind: str = "rope", positions: int = 256, seed: int = 0) -> Any:
    """Returns an untrained model with weights large enough to make clear choices."""
    torch.manual_seed(seed)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=positions, n_embd=32, n_layer=1, n_head=2, initializer_range=0.3
        )
        return GPT2LMHeadModel(config)
    config = ChatGPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.3,
        **{"short memories": {"conv_kernel_size": 4, "ngram_vocab_sizes": [64]}}.get(
            kind, {"position_embedding_type": kind}
        ),
    )
    return ChatGPTForCausalLM(config)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rows of two benchmarks each, and two subjects of MMLU with different sizes."""
    folder = tmp_path_factory.mktemp("benchmarks")
    rows: dict[str, list[dict[str, Any]]] = {
        "arc_easy": [
            {"query": f"Question: Where does number {n} sit?", "choices": PLACES, "gold": n % 4} for n in range(9)
        ],
        "lambada": [
            {"text": f"{ANIMALS[n % 4]} number {n} runs around the {'river' * (1 + n % 2)}"} for n in range(9)
        ],
        "winogrande": [
            {
                "context_options": [f"{number} dogs sit so {name}" for name in ("one", "the other")],
                "continuation": "runs around the river.",
                "gold": number % 2,
            }
            for number in range(9)
        ],
    }
    for name, of_name in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_name), encoding="utf-8")
    (folder / "mmlu").mkdir()
    for subject, size in (("bird_science", 3), ("horses", 8)):
        for split, rows_there in (("dev", 2), ("test", size)):
            lines = ["question,choice0,choice1,choice2,choice3,answer"]
            lines += [f"{split} {n} of {subject}?,red,blue,{n},None,{n % 4}" for n in range(rows_there)]
            (folder / "mmlu" / f"{subject}_{split}.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.works_with("lm-eval", "`chatgpt-hf evaluate`: benchmarks from local files", ("lm_eval",))
def test_figures_are_the_harness_own(tokenizer: PreTrainedTokenizerBase, data: Path, tmp_path: Path) -> None:
    model = make_model(tokenizer).train()
    names = ["arc_easy", "lambada_openai", "winogrande", "mmlu"]
    found = evaluate_benchmarks(model, tokenizer, names, data_folder=data)
    assert model.training
    assert list(found.evaluations) == names
    for name, metrics in {
        "arc_easy": ["acc", "acc_norm"],
        "lambada_openai": ["perplexity", "acc"],
        "winogrande": ["acc"],
        "mmlu": ["acc"],
    }.items():
        measures = found.evaluations[name].measures
        assert list(measures) == metrics
        for metric, measure in measures.items():
            # Rounding: the mean of means differs in the last digit from the mean over all.
            digits = {"rel": 1e-15} if name == "mmlu" else {"rel": 0, "abs": 0}
            assert measure.value == pytest.approx(found.harness["results"][name][f"{metric},none"], **digits)
            assert measure.higher_is_better == (metric != "perplexity")
    assert [len(found.evaluations[name].examples) for name in names] == [9, 9, 9, 11]

    found.save(tmp_path)
    assert json.loads((tmp_path / HARNESS_RESULTS_NAME).read_text())["results"] == found.harness["results"]
    for name, evaluation in found.evaluations.items():
        loaded = Evaluation.load(tmp_path / name)
        assert (loaded.task, loaded.data, loaded.settings) == (name, str(data), evaluation.settings)
        assert loaded.examples == evaluation.examples
        assert loaded.figures() == evaluation.figures()

    # The record keeps enough of every item to compute the figures again.
    for name in ("arc_easy", "winogrande"):
        evaluation = found.evaluations[name]
        for example, (right, _) in zip(evaluation.examples, evaluation.measures["acc"].statistics, strict=True):
            assert (example["output"] == example["reference"]) == right
    example = found.evaluations["arc_easy"].examples[5]
    assert example["input"] == "Question: Where does number 5 sit?\nAnswer:"
    assert (example["choices"], example["reference"]) == (PLACES, PLACES[1])
    assert {example["task"] for example in found.evaluations["mmlu"].examples} == {"mmlu_bird_science", "mmlu_horses"}


def test_two_models_compare_in_pairs(tokenizer: PreTrainedTokenizerBase, data: Path) -> None:
    a, b = (
        evaluate_benchmarks(make_model(tokenizer, seed=seed), tokenizer, ["lambada_openai"], data_folder=data)
        for seed in (0, 1)
    )
    measures = [found.evaluations["lambada_openai"].measures["perplexity"] for found in (a, b)]
    difference = paired_difference(*measures)
    assert difference.value == measures[1].value - measures[0].value != 0


@pytest.mark.parametrize("kind", ["rope", "learned", "short memories", "gpt2"])
def test_the_batch_size_changes_no_figure(kind: str, tokenizer: PreTrainedTokenizerBase, data: Path) -> None:
    model = make_model(tokenizer, kind, positions=64)
    names = ["arc_easy", "lambada_openai", "winogrande", "mmlu_horses"]
    alone, together = (
        evaluate_benchmarks(model, tokenizer, names, data_folder=data, batch_size=size).evaluations for size in (1, 16)
    )
    for name in names:
        for metric, measure in alone[name].measures.items():
            assert measure.value == pytest.approx(together[name].measures[metric].value, rel=1e-5), (name, metric)


@pytest.mark.parametrize("bos", [None, True])
@pytest.mark.parametrize("kind", ["rope", "learned", "short memories", "gpt2"])
def test_what_does_not_fit_is_cut_on_the_left(
    kind: str, bos: bool | None, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "The dog looks at the river and the house. " * 9
    texts = ["A cat sits in the garden", long + "An old horse sits in the garden"]
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = make_model(tokenizer, kind, positions=48)
    found = evaluate_benchmarks(
        model, tokenizer, ["lambada_openai"], data_folder=tmp_path, add_bos_token=bos
    ).evaluations["lambada_openai"]
    assert "1 of 2 prompts were longer than the model's context of 48" in caplog.text
    for text, example in zip(texts, found.examples, strict=True):
        context, _, word = text.rpartition(" ")
        ids, answer = tokenizer.encode(context), tokenizer.encode(" " + word)
        assert (example["input"], example["reference"]) == (context, " " + word)
        ids = ([tokenizer.bos_token_id] if bos else []) + ids
        # The last token is predicted from a full context.
        window = (ids + answer)[-49:-1]
        with torch.no_grad():
            logits = model.eval()(torch.tensor([window])).logits[0].log_softmax(-1)
        expected = sum(logits[len(window) - len(answer) + i, token].item() for i, token in enumerate(answer))
        assert example["log_likelihoods"] == [pytest.approx(expected, rel=1e-4)]


def test_nothing_is_changed_of_what_was_given(data: Path) -> None:
    """The harness adds a padding token to a tokenizer without one; the caller's must stay as it is."""
    from chatgpt_hf import train_tokenizer

    tokenizer = train_tokenizer(PLACES * 3, 270, show_progress=False)
    tokenizer.pad_token = None
    model = make_model(tokenizer)
    evaluate_benchmarks(model, tokenizer, ["winogrande"], data_folder=data, add_bos_token=True)
    assert tokenizer.pad_token is None
    assert tokenizer.encode("the river") == tokenizer.encode("the river", add_special_tokens=False)


def test_shots_of_mmlu_come_from_its_dev_file(tokenizer: PreTrainedTokenizerBase, data: Path) -> None:
    found = evaluate_benchmarks(
        make_model(tokenizer), tokenizer, ["mmlu_bird_science"], data_folder=data, num_fewshot=2, limit=1
    ).evaluations["mmlu_bird_science"]
    (example,) = found.examples
    assert example["input"] == (
        "The following are multiple choice questions (with answers) about bird science.\n\n"
        "dev 0 of bird_science?\nA. red\nB. blue\nC. 0\nD. None\nAnswer: A\n\n"
        "dev 1 of bird_science?\nA. red\nB. blue\nC. 1\nD. None\nAnswer: B\n\n"
        "test 0 of bird_science?\nA. red\nB. blue\nC. 0\nD. None\nAnswer:"
    )
    assert found.settings["num_fewshot"] == 2


def test_shots_follow_the_seed_and_leave_the_question_out(tokenizer: PreTrainedTokenizerBase, data: Path) -> None:
    model = make_model(tokenizer)

    def inputs(seed: int | None) -> list[str]:
        found = evaluate_benchmarks(model, tokenizer, ["arc_easy"], data_folder=data, num_fewshot=8, seed=seed)
        return [example["input"] for example in found.evaluations["arc_easy"].examples]

    first = inputs(1)
    assert first == inputs(1) != inputs(2)
    for number, prompt in enumerate(first):
        assert sorted(prompt.count(f"number {n} ") for n in range(9)) == [1] * 9
        assert prompt.endswith(f"number {number} sit?\nAnswer:")


BAD_NUMBERS = {"limit": 0, "num_fewshot": -1, "batch_size": 0}


@pytest.mark.parametrize("argument", BAD_NUMBERS)
def test_numbers_out_of_range_are_refused(argument: str, tokenizer: PreTrainedTokenizerBase, data: Path) -> None:
    with pytest.raises(ConfigError, match=f"{argument} is {BAD_NUMBERS[argument]}"):
        evaluate_benchmarks(
            make_model(tokenizer), tokenizer, ["copa"], data_folder=data, **{argument: BAD_NUMBERS[argument]}
        )


def test_more_shots_than_rows_are_refused(tokenizer: PreTrainedTokenizerBase, data: Path) -> None:
    model = make_model(tokenizer)
    with pytest.raises(ConfigError, match="num_fewshot is 9, but arc_easy has 8 items"):
        evaluate_benchmarks(model, tokenizer, ["arc_easy"], data_folder=data, num_fewshot=9)
    with pytest.raises(ConfigError, match="num_fewshot is 3, but mmlu_bird_science has 2 items"):
        evaluate_benchmarks(model, tokenizer, ["mmlu"], data_folder=data, num_fewshot=3)


def test_an_answer_longer_than_the_context_is_refused(tokenizer: PreTrainedTokenizerBase, data: Path) -> None:
    model = make_model(tokenizer, positions=8).train()
    with pytest.raises(DataError, match=r"answer of \d+ tokens does not fit the model's context of 8: ' a house with"):
        evaluate_benchmarks(model, tokenizer, ["arc_easy"], data_folder=data)
    assert model.training


def test_an_unknown_benchmark_is_refused(tokenizer: PreTrainedTokenizerBase, data: Path) -> None:
    with pytest.raises(ConfigError, match="no benchmark 'arc'; known are hellaswag"):
        evaluate_benchmarks(make_model(tokenizer), tokenizer, ["arc"], data_folder=data)


def test_without_the_package_the_message_says_what_to_install(
    tokenizer: PreTrainedTokenizerBase, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingDependency, match=r"A benchmark needs lm_eval, .*pip install 'chatgpt-hf\[eval\]'"):
        evaluate_benchmarks(make_model(tokenizer), tokenizer, ["arc_easy"], data_folder=data)


def test_without_a_folder_and_a_network_the_message_says_so(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads only a few of the harness' own tasks: reading all takes 15 s."""
    own = Path(lm_eval.tasks.__file__).parent / "arc"
    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda: manager(include_path=own, include_defaults=False))
    with pytest.raises(DataError, match="The data of arc_easy cannot be loaded from the Hub"):
        evaluate_benchmarks(make_model(tokenizer), tokenizer, ["arc_easy"])


def run_lm_eval(model_args: str, names: list[str], tasks: Path, output: Path, *more: str) -> dict[str, Any]:
    """Runs the harness' own command line in a separate process that registers our model type."""
    arguments = ["--model", "hf", "--model_args", model_args, "--include_path", str(tasks), "--tasks"]
    arguments += [",".join(names), "--log_samples", "--output_path", str(output), *more]
    program = "import chatgpt_hf; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    process = subprocess.run(
        [sys.executable, "-c", program, "run", *arguments], capture_output=True, text=True, env=dict(os.environ)
    )
    assert process.returncode == 0, process.stderr[-3000:]
    (file,) = output.rglob("results_*.json")
    return json.loads(file.read_text(encoding="utf-8"))


def assert_parity(
    folder: Path, names: list[str], data: Path, tmp_path: Path, limit: int, bos: bool | None = None, **settings: int
) -> None:
    model_args = f"pretrained={folder}" + (f",add_bos_token={bos}" if bos is not None else "")
    more = ["--limit", str(limit), "--batch_size", "8"]
    for name, value in settings.items():
        more += [f"--{name}", str(value)]
    write_tasks(data, tmp_path / "tasks", names)
    theirs = run_lm_eval(model_args, names, tmp_path / "tasks", tmp_path / "output", *more)
    ours = evaluate_benchmarks(
        load_model(folder),
        AutoTokenizer.from_pretrained(folder),
        names,
        data_folder=data,
        limit=limit,
        add_bos_token=bos,
        **settings,
    )
    assert theirs["results"] == json.loads(json.dumps(ours.harness["results"]))
    assert theirs["n-samples"] == ours.harness["n-samples"]
    for name in set(names) - {"mmlu"}:
        assert ours.harness["n-samples"][name]["effective"] == min(limit, ours.harness["n-samples"][name]["original"])
        for metric, measure in ours.evaluations[name].measures.items():
            assert measure.value == theirs["results"][name][f"{metric},none"]


@pytest.mark.slow
def test_figures_of_a_stock_gpt2_are_those_of_the_command_line(
    tokenizer: PreTrainedTokenizerBase, shared_data: Path, tmp_path: Path
) -> None:
    make_model(tokenizer, "gpt2", positions=128).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    names = ["lambada_openai", "winogrande", "copa"]
    assert_parity(tmp_path / "model", names, shared_data / "eval", tmp_path, limit=20, bos=True, num_fewshot=2, seed=3)


@pytest.mark.slow
def test_200_items_of_each_benchmark_are_those_of_the_command_line(shared_data: Path, tmp_path: Path) -> None:
    from chatgpt_hf import train_tokenizer

    # A larger vocabulary, so that there are fewer tokens to compute; the longest prompts are still cut.
    lines = (shared_data / "eval" / "lambada_openai_0_2499.jsonl").read_text(encoding="utf-8").splitlines()[:500]
    tokenizer = train_tokenizer([json.loads(line)["text"] for line in lines], 1500, show_progress=False)
    make_model(tokenizer, positions=512).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert_parity(tmp_path / "model", list(BENCHMARKS), shared_data / "eval", tmp_path, limit=200)

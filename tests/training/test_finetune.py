"""From a user's file to metrics: each task learns a small data set, and its folder works in a pipeline."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
    pipeline,
)

import chatgpt_hf.model.pipelines  # noqa: F401
from chatgpt_hf import (
    ChatGPTConfig,
    ChatGPTForQuestionAnswering,
    ChatGPTForSequenceClassification,
    ChatGPTForTokenClassification,
    load_model,
    load_tokenizer,
)
from chatgpt_hf.errors import DataError
from chatgpt_hf.evaluate import measure_task
from chatgpt_hf.evaluation.record import Evaluation
from chatgpt_hf.tasks.arguments import TaskArguments
from chatgpt_hf.tasks.registry import make_task
from chatgpt_hf.training.arguments import FinetuneArguments, TaskModelArguments, parse_recipe
from chatgpt_hf.training.finetune import finetune

TYPES = (TaskModelArguments, TaskArguments, FinetuneArguments)
ANIMALS = ("cat", "dog", "bird", "horse")
PLACES = ("the garden", "a house", "the river")
RUN = [
    *("--optim", "adamw_torch", "--learning_rate", "0.01", "--per_device_train_batch_size", "8", "--seed", "0"),
    *("--logging_steps", "5", "--save_strategy", "no", "--disable_tqdm", "true", "--max_length", "48"),
]


def run(base: Path, output_dir: Path, *arguments: str) -> dict[str, Any]:
    options = ["--model_name_or_path", str(base), "--output_dir", str(output_dir), *RUN, *arguments]
    return finetune(*parse_recipe(TYPES, None, options))


def sentences() -> list[tuple[str, str, str]]:
    return [(f"The {animal} sits in {place}.", animal, place) for animal in ANIMALS for place in PLACES] * 4


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture
def classes(tmp_path: Path) -> str:
    return write(tmp_path / "classes.jsonl", [{"text": text, "label": animal} for text, animal, _ in sentences()])


@pytest.mark.works_with(
    "transformers", '`pipeline("text-classification")` on a fine-tuned classifier', ("transformers",)
)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_text_classification(pooling: str, base_folder: Path, classes: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--num_train_epochs", "6", "--classifier_pooling", pooling]
    results = run(base_folder, out, "--dataset", classes, "--eval_dataset", classes, *options)
    assert results["held_out_accuracy"] == 1
    assert results["TF-IDF + logistic regression: accuracy"] == 1
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert type(model) is ChatGPTForSequenceClassification
    assert model.config.id2label == dict(enumerate(sorted(ANIMALS)))
    assert model.config.classifier_pooling == pooling
    classify = pipeline("text-classification", str(out))
    assert classify("The horse sits in a house.")[0]["label"] == "horse"
    page = (out / "report" / "evaluation.md").read_text(encoding="utf-8")
    assert "| horse | 12 | 1 | 1 | 1 |" in page
    assert "There are no errors." in page
    assert (out / "report" / "confusion.png").stat().st_size > 1000
    kept = Evaluation.load(out / "evaluation" / "text-classification")
    assert len(kept.examples) == 48
    assert kept.measures["accuracy"].value == 1


FRESH = """
import json, sys
import chatgpt_hf.model.pipelines
from transformers import pipeline
task, folder, inputs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
options = json.loads(sys.argv[4])
print(json.dumps(pipeline(task, folder, trust_remote_code=True)(inputs, **options), default=float))
"""


def in_a_fresh_process(task: str, folder: Path, inputs: Any, **options: Any) -> Any:
    arguments = [task, str(folder), json.dumps(inputs), json.dumps(options)]
    result = subprocess.run([sys.executable, "-c", FRESH, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_predictions_are_those_that_were_counted(base_folder: Path, classes: str, tmp_path: Path) -> None:
    # After one step the model only guesses, so predictions differ from the labels.
    run(base_folder, tmp_path / "run", "--dataset", classes, "--test_fraction", "0.4", "--max_steps", "1")
    kept = Evaluation.load(tmp_path / "run" / "evaluation" / "text-classification").examples
    said = in_a_fresh_process("text-classification", tmp_path / "run", [row["text"] for row in kept], truncation=True)
    assert [row["label"] for row in said] == [row["prediction"] for row in kept]
    assert [row["score"] for row in said] == pytest.approx([row["score"] for row in kept], abs=1e-5)


@pytest.mark.parametrize("kind", ["several", "number"])
def test_other_kinds_of_labels(kind: str, base_folder: Path, tmp_path: Path) -> None:
    if kind == "several":
        rows = [{"text": text, "label": [animal, place]} for text, animal, place in sentences()]
        expected = "held_out_micro_f1"
    else:
        rows = [{"text": text, "label": ANIMALS.index(animal) + 0.5} for text, animal, _ in sentences()]
        expected = "held_out_pearson"
    file = write(tmp_path / "rows.jsonl", rows)
    results = run(base_folder, tmp_path / "run", "--dataset", file, "--eval_dataset", file, "--num_train_epochs", "12")
    assert results[expected] > 0.95


def test_regression_of_large_targets(base_folder: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "score": 20.5 + 26 * ANIMALS.index(animal)} for text, animal, _ in sentences()]
    file = write(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "run"
    options = ["--dataset", file, "--eval_dataset", file, "--num_train_epochs", "12", "--learning_rate", "0.003"]
    results = run(base_folder, out, *options, "--logging_steps", "1", "--warmup_steps", "0")
    assert results["held_out_pearson"] > 0.95
    # The variance is 845: guessing the mean.
    assert results["held_out_mean_squared_error"] < 100
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert (model.config.target_mean, model.config.target_scale) == pytest.approx((59.5, 845**0.5))
    said = in_a_fresh_process("text-classification", out, ["The horse sits in a house."])
    assert said[0]["score"] == pytest.approx(98.5, abs=15)
    # A run of an earlier version, whose checkpoint knows no scale, goes on without one.
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if not name.startswith("target_")})
    )
    task = make_task(TaskArguments(dataset=[file], eval_dataset=file), 0)
    begun = task.load_model(str(base_folder))
    assert begun.config.target_mean == pytest.approx(59.5)
    assert task.first_loss() == pytest.approx(39**2)
    task.resume_target(begun, tmp_path / "old")
    assert begun.config.target_mean is None
    assert task.first_loss() == pytest.approx(98.5**2)
    # Rows of whole numbers, even a single one, are quantities for a model of quantities.
    whole = write(tmp_path / "whole.jsonl", [{"text": "The cat sits in a house.", "score": 20}] * 2)
    found = measure_task(str(out), whole)
    assert next(iter(found.values()))["mean_squared_error"].value < 225


def test_an_evaluation_counts_labels_as_the_training_did(base_folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(ANIMALS), encoding="utf-8")
    rows = [{"text": text, "label": ANIMALS.index(animal) + 1} for text, animal, _ in sentences()]
    file = write(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "run"
    options = ["--dataset", file, "--eval_dataset", file, "--class_names", str(names), "--num_train_epochs", "6"]
    assert run(base_folder, out, *options)["held_out_accuracy"] == 1
    for name, some in {
        "some": [row for row in rows if row["label"] in (1, 2)],
        "one": [row for row in rows if row["label"] == 2],
        "named": [{**row, "label": ANIMALS[row["label"] - 1]} for row in rows[::-1]],
    }.items():
        found = measure_task(str(out), write(tmp_path / f"{name}.jsonl", some))
        assert next(iter(found.values()))["accuracy"].value == 1, name
    with pytest.raises(DataError, match="unknown label 0: known are 1, 2, 3, 4"):
        measure_task(str(out), write(tmp_path / "zero.jsonl", [{**rows[0], "label": 0}]))


def test_entities_of_chinese_are_those_of_the_text_that_people_type(base_folder: Path, tmp_path: Path) -> None:
    places = ("北京", "上海", "广州")
    lines = []
    for place in places * 12:
        for word, tag in zip(f"我爱{place}。", ("O", "O", "B-LOC", "E-LOC", "O"), strict=True):
            lines.append(f"{word} {tag}")
        lines.append("")
    file = tmp_path / "rows.bioes"
    file.write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "run"
    options = ["--task", "token-classification", "--dataset", str(file), "--eval_dataset", str(file)]
    results = run(base_folder, out, *options, "--num_train_epochs", "8", "--test_fraction", "0")
    assert results["held_out_overall_f1"] == 1
    kept = Evaluation.load(out / "evaluation" / "token-classification").examples[0]
    assert kept["text"] == "我爱北京。"
    assert kept["prediction"] == ["北京 (LOC)"]
    tag = pipeline("token-classification", str(out), ignore_labels=[])
    found = {entity["start"]: entity["entity"] for entity in reversed(tag("我爱上海。"))}
    assert [found[index] for index in range(5)] == ["O", "O", "B-LOC", "I-LOC", "O"]


def test_token_classification(base_folder: Path, tmp_path: Path) -> None:
    lines = []
    for text, animal, _ in sentences():
        words = text.replace(".", " .").split()
        lines += [f"{word} {'B-ANIMAL' if word == animal else 'O'}" for word in words] + [""]
    file = tmp_path / "rows.conll"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "run"
    options = ["--task", "token-classification", "--dataset", str(file), "--eval_dataset", str(file)]
    results = run(base_folder, out, *options, "--num_train_epochs", "6")
    assert results["held_out_overall_f1"] == 1
    found = in_a_fresh_process("token-classification", out, "The dog sits in a house .", aggregation_strategy="first")
    assert [(entity["entity_group"], entity["word"].strip()) for entity in found] == [("ANIMAL", "dog")]


def test_question_answering(base_folder: Path, tmp_path: Path) -> None:
    rows = []
    for number, (text, animal, place) in enumerate(sentences()):
        question, answer = (("Who?", animal), ("Where?", place))[number % 2]
        rows.append(
            {
                "id": str(number),
                "question": question,
                "context": text,
                "answers": {"text": [answer], "answer_start": [text.index(answer)]},
            }
        )
    file = write(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "run"
    options = ["--task", "question-answering", "--dataset", file, "--eval_dataset", file, "--stride", "8"]
    results = run(base_folder, out, *options, "--num_train_epochs", "30")
    assert results["held_out_exact_match"] > 0.9
    kept = Evaluation.load(out / "evaluation" / "question-answering").examples[:4]
    inputs = [{"question": row["question"], "context": row["text"]} for row in kept]
    said = in_a_fresh_process("question-answering", out, inputs)
    assert [answer["answer"] for answer in said] == [row["prediction"] for row in kept]
    for answer, row in zip(said, kept, strict=True):
        assert row["text"][answer["start"] : answer["end"]] == answer["answer"]


def test_translation(base_folder: Path, tmp_path: Path) -> None:
    words = {"cat": "猫", "dog": "狗", "bird": "鸟", "horse": "马"}
    rows = [{"en": f"The {animal}.", "zh": words[animal]} for animal in ANIMALS] * 6
    file = write(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "run"
    options = ["--task", "translation", "--dataset", file, "--eval_dataset", file, "--num_train_epochs", "30"]
    templates = ["--prompt_template", "{en}\n", "--completion_template", "{zh}", "--max_new_tokens", "8"]
    metrics = ["--generation_metrics", '{"exact_match": {}, "bleu": {"tokenize": "zh"}}']
    results = run(base_folder, out, *options, *templates, *metrics)
    assert results["held_out_exact_match"] == 1
    assert results["held_out_ended"] == 1
    assert results["held_out_perplexity"] < 1.5
    said = in_a_fresh_process("translation", out, ["The dog.", "The horse."])
    assert said == [{"translation_text": "狗"}, {"translation_text": "马"}]


def test_multiple_choice(base_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"query": f"The {animal} is a", "choices": [f" {other}." for other in ANIMALS], "gold": ANIMALS.index(animal)}
        for animal in ANIMALS
    ] * 6
    file = write(tmp_path / "rows.jsonl", rows)
    options = ["--task", "multiple-choice", "--dataset", file, "--eval_dataset", file, "--num_train_epochs", "30"]
    assert run(base_folder, tmp_path / "run", *options)["held_out_accuracy"] == 1


def test_frozen_base_and_adapters(base_folder: Path, classes: str, tmp_path: Path) -> None:
    before = ChatGPTForSequenceClassification.from_pretrained(base_folder).model.state_dict()
    common = ["--dataset", classes, "--eval_dataset", classes, "--max_steps", "3", "--baseline", "false"]
    run(base_folder, tmp_path / "frozen", *common, "--freeze_base", "true")
    after = ChatGPTForSequenceClassification.from_pretrained(tmp_path / "frozen").model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    pytest.importorskip("peft")
    run(base_folder, tmp_path / "lora", *common, "--use_peft", "true")
    assert (tmp_path / "lora" / "adapter" / "adapter_config.json").is_file()
    kept = Evaluation.load(tmp_path / "lora" / "evaluation" / "text-classification").examples
    said = in_a_fresh_process("text-classification", tmp_path / "lora", [row["text"] for row in kept], truncation=True)
    assert [row["label"] for row in said] == [row["prediction"] for row in kept]


def test_imported_gpt2(classes: str, base_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(base_folder))
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64))
    gpt2.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    results = run(
        tmp_path / "gpt2", tmp_path / "run", "--dataset", classes, "--eval_dataset", classes, "--num_train_epochs", "8"
    )
    assert results["held_out_accuracy"] == 1
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert type(model) is ChatGPTForSequenceClassification


def test_class_weights_and_accumulation() -> None:
    from chatgpt_hf.tasks.losses import ClassificationLoss, balanced_weights

    labels = torch.tensor([0, 0, 0, 1])
    weights = balanced_weights(labels.numpy(), 2)
    assert weights.tolist() == pytest.approx([4 / 6, 2.0])
    logits = torch.randn(4, 2)
    loss = ClassificationLoss("single_label_classification", weights)
    whole = loss({"logits": logits}, labels)
    parts = [loss({"logits": logits[i : i + 1]}, labels[i : i + 1], num_items_in_batch=4) for i in range(4)]
    torch.testing.assert_close(whole, sum(parts))
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none") * weights[labels]
    torch.testing.assert_close(whole, each.mean())


def test_texts_are_read_before_the_task(base_folder: Path, classes: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--dataset", classes, "--eval_dataset", classes, "--max_steps", "2", "--baseline", "false"]
    run(base_folder, out, *options, "--adapt_epochs", "2")
    results = json.loads((out / "adapted" / "results.json").read_text(encoding="utf-8"))
    assert results["epoch"] == 2
    # The task started from the adapted model: only the head is new, and 2 steps change little.
    adapted = ChatGPTForSequenceClassification.from_pretrained(out / "adapted").model.norm.weight
    base = ChatGPTForSequenceClassification.from_pretrained(base_folder).model.norm.weight
    assert not torch.equal(adapted, base)


def test_texts_that_remain_when_some_are_held_out_by_hash(base_folder: Path, classes: str, tmp_path: Path) -> None:
    options = ["--dataset", classes, "--max_steps", "1", "--baseline", "false", "--test_fraction", "0.3"]
    results = run(base_folder, tmp_path / "run", *options, "--adapt_epochs", "1")
    assert results["train_rows"] < 48
    adapted = json.loads((tmp_path / "run" / "adapted" / "results.json").read_text(encoding="utf-8"))
    assert adapted["held_out_bits_per_byte"] > 0


def test_the_tokens_of_the_task(base_folder: Path, classes: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--dataset", classes, "--eval_dataset", classes, "--adapt_epochs", "8", "--adapt_vocab_size", "290"]
    results = run(base_folder, out, *options, "--num_train_epochs", "4")
    assert results["held_out_accuracy"] > 0.9
    model = ChatGPTForSequenceClassification.from_pretrained(out)
    tokenizer = load_tokenizer(str(out))
    assert len(tokenizer) == model.config.vocab_size == 290
    assert any(animal in tokenizer.decode([index]) for animal in ANIMALS for index in range(290))


def test_from_scratch_its_own_texts_are_all_it_reads(base_folder: Path, classes: str, tmp_path: Path) -> None:
    options = ["--dataset", classes, "--eval_dataset", classes, "--max_steps", "1", "--baseline", "false"]
    # The base model of these tests has the weights of seed 0.
    options += ["--adapt_epochs", "1", "--adapt_learning_rate", "1e-12", "--seed", "5"]
    weights = {}
    for name, start in {"kept": [], "new": ["--from_scratch", "true"]}.items():
        run(base_folder, tmp_path / name, *options, *start)
        weights[name] = load_model(tmp_path / name / "adapted").get_input_embeddings().weight
    weights["base"] = load_model(base_folder).get_input_embeddings().weight
    torch.testing.assert_close(weights["kept"], weights["base"], rtol=0, atol=1e-6)
    assert (weights["new"] - weights["base"]).abs().max() > 1e-3


def test_early_stopping_keeps_the_best(base_folder: Path, classes: str, tmp_path: Path) -> None:
    options = ["--dataset", classes, "--eval_dataset", classes, "--num_train_epochs", "12", "--baseline", "false"]
    out = tmp_path / "run"
    stopped = run(
        base_folder,
        out,
        *options,
        "--early_stopping_patience",
        "2",
        "--save_strategy",
        "epoch",
        "--save_total_limit",
        "1",
    )
    assert stopped["epoch"] < 12
    assert stopped["held_out_accuracy"] == 1


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_long_texts_are_cut_and_counted(
    task: str, base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(8):
        words = [("cat", "dog")[number % 2], *["river"] * (60 if number == 3 else 2)]
        if task == "text-classification":
            rows.append({"text": " ".join(words), "label": words[0]})
        else:
            rows.append({"tokens": words, "ner_tags": ["B-ANIMAL", *["O"] * (len(words) - 1)]})
    file = write(tmp_path / "rows.jsonl", rows)
    options = ["--task", task, "--dataset", file, "--eval_dataset", file, "--max_steps", "1", "--baseline", "false"]
    run(base_folder, tmp_path / "run", *options)
    assert "1 of 8 texts are longer than 48 tokens (--max_length) and are cut" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dataset is missing"),
        (["--dataset", "nowhere.csv"], "nowhere.csv"),
        (["--dataset", "{classes}", "--test_fraction", "0"], "No rows are held out"),
        (["--dataset", "{classes}", "--max_length", "999"], "--max_length 999 is longer than the model's context"),
        (["--dataset", "{classes}", "--task", "guessing"], "guessing"),
        (["--dataset", "{classes}", "--freeze_base", "true", "--use_peft", "true"], "--freeze_base and --use_peft"),
        (["--dataset", "{classes}", "--adapt_vocab_size", "300"], "--adapt_vocab_size needs --adapt_epochs"),
        (["--dataset", "{classes}", "--early_stopping_patience", "2", "--save_strategy", "no"], "--save_strategy"),
        (["--dataset", "{classes}", "{classes}"], "--dataset names 2 sources"),
        (["--dataset", "{classes}", "--dropuot", "0.1"], "Did you mean --dropout?"),
        (
            [
                "--dataset",
                "{classes}",
                "--task",
                "translation",
                "--prompt_template",
                "{{text}}",
                "--adapt_epochs",
                "1",
            ],
            "completion",
        ),
        (["--dataset", "{classes}", "--task", "translation", "--max_new_tokens", "128"], "leaves no room"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, refused: Any, base_folder: Path, classes: str, tmp_path: Path
) -> None:
    words = [word.format(classes=classes) for word in arguments]
    options = ["--model_name_or_path", base_folder, "--output_dir", tmp_path / "run", "--max_length", "96"]
    assert message in refused("finetune", *options, *words)
    assert not (tmp_path / "run" / "config.json").exists()


def test_pooling_is_of_our_heads_alone(refused: Any, classes: str, llama_folder: Path, tmp_path: Path) -> None:
    options = ["--dataset", classes, "--model_name_or_path", llama_folder, "--output_dir", tmp_path / "run"]
    assert "--classifier_pooling: models of the family llama" in refused(
        "finetune", *options, "--classifier_pooling", "mean", "--max_length", "32"
    )


def test_a_missing_base_model_is_named(refused: Any, classes: str, tmp_path: Path) -> None:
    assert "--model_name_or_path is missing" in refused("finetune", "--dataset", classes)


@pytest.mark.parametrize(
    "head", [ChatGPTForSequenceClassification, ChatGPTForTokenClassification, ChatGPTForQuestionAnswering]
)
def test_stock_trainer_divides_a_heads_loss_when_it_accumulates(head: Any, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(4):
        ids = torch.randint(1, 50, (6,), generator=generator).tolist()
        row: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * 6}
        if head is ChatGPTForQuestionAnswering:
            row |= {"start_positions": ids[0] % 6, "end_positions": ids[1] % 6}
        else:
            row["labels"] = ids[0] % 3 if head is ChatGPTForSequenceClassification else [token % 3 for token in ids]
        rows.append(row)
    weights = []
    for batch, steps in ((4, 1), (1, 4)):
        torch.manual_seed(0)
        config = ChatGPTConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=3, pad_token_id=0
        )
        model = head(config)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / f"{steps}"),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=3,
            optim="sgd",
            learning_rate=0.5,
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model, arguments, train_dataset=Dataset.from_list(rows), data_collator=default_data_collator).train()
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)

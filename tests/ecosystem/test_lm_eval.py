"""lm-evaluation-harness' own command line with `--model hf`, on a task of one's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import chatgpt_hf  # noqa: F401

TASK = """
task: where_is_it
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
  - metric: perplexity
"""
ROWS = [
    {"context": "A cat sits in", "answer": " the garden."},
    {"context": "The dog runs around the house. One small bird", "answer": " looks at it"},
    {"context": "你好", "answer": "！😀"},
]


def by_hand(folder: Path) -> list[float]:
    """Log-likelihood of each answer after its context."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    values = []
    for row in ROWS:
        context = len(tokenizer(row["context"])["input_ids"])
        ids = torch.tensor([tokenizer(row["context"] + row["answer"])["input_ids"]])
        with torch.no_grad():
            scores = model(ids).logits[0, :-1].log_softmax(-1)
        values.append(scores.gather(1, ids[0, 1:, None])[context - 1 :].sum().item())
    return values


@pytest.mark.slow
@pytest.mark.works_with(
    "lm-eval",
    "`lm_eval run --model hf` with `trust_remote_code`: log-likelihoods equal those computed by hand",
    ("lm_eval",),
)
def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    # The command as it is installed, in a process that does not import this package: the model brings its code.
    command = [str(Path(sys.executable).with_name("lm_eval")), "run", "--model", "hf", "--model_args"]
    command += [f"pretrained={folder},dtype=float32,trust_remote_code=True", "--tasks", str(tmp_path / "task.yaml")]
    command += ["--batch_size", "2", "--device", "cpu", "--log_samples", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "DISABLE_MULTIPROC": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    theirs = {sample["doc_id"]: float(sample["filtered_resps"][0][0]) for sample in samples}
    assert [theirs[index] for index in range(len(ROWS))] == pytest.approx(by_hand(folder), rel=1e-4)

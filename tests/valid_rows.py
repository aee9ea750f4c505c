"""Valid rows and files of every kind that is read, which the readers' `make` changes. Used by readers.py."""

from typing import Any

TEXTS = [
    {"text": f"Line {number} of a text, naïve and 中文.", "label": "ab"[number % 2], "id": number}
    for number in range(6)
]
CHATS = [
    {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello!"}], "source": "x"},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": [1.50]}'}}]},
        {"role": "tool", "content": "2", "name": "f"}, {"role": "assistant", "content": "Two.", "weight": 1}],
     "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}]},
]  # fmt: skip
SHAPES = [
    CHATS,
    [{"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello!"}], "system": "Be kind."}] * 2,
    [{"instruction": "Add.", "input": "1 1", "output": "2", "history": [["Hi", "Hello"]]}] * 2,
    [{"prompt": "1+1=", "completion": "2", "train": True}] * 2,
    [{"message_tree_id": "1", "message_id": "1", "parent_id": None, "text": "Hi", "role": "prompter", "lang": "en"},
     {"message_tree_id": "1", "message_id": "2", "parent_id": "1", "text": "Hello", "role": "assistant", "rank": 0, "lang": "en"}],
]  # fmt: skip
PREFERENCES = [
    [{"prompt": "1+1=", "completion": "2", "label": True}] * 2,
    [{"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"}] * 2,
    [{"chosen": [*CHATS[0]["messages"]], "rejected": [CHATS[0]["messages"][0], {"role": "assistant", "content": "b"}]}] * 2,
    [{"instruction": "Add.", "input": "1 1", "output": "2", "chosen": "2", "rejected": "3", "margin": 1.5}] * 2,
    [{"input": {"messages": CHATS[0]["messages"][:1]}, "preferred_output": CHATS[0]["messages"][1:],
      "non_preferred_output": [{"role": "assistant", "content": "b"}]}] * 2,
    [{"prompt": "Hi", "response_0": "a", "response_1": "b", "chosen": 1}] * 2,
    [{"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"}] * 2,
]  # fmt: skip
TAGGED = [{"tokens": ["Ann", "saw", "Rome", "."], "ner_tags": ["B-PER", "O", "B-LOC", "O"], "id": "1"}] * 3
SPANS = [
    {"text": "Ann saw Rome.", "entities": [{"start": 0, "end": 3, "label": "PER"}, [8, 12, "LOC"]]},
    {"text": "In Rome.", "label": [[3, 7, "LOC"]]},
]
CHOICES = [
    {"query": "2+2?", "choices": ["3", "4"], "gold": 1},
    {"query": "1+1?", "choices": ["2", "3"], "gold": 0},
] * 2
LETTERED = [
    {"question": "2+2?", "A": "3", "B": "4", "answer": "B"},
    {"question": "1+1?", "A": "2", "B": "3", "answer": "A"},
]
SQUAD = {"version": "2.0", "data": [{"title": "t", "paragraphs": [{"context": "Ann saw Rome.", "qas": [
    {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}], "is_impossible": False},
    {"id": "2", "question": "When?", "answers": [], "is_impossible": True}]}]}]}  # fmt: skip
QUESTIONS = [
    {"id": "1", "question": "Who?", "context": "Ann saw Rome.", "answers": {"text": ["Ann"], "answer_start": [0]}}
] * 2
SAMPLES = [
    {"question": "1+1=", "answer": "2", "id": 7, "pattern": "[23]", "schema": {"const": 2}, "line": line, "sample": sample, "completion": said, "finish_reason": "stop",
     "completion_ids": [3, 4], "mean_log_prob": -0.25} for line in (1, 2) for sample, said in ((1, "2"), (2, "3"))
]  # fmt: skip
ASKED = [
    [{"question": f"{number}+1=", "answer": "2", "pattern": "[0-9]+"} for number in range(3)],
    [{"prompt": [{"role": "user", "content": f"Hi {number}?"}], "answer": ["Hello!", 2],
      "schema": {"type": "object", "required": ["a"]}} for number in range(3)],
    [{**CHATS[0], "test": "assert f(1) == 1", "entry_point": "f"}, CHATS[1]],
]  # fmt: skip
CONLL = b"-DOCSTART- -X- O O\n\n1 Ann NNP B-PER\n2 saw VBD O\n3 Rome NNP B-LOC\n\n1 Bob NNP B-PER\n2 left VBD O\n"
PROBLEMS = [{"task_id": "a/1", "prompt": "def f(x):\n", "entry_point": "f", "test": "def check(f):\n    assert f(1) == 1\n",
             "canonical_solution": "    return x\n"}, {"task_id": "a/2", "prompt": "def g():\n", "entry_point": "g", "test": "def check(g): pass"}]  # fmt: skip
RECIPE = {
    "corpus": ["a.jsonl", {"source": "b.txt", "weight": 0.5}], "output_dir": "runs/x", "learning_rate": 1e-3, "max_steps": 4,
    "hidden_size": 16, "optim": "adamw_torch", "lr_scheduler_kwargs": {"a": 1}, "env": {"A": "b"}, "report_to": "none",
}  # fmt: skip
HARNESS = {
    "hellaswag.jsonl": [{"ctx": "A man", "endings": ["runs.", "flies."], "label": 0}] * 2,
    "lambada.jsonl": [{"text": "the last word"}] * 2,
    "piqa.jsonl": CHOICES,
}
MMLU = [{"question": "2+2?", **{f"choice{i}": str(i) for i in range(4)}, "answer": "3"}] * 2


def figures() -> dict[str, Any]:
    figure = {
        "value": 0.5,
        "low": 0.1,
        "high": 0.9,
        "aggregate": "mean",
        "options": {},
        "higher_is_better": True,
        "signature": "x",
    }
    return {
        "task": "text-classification", "data": "a.csv", "examples": 2, "settings": {"batch": 8}, "command": "chatgpt-hf evaluate",
        "identity": "a", "figures": {"accuracy": figure, "f1": {**figure, "aggregate": "macro_f1"}},
    }  # fmt: skip


EXAMPLES = [{"input": str(index), "output": "a", "reference": "a", "statistics": {"accuracy": [1.0, 1.0], "f1": [1, 1, 1]}} for index in range(2)]  # fmt: skip
REPORT = {
    "title": "x", "description": "a small model", "command": "chatgpt-hf pretrain", "data": "a.jsonl", "statistics": [{"source": "a", "rows": 3}],
    "training": {"seconds": 3.0}, "results": {"eval_loss": 2.5}, "columns": [], "chat": False, "origin": {"name": "x", "model_type": "llama"},
}  # fmt: skip
CARD = b"---\nlicense: mit\nlanguage: [en]\ntags: [a]\nmodel-index:\n- name: x\n  results: []\n---\n# A model\n"

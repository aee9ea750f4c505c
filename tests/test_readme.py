"""Every command and Python example of README.md and some of docs/ runs, on a model folder that a tiny quickstart left."""

import importlib.util
import json
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.request import urlopen

import pytest
from forking import ForkServer
from transformers import GPT2Config, GPT2LMHeadModel

from chatgpt_hf import (
    ChatGPTConfig,
    ChatGPTForCausalLM,
    ChatGPTForSequenceClassification,
    convert_checkpoint,
    load_tokenizer,
    train_tokenizer,
)
from chatgpt_hf.export.export import export_model
from chatgpt_hf.inference.abstention import Abstention, save_abstention
from chatgpt_hf.quickstart import quickstart
from chatgpt_hf.tasks.arguments import TaskArguments
from chatgpt_hf.training.arguments import FinetuneArguments, TaskModelArguments, parse_recipe
from chatgpt_hf.training.finetune import finetune

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "docs/index.md",
    "docs/data.md",
    "docs/tokenizer.md",
    "docs/pretraining.md",
    "docs/scaling.md",
    "docs/fine-tuning.md",
    "docs/alignment.md",
    "docs/chat.md",
    "docs/tasks.md",
    "docs/evaluation.md",
    "docs/hub.md",
    "docs/conversion.md",
    "docs/export.md",
    *sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs" / "how-to").glob("*.md")),
    "docs/explain.md",
    "docs/performance.md",
]
TINY = ["--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--max_steps", "2"]
SMALL_RUN = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--save_steps", "2", "--eval_strategy", "no"]
# Models that learned nothing never end their answers.
SMALL_SFT = [*SMALL_RUN, "--evaluate_answers", "2"]


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(document: str) -> list[str]:
    # Blocks in a list are indented.
    lines = [line.strip() for block in blocks(document, "bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "pip ", "git clone "))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader has it: the quickstart done (tiny), own texts and chats, a GPT-2."""
    folder = tmp_path_factory.mktemp("reader")
    quickstart(
        folder / "runs" / "quickstart",
        say=lambda sentence: None,
        pretrain_overrides=[*TINY, *SMALL_RUN, "--vocab_size", "400", "--block_size", "256"],
        sft_overrides=[*SMALL_SFT, "--block_size", "256"],
    )
    (folder / "my-texts").mkdir()
    for index in range(30):
        (folder / "my-texts" / f"{index}.txt").write_text(f"Text {index} is about cats and dogs.\n" * 5)
    chat = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}\n'
    (folder / "my-chats.jsonl").write_text(chat * 8)
    pairs = [{"prompt": f"What is {n}?", "chosen": f"{n} is a number.", "rejected": "No."} for n in range(30)]
    for name in ("my-pairs", "my-other-pairs"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    sums = [{"question": f"{n} + 2 = ?", "answer": n + 2} for n in range(30)]
    (folder / "my-sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    prompts = [{"prompt": "Return a"}, {"messages": [{"role": "user", "content": "Hi"}]}]
    (folder / "my-prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    questions = [{"messages": prompts[1]["messages"], "answer": "Hello!"}, {**prompts[1], "answer": "Hi!"}]
    (folder / "my-questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    samples = [{**questions[0], "completion": completion} for completion in ("Hello!", "Bye!")]
    (folder / "my-samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    make_known_questions(folder)
    (folder / "words.txt").write_text("# One in a line.\ncurse*\n")
    chat_model = folder / "runs" / "quickstart"
    labels = {"id2label": {0: "fine", 1: "toxic", 2: "insult"}, "num_labels": 3}
    ChatGPTForSequenceClassification.from_pretrained(chat_model, **labels).save_pretrained(folder / "my-classifier")
    load_tokenizer(str(chat_model)).save_pretrained(folder / "my-classifier")
    tokenizer = load_tokenizer(str(chat_model))
    # What a judge is asked takes more tokens than the chat model has.
    ChatGPTForCausalLM.from_pretrained(chat_model, max_position_embeddings=2048).save_pretrained(folder / "my-judge")
    tokenizer.save_pretrained(folder / "my-judge")
    # Its context holds the schema of a tool.
    shutil.copytree(folder / "my-judge", folder / "runs" / "calls")
    gpt2 = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(gpt2).save_pretrained(folder / "my-gpt2")
    tokenizer.save_pretrained(folder / "my-gpt2")
    (folder / "my-recipe.yaml").write_text("corpus: my-texts/\noutput_dir: runs/my-recipe\nvocab_size: 300\n")
    make_foreign_checkpoints(folder)
    reviews = [f"{word} film {number},{label}" for number in range(20) for word, label in (("Good", 1), ("Bad", 0))]
    (folder / "my-reviews.csv").write_text("\n".join(["text,label", *reviews]) + "\n")
    for name in ("films", "films-2"):
        options = ["--model_name_or_path", str(chat_model), "--output_dir", str(folder / "runs" / name)]
        rows = ["--dataset", str(folder / "my-reviews.csv"), "--baseline", "false"]
        types = (TaskModelArguments, TaskArguments, FinetuneArguments)
        finetune(*parse_recipe(types, None, [*options, *rows, *SMALL_RUN]))
    return folder


def make_known_questions(folder: Path) -> None:
    """`my-known.jsonl` and `my-unknown.jsonl`, and a calibration of the chat model, which knows no answer."""
    for name in ("my-known", "my-unknown"):
        rows = [
            {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": "A number."}]}
            for n in range(24)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat_model = folder / "runs" / "quickstart"
    save_abstention(Abstention(-0.5), chat_model, load_tokenizer(chat_model), {})


def make_gguf(folder: Path) -> None:
    """`runs/gguf/f16` as the commands before the example leave it, of a model of random weights."""
    tokenizer = train_tokenizer(["What does str.join do? 123"] * 4, 300, max_digits=3, show_progress=False)
    config = ChatGPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        gated_mlp=True,
        hidden_act="silu",
    )
    ChatGPTForCausalLM(config).save_pretrained(folder / "gguf-model")
    tokenizer.save_pretrained(folder / "gguf-model")
    export_model(folder / "gguf-model", folder / "runs" / "gguf" / "f16", "gguf", outtype="f16", check=False)


def make_foreign_checkpoints(folder: Path) -> None:
    """`my-llama`, `my-litgpt` and `my-nanogpt` with its table of characters."""
    sizes = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = ChatGPTConfig(**sizes, gated_mlp=True, hidden_act="silu", qk_norm=False)
    nanogpt = ChatGPTConfig.gpt2("gpt2", **sizes, hidden_act="gelu", max_position_embeddings=32)
    for to, config in (("llama", llama), ("litgpt", llama), ("nanogpt", nanogpt)):
        ChatGPTForCausalLM(config).save_pretrained(folder / "ours")
        convert_checkpoint(folder / "ours", folder / f"my-{to}", to)
        shutil.rmtree(folder / "ours")
    stoi = {chr(index + 32): index for index in range(90)}
    (folder / "my-nanogpt" / "meta.json").write_text(json.dumps({"stoi": stoi}))


@pytest.fixture
def workplace(made: Path, tmp_path: Path) -> Path:
    """A copy for one reader: the documents write to folders of the same names."""
    return shutil.copytree(made, tmp_path / "reader")


@contextmanager
def served(server: ForkServer, arguments: list[str], folder: Path, port: int) -> Iterator[str]:
    """Waits until a server says where it is, asks it, gives its address, and ends it in good order."""
    arguments = [word for word in arguments if word not in ("--port", "8000")]
    with server.running(folder, arguments=[*arguments, "--port", str(port)]) as process:
        address = f"http://127.0.0.1:{port}"
        assert any(address in line for line in process.output), arguments
        with urlopen(address if arguments[0] == "ui" else f"{address}/health", timeout=900) as response:
            assert response.status == 200
        yield address
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0


def test_the_commands_are_there() -> None:
    first = ["make quickstart", "make test", ".venv/bin/chatgpt-hf chat runs/quickstart", "make ui"]
    assert commands("README.md")[:4] == first
    for readme in ("README.md", "README.zh-CN.md"):
        # They need the repository, so getting it comes before them.
        clone = blocks(readme, "bash")[0].splitlines()[0]
        assert re.fullmatch(r"git clone <[^>]+> (\S+) && cd \1", clone)
        assert commands(readme) == commands("README.md")


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md"])
def test_make_knows_the_targets(document: str) -> None:
    targets = {shlex.split(line)[1] for line in commands(document) if line.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert not [target for target in targets if not re.search(rf"^{target}:.*## ", makefile, flags=re.MULTILINE)]


def test_make_ui_opens_the_quickstart_model_or_says_that_there_is_none(tmp_path: Path) -> None:
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, tmp_path)
    planned = subprocess.run(["make", "-n", "ui"], cwd=tmp_path, capture_output=True, text=True)
    lines = [line for line in planned.stdout.splitlines() if not line.startswith("make[")]
    assert lines[-1] == ".venv/bin/chatgpt-hf ui runs/quickstart"
    assert "-e '.[ui]'" in planned.stdout
    refused = subprocess.run(["make", "ui"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "run make quickstart first" in refused.stdout
    # Before anything is installed.
    assert not (tmp_path / ".venv").exists()


def test_make_quickstart_runs_the_command_that_the_tests_run() -> None:
    result = subprocess.run(["make", "-n", "quickstart"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # A make that runs inside `make test` says which folder it enters and leaves.
    lines = [line for line in result.stdout.splitlines() if not line.startswith("make[")]
    assert lines[-1].endswith("bin/chatgpt-hf quickstart")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_runs(
    document: str, workplace: Path, fork_server: ForkServer, free_port: Callable[[], int]
) -> None:
    for command in commands(document):
        words = shlex.split(command)
        if "gguf" in words and not importlib.util.find_spec("llama_cpp"):
            words.append("--no-check")
        if words[0] == "make":
            continue
        typed = "Hello\n/quit\n"
        if words[0] == "echo" and words[2] == "|":
            typed, words = f"{words[1]}\n", words[3:]
        assert Path(words[0]).name == "chatgpt-hf", f"{document} runs {words[0]}, which this test does not know"
        if words[1] in ("serve", "ui"):
            with served(fork_server, words[1:], workplace, free_port()):
                continue
        result = fork_server.run(workplace, typed, arguments=[*words[1:], *_smaller(words)])
        if words[1] == "calibrate":
            # Only a model that has learned something has right answers.
            assert "Only 0 of 24 answers to --known are right" in result.stderr, result.stderr
            continue
        assert result.returncode == 0, f"{command}\n{result.stderr[-2000:]}"


def _smaller(words: list[str]) -> list[str]:
    """Returns options that make a long command short."""
    if words[1:3] == ["tokenizer", "train"]:
        return ["--vocab_size", "300"]
    options = {
        "plan": ["--block_size", "32", "--per_device_train_batch_size", "2", "--vocab_size", "512"],
        "pretrain": SMALL_RUN if "--model_name_or_path" in words else [*SMALL_RUN, *TINY],
        "sft": SMALL_SFT,
        # The recipes are for the real quickstart's longer context.
        "dpo": [*SMALL_RUN, "--max_length", "256"],
        "reward": [*SMALL_RUN, "--max_length", "256"],
        "distill": [*SMALL_SFT, "--block_size", "128"],
        "grpo": [*SMALL_RUN, "--num_generations", "2", "--evaluate_prompts", "2", "--max_completion_length", "4"],
        "finetune": SMALL_RUN,
        "evaluate": ["--max_new_tokens", "8"] if "--prompts" in words else [],
        # The model's answers are all wrong.
        "pairs": ["my-samples.jsonl"],
    }
    return options.get(words[1], [])


EXAMPLES = [code for document in DOCUMENTS for code in blocks(document, "python")]


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.splitlines()[0][:40])
def test_every_example_runs(code: str, workplace: Path, fork_server: ForkServer, free_port: Callable[[], int]) -> None:
    if "runs/quickstart-onnx" in code:
        export_model(workplace / "runs" / "quickstart", workplace / "runs" / "quickstart-onnx", "onnx")
    if "llama_cpp" in code:
        pytest.importorskip("llama_cpp", reason="llama-cpp-python compiles for minutes")
        make_gguf(workplace)
    # There is no Hub in a test: the one id of the README is the GPT-2 folder at hand.
    code = code.replace("openai-community/gpt2", "my-gpt2").replace("runs/reviews", "runs/films")
    asks = "http://127.0.0.1:8000" in code
    with (
        served(fork_server, ["serve", "runs/quickstart"], workplace, free_port()) if asks else nullcontext() as address
    ):
        code = code.replace("http://127.0.0.1:8000", str(address))
        result = fork_server.run(workplace, code=code)
    assert result.returncode == 0, result.stderr[-2000:]

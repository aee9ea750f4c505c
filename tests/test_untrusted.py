"""A folder that a stranger made: none of its code runs, nothing outside of it is read, and every fault is one clear line.

`tests/cli/test_foreign_code.py` gives folders with code to every command.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from chatgpt_hf.checkpoints import load_model
from chatgpt_hf.errors import CardError, ChatGPTError, CheckpointError, ConfigError, TokenizerError
from chatgpt_hf.files import read_json
from chatgpt_hf.hub.files import check_model_folder, published_files
from chatgpt_hf.model.configuration_chatgpt import AUTO_MAP
from chatgpt_hf.model.pipelines import PIPELINES, custom_pipelines
from chatgpt_hf.reporting.card import make_card
from chatgpt_hf.stored import base_of, config_of, copy_licence, origin_of
from chatgpt_hf.tokenization_chatgpt import encode_texts, load_tokenizer
from chatgpt_hf.untrusted import OUR_MODULES, OUR_PIPELINES, check_adapter_sizes

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, pipes and devices are those of POSIX")

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A Llama model of a stranger's."""
    return Path(shutil.copytree(llama_folder, tmp_path / "theirs"))


@pytest.fixture(scope="module")
def stored_adapter(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(stored_adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored_adapter, tmp_path / "adapter"))


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **changes}))


def refusal(error: type[ChatGPTError], load: Callable[..., object], *arguments: object) -> str:
    """The message of a refusal, which has to be one line of a length that can be read."""
    with pytest.raises(error) as caught:
        load(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 800
    return message


def test_the_modules_that_count_as_ours_are_those_that_are_saved() -> None:
    assert {reference.partition(".")[0] for reference in AUTO_MAP.values()} == OUR_MODULES
    impls = [custom_pipelines(task)[task]["impl"] for task in PIPELINES]
    assert {impl.partition(".")[0] for impl in impls} == OUR_PIPELINES


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModelForCausalLM": "theirs.Model"}},
        {"auto_map": {"AutoConfig": "someone/theirs--theirs.Config"}},
        {"auto_map": {"AutoTokenizer": ["theirs.Slow", "theirs.Fast"]}},
        {"auto_map": {"AutoProcessor": "theirs.Processor"}},
        # Only a model of our family may name our modules: the file of this name is a stranger's.
        {"auto_map": {"AutoModelForCausalLM": "modeling_chatgpt.ChatGPTForCausalLM"}},
        {"custom_pipelines": {"text-generation": {"impl": "theirs.Pipeline", "pt": ["AutoModelForCausalLM"]}}},
        {"model_type": "chatgpt", "auto_map": {"AutoModelForCausalLM": "theirs.Model"}},
        {"model_type": "gpt2", "auto_map": {"AutoModelForCausalLM": "theirs.Model"}},
        # Another file is the config, for newer releases of transformers.
        {"configuration_files": ["config.4.0.0.json"]},
    ],
)
def test_foreign_code_is_named_and_not_run(folder: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    trace = tmp_path / "was-run"
    for name in ("theirs", "modeling_chatgpt"):
        (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'w')\n")
    edit(folder / "config.json", **config)
    whole = json.loads((folder / "config.json").read_text())
    whole |= {"auto_map": {"AutoModelForCausalLM": "theirs.Model"}}
    (folder / "config.4.0.0.json").write_text(json.dumps(whole))
    message = refusal(ConfigError, load_model, folder)
    assert "code that comes with a model is not run" in message
    assert "Delete the field" in message
    assert not trace.exists()


def test_code_that_generates_and_code_of_a_processor(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "was-run"
    (folder / "theirs.py").write_text(f"open({str(trace)!r}, 'w')\n")
    for name in ("processor_config.json", "preprocessor_config.json"):
        # Nothing here reads them.
        edit(folder / name, auto_map={"AutoProcessor": "theirs.Processor"}, processor_class="Processor")
    load_model(folder)
    (folder / "custom_generate").mkdir()
    shutil.copyfile(folder / "theirs.py", folder / "custom_generate" / "generate.py")
    assert "custom_generate/generate.py is code" in refusal(ConfigError, load_model, folder)
    assert not trace.exists()


def test_our_own_code_in_a_folder_is_no_reason_to_refuse_it(base_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(base_folder, tmp_path, dirs_exist_ok=True)
    assert set(AUTO_MAP) == set(json.loads((tmp_path / "config.json").read_text())["auto_map"])
    from_the_hub = {name: f"me/model--{reference}" for name, reference in AUTO_MAP.items()}
    edit(tmp_path / "config.json", auto_map=from_the_hub, custom_pipelines=custom_pipelines("translation"))
    load_model(tmp_path)


@pytest.mark.parametrize("family", ["chatgpt", "llama"])
@pytest.mark.parametrize(
    "change",
    [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"experts_implementation": {"": "someone/kernel"}},
        {"text_config": {"attn_implementation": "someone/kernel"}},
    ],
)
def test_kernels_from_the_hub_are_code_too(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, change: dict[str, Any]
) -> None:
    source = request.getfixturevalue("base_folder" if family == "chatgpt" else "llama_folder")
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "config.json", **change)
    assert "asks for the kernel" in refusal(ConfigError, load_model, tmp_path)


def test_code_of_a_tokenizer(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trace = tmp_path / "was-run"
    (folder / "theirs.py").write_text(f"open({str(trace)!r}, 'w')\n")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["theirs.Slow", "theirs.Fast"]})
    load_tokenizer(folder)
    assert "names code for the tokenizer, which is not run" in caplog.text
    (folder / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_text("{}")
    refusal(TokenizerError, load_tokenizer, folder)
    assert not trace.exists()


NAMES_OUTSIDE = ["../x.safetensors", "/dev/zero", "/etc/passwd", "a/../../x", "C:\\x", "..", "", "\0"]


@pytest.mark.parametrize("name", [*NAMES_OUTSIDE, None, 3, ["a"]])
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_names_only_files_beside_it(folder: Path, index: str, name: Any) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    edit(folder / index, weight_map={"a": "model-00001-of-00001.safetensors", "b": name})
    message = refusal(CheckpointError, load_model, folder)
    assert message.startswith(str(folder / index))
    assert ("not a file beside it" if isinstance(name, str) else "lists no weights") in message


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_list(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors").unlink()
    edit(folder / "model.safetensors.index.json", weight_map=weight_map)
    assert "lists no weights" in refusal(CheckpointError, load_model, folder)


FILES = ["config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "README.md", "LICENSE"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("target", ["secret", "/dev/zero", "../secret", "/nowhere/at/all"])
def test_links_that_leave_the_folder(folder: Path, tmp_path: Path, name: str, target: str) -> None:
    (tmp_path / "secret").write_text('{"key": "hidden"}')
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / target if target == "secret" else target)
    for load, error in (
        (load_model, CheckpointError),
        (load_tokenizer, TokenizerError),
        (check_model_folder, CheckpointError),
    ):
        message = refusal(error, load, folder)
        assert message.startswith(f"{folder / name} is a link to ")
        assert "hidden" not in message


@pytest.mark.parametrize("name", ["report/run.md", "evaluation/a/results.json", "notes/key.txt"])
def test_nothing_outside_of_the_folder_is_published(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("key")
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(tmp_path / "secret")
    assert "is a link to" in refusal(CheckpointError, lambda: published_files(folder, include=["notes/*"]))
    # What is not published may lead anywhere, also for the library; a link to a folder is not entered.
    (folder / name).unlink()
    (folder / "data").symlink_to(tmp_path)
    assert not any(file.startswith("data") for file in published_files(folder, include=["data/*"]).files)
    load_model(folder)


def test_links_within_a_folder_and_into_the_cache_of_the_hub(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").rename(folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    load_model(folder)
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / "main"
    for part in (repository / "blobs", snapshot):
        part.mkdir(parents=True)
    for file in folder.iterdir():
        blob = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, repository / "blobs" / blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob}")
    load_model(snapshot)
    load_tokenizer(snapshot)
    assert published_files(snapshot).files
    # A name that is no hash is no blob.
    (repository / "blobs" / "id_rsa").write_text("key")
    (snapshot / "LICENSE").symlink_to("../../blobs/id_rsa")
    assert "is a link to" in refusal(CheckpointError, load_model, snapshot)


@pytest.mark.parametrize("name", [*FILES, "model.safetensors.index.json", "added_tokens.json", "anything"])
def test_pipes(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for load, error in (
        (load_model, CheckpointError),
        (load_tokenizer, TokenizerError),
        (check_model_folder, CheckpointError),
    ):
        assert refusal(error, load, folder).startswith(f"{folder / name} is a pipe and not a file.")


def test_pipes_where_only_a_library_looks(folder: Path, tmp_path: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    os.mkfifo(folder / "additional_chat_templates" / "a.jinja")
    assert "a.jinja is a pipe" in refusal(TokenizerError, load_tokenizer, folder)
    os.mkfifo(tmp_path / "results.json")
    assert "is a pipe" in refusal(CheckpointError, read_json, tmp_path / "results.json")
    assert "is a device" in refusal(CheckpointError, read_json, Path("/dev/zero"))
    os.mkfifo(tmp_path / "README.md")
    # What is no file is no card.
    assert origin_of(tmp_path) == {"name": tmp_path.name}
    copy_licence(tmp_path, folder)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json", "chat_template.jinja", "vocab.json"])
def test_a_text_of_a_terabyte_takes_no_memory(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.truncate(10**12)  # takes no place on the disk
    load, error = (load_model, CheckpointError) if name.startswith("gen") else (load_tokenizer, TokenizerError)
    message = refusal(error, load, folder)
    assert message.startswith(f"{folder / name} ")
    assert "1,000.0 GB" in message or "1,000,000,000,000 bytes" in message


OF_MODELS = ["config.json", "generation_config.json", "model.safetensors.index.json", "adapter_config.json"]
OF_TOKENIZERS = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]


@pytest.mark.parametrize("name", [*OF_MODELS, *OF_TOKENIZERS])
@pytest.mark.parametrize(
    "text",
    [DEEP, "[" * 100_000, "[1]", "null", '"text"', "", '{"a": ' + "9" * 5000 + "}", b"\xff\xfe{"],
    ids=["deep", "deep list", "list", "null", "text", "empty", "digits", "bytes"],
)
def test_json_that_is_no_object(folder: Path, name: str, text: str | bytes) -> None:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    load, error = (load_model, CheckpointError) if name in OF_MODELS else (load_tokenizer, TokenizerError)
    assert refusal(error, load, folder).startswith(f"{folder / name} ")


@pytest.mark.parametrize("family", ["chatgpt", "llama"])
@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 10**12},
        {"vocab_size": 10**18},
        {"hidden_size": 10**9},
        {"intermediate_size": 10**10},
        {"num_hidden_layers": 10**9, "layer_types": None},
        {"num_attention_heads": 10**9, "head_dim": 64},
        {"head_dim": 10**12},
        {"vocab_size": 50_000_000},
    ],
    ids=str,
)
def test_sizes_that_do_not_belong_to_the_weights(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, change: dict[str, Any]
) -> None:
    source = request.getfixturevalue("base_folder" if family == "chatgpt" else "llama_folder")
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "config.json", **change)
    assert refusal(ConfigError, load_model, tmp_path).startswith(str(tmp_path / "config.json"))


@pytest.mark.parametrize(
    "setting", [{"max_length": "abc"}, {"temperature": "hot"}, {"eos_token_id": [1, "x"]}, {"num_beams": [4]}], ids=str
)
def test_settings_of_generation_that_are_no_numbers(folder: Path, setting: dict[str, Any]) -> None:
    edit(folder / "generation_config.json", **setting)
    assert f"generation_config.json: {next(iter(setting))} is " in refusal(CheckpointError, load_model, folder)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return open, (str(self.trace), "w")


@pytest.mark.parametrize("kind", ["torch", "within", "pickle", "junk", "empty"])
@pytest.mark.parametrize("of", ["folder", "adapter"])
def test_pickles(folder: Path, adapter: Path, tmp_path: Path, of: str, kind: str) -> None:
    trace = tmp_path / "was-run"
    where = folder if of == "folder" else adapter
    file = where / ("pytorch_model.bin" if of == "folder" else "adapter_model.bin")
    (where / ("model.safetensors" if of == "folder" else "adapter_model.safetensors")).unlink()
    if kind in ("torch", "within"):
        torch.save(Payload(trace) if kind == "torch" else {"lm_head.weight": Payload(trace)}, file)
    else:
        file.write_bytes({"pickle": pickle.dumps(Payload(trace)), "junk": b"junk" * 99, "empty": b""}[kind])
    assert str(where) in refusal(CheckpointError, load_model, where)
    assert not trace.exists()


def test_an_adapter_without_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors, the adapter's weights" in refusal(CheckpointError, load_model, adapter)


def test_an_adapter_that_is_based_on_itself(adapter: Path, tmp_path: Path) -> None:
    second, third = (Path(shutil.copytree(adapter, tmp_path / name)) for name in ("second", "third"))
    for base, circle in ((adapter, "itself."), (second, f"itself through {second}.")):
        edit(adapter / "adapter_config.json", base_model_name_or_path=str(base))
        edit(second / "adapter_config.json", base_model_name_or_path=str(adapter))
        for load in (load_model, config_of, base_of):
            assert f"the adapter is based on {circle}" in refusal(CheckpointError, load, adapter)
    edit(third / "adapter_config.json", base_model_name_or_path=str(adapter))
    assert "based on itself" in refusal(CheckpointError, load_model, third)


@pytest.mark.parametrize("base", [None, "", 3, [], {"a": 1}, "/dev/zero", "\0", "x" * 5000, "../../.."], ids=str)
def test_a_base_that_is_no_model(adapter: Path, base: Any) -> None:
    edit(adapter / "adapter_config.json", base_model_name_or_path=base)
    assert str(adapter) in refusal(CheckpointError, load_model, adapter)


def test_a_base_with_foreign_code(adapter: Path, folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "was-run"
    (folder / "theirs.py").write_text(f"open({str(trace)!r}, 'w')\n")
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "theirs.Model"})
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(folder))
    assert "is not run" in refusal(ConfigError, load_model, adapter)
    assert not trace.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"r": 10**9},
        {"rank_pattern": {"q_proj": 10**9}},
        {"peft_type": "NOTHING"},
        {"target_modules": 3},
        {"target_modules": ["nothing"]},
        {"lora_alpha": "x"},
        {"task_type": "NOTHING"},
        {"alpha_pattern": [1]},
        {"layer_replication": [[0, 10**7]]},
        {"trainable_token_indices": [10**12]},
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
    ],
    ids=str,
)
def test_adapters_that_ask_for_what_cannot_be(adapter: Path, change: dict[str, Any]) -> None:
    edit(adapter / "adapter_config.json", **change)
    assert str(adapter) in refusal(ChatGPTError, load_model, adapter)


@pytest.mark.parametrize("text", [DEEP, '{"a": 1}', "[1, 2]", '"x"'], ids=["deep", "object", "short", "text"])
def test_a_sample_of_the_base_that_is_none(adapter: Path, text: str) -> None:
    (adapter / "base_sample.json").write_text(text)
    assert "base_sample.json is no list of numbers" in refusal(CheckpointError, load_model, adapter)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("of", ["folder", "adapter"])
def test_weights_that_are_no_numbers_are_said_at_load_and_before_a_push(
    folder: Path, adapter: Path, of: str, value: str
) -> None:
    where, name = (folder, "model.safetensors") if of == "folder" else (adapter, "adapter_model.safetensors")
    weights = load_file(where / name)
    broken = sorted(weights)[0]
    weights[broken].view(-1)[-1] = float(value)
    save_file(weights, where / name, metadata={"format": "pt"})
    for load in (load_model, check_model_folder):
        message = refusal(CheckpointError, load, where)
        assert "NaN or infinite numbers in 1 of the weights, including " in message
        assert str(where) in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_largest_numbers_of_a_dtype_are_numbers(folder: Path, dtype: torch.dtype) -> None:
    weights = {name: weight.to(dtype) for name, weight in load_file(folder / "model.safetensors").items()}
    weights["model.norm.weight"][:2] = torch.finfo(dtype).max
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", dtype=str(dtype).removeprefix("torch."))
    load_model(folder)


MODEL = {"type": "BPE", "vocab": {"a": 0}, "merges": []}


@pytest.mark.parametrize(
    "content",
    [
        {"model": 3, "added_tokens": []},
        {"model": {}},
        {"hello": 1, "world": 2},
        {"pieces": [1]},
        {"added_tokens": [3], "model": MODEL},
        {"added_tokens": [], "model": {"type": "Unigram", "unk_id": 9, "vocab": []}},
        {"added_tokens": [], "model": {**MODEL, "merges": [["x", "y"]]}},
        {"added_tokens": [], "model": MODEL, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {
            "added_tokens": [],
            "model": MODEL,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": False},
        },
    ],
    ids=str,
)
def test_a_tokenizer_of_another_kind(folder: Path, content: dict[str, Any]) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", **content}))
    assert f"no tokenizer could be loaded from {str(folder)!r}: " in refusal(TokenizerError, load_tokenizer, folder)


def test_a_pattern_of_a_tokenizer_that_takes_exponential_time(folder: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a|a|aa)+$"}, "behavior": "Isolated", "invert": False}
    content = {"version": "1.0", "added_tokens": [], "model": MODEL, "pre_tokenizer": split}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(folder)
    assert "the tokenizer cannot encode a text" in refusal(TokenizerError, encode_texts, tokenizer, ["a" * 40 + "b"])


BOMB = "license: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    "metadata",
    [
        BOMB + "language: *a11\n",
        "license: [" + "[" * 20_000 + "\n",
        "a: !!python/object/apply:os.getpid []\n",
        "\udcff",
    ],
    ids=["aliases", "deep", "object", "bytes"],
)
def test_metadata_of_a_card(folder: Path, metadata: str) -> None:
    (folder / "README.md").write_text(f"---\n{metadata}\n---\nText", errors="surrogateescape")
    assert str(folder / "README.md") in refusal(CardError, make_card, folder, "me/model")


def test_a_licence_is_a_few_words(folder: Path) -> None:
    (folder / "README.md").write_text(f"---\n{BOMB}license_name: *a11\n---\n")
    assert "license_name" not in origin_of(folder)


def test_fields_that_look_like_sizes(folder: Path, adapter: Path) -> None:
    """Values of real folders: Qwen's windows, a family that is no text, LoKr's full matrices, a long path."""
    edit(folder / "config.json", max_window_layers=28)
    load_model(folder)
    edit(folder / "config.json", model_type=["llama"])
    assert "model_type" in refusal(ConfigError, load_model, folder)
    edit(adapter / "adapter_config.json", peft_type="LOKR", r=100_000)
    check_adapter_sizes(adapter)
    edit(adapter / "adapter_config.json", base_model_name_or_path="/a" * 200)
    assert "is no name of" not in refusal(CheckpointError, load_model, adapter)


def test_a_shard_that_did_not_arrive(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    message = refusal(CheckpointError, load_model, folder)
    assert "names model-00002-of-00002.safetensors, which is missing" in message

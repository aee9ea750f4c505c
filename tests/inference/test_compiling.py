"""Compiled steps give the same text; without a compiler, a message says so and generation continues."""

from pathlib import Path
from typing import Any

import pytest
import torch
from forking import ForkServer
from transformers import CompileConfig, GenerationConfig, MambaConfig, MambaForCausalLM, StaticCache

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, ChatSession, compile_config, load_model, load_tokenizer
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.inference import compiling
from chatgpt_hf.inference.cache import PrefixCache
from chatgpt_hf.inference.compiling import CompiledPrefix, missing_compiler
from chatgpt_hf.inference.cpu import packed_linear as kernels
from chatgpt_hf.inference.cpu.attention import use_cpu_attention
from chatgpt_hf.inference.generate import stream_text

OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0}


@pytest.mark.slow
@pytest.mark.skipif(
    missing_compiler(torch.device("cpu")) is not None, reason="this machine has no C++ compiler for torch.compile"
)
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_same_text(chat_folder: Path, monkeypatch: pytest.MonkeyPatch, quantize: str | None) -> None:
    monkeypatch.setattr(kernels, "SMALLEST", 0)
    torch.compiler.reset()
    options = {**OPTIONS, "quantize": quantize}
    expected = "".join(stream_text(chat_folder, "A cat number", **options))
    said: list[str] = []
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    assert "".join(stream_text(chat_folder, "A cat number", compile=True, report=said.append, **options)) == expected
    assert graphs["unique_graphs"] == before + 1
    assert said == ["Compiling the model's step: 10 to 60 seconds, less when repeated."]


@pytest.fixture
def exactly(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compiles with PyTorch's operations instead of inductor's, so that the ids are exactly those of uncompiled steps."""

    def config() -> CompileConfig:
        config = compile_config()
        config.backend, config.mode = "aot_eager", None
        return config

    monkeypatch.setattr(compiling, "compile_config", config)
    torch.compiler.reset()
    return torch._dynamo.utils.counters["stats"]


@pytest.mark.parametrize("context", [64, 600], ids=["a kernel reads the cache", "attention reads what is filled"])
@pytest.mark.parametrize("window", [None, 6])
def test_one_compilation_for_all_answers(exactly: Any, context: int, window: int | None) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": context}
    model = ChatGPTForCausalLM(ChatGPTConfig(**sizes, sliding_window=window, initializer_range=0.2)).eval()
    use_cpu_attention(model)
    config = GenerationConfig(max_new_tokens=8, do_sample=False)
    plain, compiled = PrefixCache(model), CompiledPrefix(model)
    before = exactly["unique_graphs"]
    compiled.warm_up()
    graphs = exactly["unique_graphs"]
    assert graphs > before
    ids = torch.randint(101, (1, 9))
    # The second prompt continues the first text, the third shares only its beginning, and the last is new and short.
    answer, other = model.generate(ids, generation_config=config), torch.randint(101, (1, 4))
    for prompt in (ids, torch.cat((answer, other), 1), torch.cat((answer[:, :11], other), 1), other[:, :3]):
        expected = plain.generate(prompt, generation_config=config)
        assert compiled.generate(prompt, generation_config=config).equal(expected)
    if window is None:
        assert exactly["unique_graphs"] == graphs
        assert compiled.processed_tokens == plain.processed_tokens


def test_a_cache_for_longer_texts(exactly: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_POSITIONS", 16)
    torch.manual_seed(0)
    sizes = {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = ChatGPTForCausalLM(ChatGPTConfig(**sizes, max_position_embeddings=50, initializer_range=0.2)).eval()
    config = GenerationConfig(max_new_tokens=40, do_sample=False)
    ids = torch.randint(101, (1, 9))
    expected = model.generate(ids, generation_config=config)
    compiled = CompiledPrefix(model)
    short = GenerationConfig(max_new_tokens=5, do_sample=False)
    assert compiled.generate(ids, generation_config=short).equal(expected[:, :14])
    assert compiled.generate(ids, generation_config=config).equal(expected)


def test_a_conversation(exactly: Any, chat_folder: Path) -> None:
    model, tokenizer = load_model(chat_folder), load_tokenizer(str(chat_folder))
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20}
    plain = ChatSession(model, tokenizer, **options)
    compiled = ChatSession(model, tokenizer, prefix=CompiledPrefix(model.eval()), **options)
    for message in ("A cat number", "And more", "What else?"):
        assert compiled.reply(message) == plain.reply(message)
        assert compiled.ending == plain.ending
    assert compiled.processed_tokens == plain.processed_tokens


def test_a_model_without_keys() -> None:
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    with pytest.raises(
        ConfigError, match="--compile needs a model that caches keys and values, which MambaForCausalLM"
    ):
        CompiledPrefix(MambaForCausalLM(MambaConfig(**sizes)))


@pytest.mark.parametrize("window", [None, 6])
def test_steps_for_several_answers(window: int | None) -> None:
    """Uses PyTorch's operations instead of inductor's, so that the ids are exactly those of uncompiled steps."""
    torch.compiler.reset()
    torch.manual_seed(0)
    sizes = {"vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = ChatGPTForCausalLM(ChatGPTConfig(**sizes, sliding_window=window, initializer_range=0.2)).eval()
    ids = torch.randint(101, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **options, pad_token_id=0)
    config = compile_config()
    config.backend = "aot_eager"
    config.mode = None
    use_cpu_attention(model)
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for _ in range(3):
        cache = StaticCache(model.config, max_cache_len=21)
        found = model.generate(ids, **options, pad_token_id=0, past_key_values=cache, compile_config=config)
        assert found.equal(expected)
    # transformers counts a window's positions in a Python integer, which PyTorch first treats as a constant.
    assert graphs["unique_graphs"] == before + (1 if window is None else 2)


def test_without_a_compiler(chat_folder: Path, fork_server: ForkServer, tmp_path: Path) -> None:
    arguments = ["generate", str(chat_folder), "--prompt", "A cat", "--temperature", "0", "--max_new_tokens", "5"]
    plain = fork_server.run(tmp_path, arguments=arguments)
    code = "import os; os.environ['PATH'] = '/nowhere'"
    bare = fork_server.run(tmp_path, code=code, arguments=[*arguments, "--compile"])
    assert plain.returncode == bare.returncode == 0, bare.stderr
    assert bare.stdout == plain.stdout
    assert bare.stderr.count("Not compiled, because a C++ compiler (g++ or clang++) is missing") == 1


def test_not_with_guesses(chat_folder: Path) -> None:
    with pytest.raises(ConfigError, match="--compile works only with one token per step"):
        next(stream_text(chat_folder, "A cat", compile=True, speculate="auto"))

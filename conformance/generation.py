"""Checks of `generate` for any causal model: each takes a model and raises where an answer is wrong.

They check our variants and upstream's models alike, against a plain loop of greedy decoding without a cache.
"""

import copy
import unittest
from collections.abc import Callable
from typing import Any

import torch
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, set_seed

# Prompt and new tokens together exceed a sliding window of 16.
NEW = 14
LENGTH = 9

CHECKS: dict[str, Callable[[PreTrainedModel], None]] = {}


def _check(function: Callable[[PreTrainedModel], None]) -> Callable[[PreTrainedModel], None]:
    CHECKS[function.__name__] = function
    return function


def ready(model: PreTrainedModel) -> PreTrainedModel:
    """Prepares a model for the checks: no dropout, and no end token before the full length."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def prompts(model: PreTrainedModel, rows: int = 3, length: int = LENGTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(3, model.config.vocab_size, (rows, length), generator=generator)


@torch.no_grad()
def reference(model: PreTrainedModel, ids: torch.Tensor, new: int = NEW) -> torch.Tensor:
    """Decodes greedily in a plain loop that reads the whole text again for every token."""
    for _ in range(new):
        ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    return ids


def greedy(model: PreTrainedModel, ids: torch.Tensor | None = None, new: int = NEW, **options: Any) -> torch.Tensor:
    return model.generate(ids, do_sample=False, max_new_tokens=new, **options)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.tolist() == expected.tolist()


@_check
def greedy_is_the_reference(model: PreTrainedModel) -> None:
    ids = prompts(model)
    same(greedy(model, ids), reference(model, ids))
    same(greedy(model, ids, use_cache=False), reference(model, ids))


@_check
def sampling_is_the_same_with_and_without_a_cache(model: PreTrainedModel) -> None:
    ids = prompts(model)
    options = {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 1.3, "max_new_tokens": NEW}
    drawn = []
    for seed, use_cache in ((0, True), (0, False), (1, True)):
        set_seed(seed)
        drawn.append(model.generate(ids, use_cache=use_cache, **options))
    same(drawn[0], drawn[1])
    assert drawn[0].tolist() != drawn[2].tolist()


@_check
def beams_have_the_scores_that_they_say(model: PreTrainedModel) -> None:
    ids = prompts(model)
    options = {"num_beams": 4, "num_return_sequences": 3, "do_sample": False, "max_new_tokens": NEW}
    found = model.generate(ids, output_scores=True, return_dict_in_generate=True, **options)
    same(found.sequences, model.generate(ids, use_cache=False, **options))
    with torch.no_grad():
        log_probs = model(found.sequences[:, :-1]).logits.float().log_softmax(-1)
    picked = log_probs.gather(-1, found.sequences[:, 1:, None]).squeeze(-1)[:, LENGTH - 1 :]
    torch.testing.assert_close(found.sequences_scores, picked.mean(-1), rtol=1e-4, atol=1e-4)
    scores = found.sequences_scores.view(len(ids), 3)
    assert (scores.diff(dim=-1) <= 0).all()


@_check
def beam_sampling_is_the_same_with_and_without_a_cache(model: PreTrainedModel) -> None:
    ids = prompts(model)
    drawn = []
    for use_cache in (True, False):
        set_seed(0)
        drawn.append(model.generate(ids, num_beams=3, do_sample=True, max_new_tokens=NEW, use_cache=use_cache))
    same(drawn[0], drawn[1])


@_check
def group_beams(model: PreTrainedModel) -> None:
    options = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "max_new_tokens": 4}
    try:
        found = model.generate(prompts(model), do_sample=False, **options)
    except (ValueError, OSError) as error:
        # transformers 5 moved it to code on the Hub.
        if "transformers-community/group-beam-search" in str(error) or "trust_remote_code" in str(error):
            raise unittest.SkipTest("group beam search moved from transformers to code on the Hub") from error
        raise
    assert found.shape == (3, LENGTH + 4)


@_check
def assisted_decoding_is_greedy(model: PreTrainedModel) -> None:
    ids = prompts(model, rows=1)
    helper = copy.deepcopy(model)
    same(greedy(model, ids, assistant_model=helper), reference(model, ids))
    with torch.no_grad():
        for parameter in helper.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    same(greedy(model, ids, assistant_model=helper), reference(model, ids))


@_check
def prompt_lookup_is_greedy(model: PreTrainedModel) -> None:
    # The prompt repeats itself, so that lookup finds something.
    ids = prompts(model, rows=1, length=5).repeat(1, 2)
    same(greedy(model, ids, prompt_lookup_num_tokens=3), reference(model, ids))


@_check
def a_prefix_function_constrains(model: PreTrainedModel) -> None:
    ids, allowed = prompts(model), [5, 17, 40]
    found = greedy(model, ids, prefix_allowed_tokens_fn=lambda row, tokens: [allowed[row % 3], 60])
    for row, tokens in enumerate(found[:, LENGTH:].tolist()):
        assert set(tokens) <= {allowed[row % 3], 60}
    beams = greedy(model, ids, num_beams=2, prefix_allowed_tokens_fn=lambda row, tokens: [allowed[row], 60])
    for row, tokens in enumerate(beams[:, LENGTH:].tolist()):
        assert set(tokens) <= {allowed[row], 60}


@_check
def a_static_cache_changes_nothing(model: PreTrainedModel) -> None:
    ids = prompts(model)
    same(greedy(model, ids, cache_implementation="static"), reference(model, ids))


@_check
def offloaded_caches_change_nothing(model: PreTrainedModel) -> None:
    if not torch.accelerator.is_available():
        raise unittest.SkipTest("offloaded caches move keys and values off an accelerator, and there is none")
    model.to(torch.accelerator.current_accelerator())
    ids = prompts(model).to(model.device)
    for kind in ("offloaded", "offloaded_static"):
        same(greedy(model, ids, cache_implementation=kind), reference(model, ids))


@_check
def a_quantized_cache_changes_little(model: PreTrainedModel) -> None:
    ids = prompts(model)
    kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention"}
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    if kinds:
        try:
            greedy(model, ids, **options)
        except ValueError as error:
            raise unittest.SkipTest(f"transformers quantizes only caches of full attention: {error}") from error
    # Only one step, since one different token would change all later ones.
    found = greedy(model, ids, new=2, **options).logits[1]
    plain = greedy(model, ids, new=2, output_logits=True, return_dict_in_generate=True).logits[1]
    assert 0 < (found - plain).abs().max() < 0.1 * plain.abs().max()


@_check
def left_padding_changes_nothing(model: PreTrainedModel) -> None:
    ids = prompts(model)
    padding = torch.tensor([[0], [2], [5]])
    mask = (torch.arange(LENGTH) >= padding).long()
    found = greedy(model, ids * mask, attention_mask=mask)
    for row, start in enumerate(padding.flatten().tolist()):
        same(found[row : row + 1, LENGTH:], reference(model, ids[row : row + 1, start:])[:, -NEW:])


@_check
def embeddings_in_place_of_ids(model: PreTrainedModel) -> None:
    ids = prompts(model)
    embeddings = model.get_input_embeddings()(ids)
    same(greedy(model, inputs_embeds=embeddings), reference(model, ids)[:, LENGTH:])


@_check
def a_cache_goes_on_where_it_stopped(model: PreTrainedModel) -> None:
    ids = prompts(model)
    first = greedy(model, ids, new=4, return_dict_in_generate=True)
    more = torch.cat((first.sequences, prompts(model, length=3)), dim=1)
    same(greedy(model, more, new=8, past_key_values=first.past_key_values), reference(model, more, new=8))


@_check
def decoding_compiles_to_one_graph(model: PreTrainedModel) -> None:
    ids = prompts(model)
    torch.compiler.reset()
    # Not inductor: this tests that the forward is one graph, and C++ builds take half a minute.
    compile_config = CompileConfig(backend="aot_eager", mode=None, fullgraph=True)
    compile_config._compile_all_devices = True
    same(greedy(model, ids, cache_implementation="static", compile_config=compile_config), reference(model, ids))


@_check
def continuous_batching_is_one_by_one(model: PreTrainedModel) -> None:
    ids = prompts(model, rows=4)
    rows = [row[: 3 + 2 * index].tolist() for index, row in enumerate(ids)]
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    # Without sizes, it takes most of the free memory.
    sizes = ContinuousBatchingConfig(page_size=32, num_blocks=16, max_batch_tokens=64, use_cuda_graph=False)
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        found = model.generate_batch(
            [list(row) for row in rows], generation_config=config, continuous_batching_config=sizes, warmup=False
        )
        by_prompt = {tuple(output.prompt_ids): output.generated_tokens for output in found.values()}
        model.set_attn_implementation(attention)
        for row in rows:
            assert by_prompt[tuple(row)] == reference(model, torch.tensor([row]))[0, len(row) :].tolist()

"""Key-value caches: the model continues from one, and `generate` gives the same tokens with each."""

import pytest
import torch
from tiny_model import POSITIONS, build, some_ids
from transformers import CompileConfig, DynamicCache, StaticCache


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_continues_where_it_stopped(position: str, window: int | None, kind: str) -> None:
    model = build(position_embedding_type=position, sliding_window=window)
    ids = some_ids(length=14)
    cache = (
        DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=20)
    )
    with torch.no_grad():
        whole = model(ids).logits
        parts = []
        for piece in ids.split([6, 1, 4, 3], dim=1):
            parts.append(model(piece, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


@pytest.mark.works_with(
    "transformers", "`generate`: dynamic and static caches, left padding, embeddings", ("transformers",)
)
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("position", POSITIONS)
def test_generation_is_the_same_with_every_cache(position: str, window: int | None) -> None:
    model = build(position_embedding_type=position, sliding_window=window)
    ids = some_ids(3, 7)
    mask = (torch.arange(7) >= torch.tensor([[0], [4], [2]])).long()
    how = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=mask, use_cache=False, **how).tolist()
    assert model.generate(ids, attention_mask=mask, **how).tolist() == expected
    assert model.generate(ids, attention_mask=mask, cache_implementation="static", **how).tolist() == expected
    embeds = model.get_input_embeddings()(ids)
    from_embeds = model.generate(inputs_embeds=embeds, attention_mask=mask, **how)
    assert from_embeds.tolist() == [row[7:] for row in expected]
    for row in range(3):
        alone = model.generate(ids[row : row + 1, mask[row] == 1], **how)[0]
        assert alone[-9:].tolist() == expected[row][-9:]


def test_decoding_compiles_with_a_static_cache() -> None:
    model = build()
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(some_ids(), **how)
    # Not inductor: what is tested is that the forward is one graph, and C++ builds take half a minute.
    compile_config = CompileConfig(backend="aot_eager", mode=None, fullgraph=True)
    compile_config._compile_all_devices = True
    found = model.generate(some_ids(), cache_implementation="static", compile_config=compile_config, **how)
    assert found.tolist() == expected.tolist()

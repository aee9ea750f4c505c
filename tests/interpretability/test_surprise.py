"""The model's surprise at each token, compared with a loop over single tokens."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatgpt_hf import ChatSession
from chatgpt_hf.interpretability.passage import token_text
from chatgpt_hf.interpretability.surprise import token_probabilities


@pytest.fixture(scope="module")
def session(chat_folder: Path) -> ChatSession:
    model = AutoModelForCausalLM.from_pretrained(chat_folder)
    return ChatSession(model, AutoTokenizer.from_pretrained(chat_folder), do_sample=False, max_new_tokens=40)


@pytest.mark.parametrize("message", ["Hello!", "Smile", "你好", "never seen"])
def test_as_one_token_after_another(session: ChatSession, message: str) -> None:
    session.reset()
    session.reply(message)
    prompt, answer = session.ending.prompt_ids, session.ending.answer_ids
    found = token_probabilities(session.model, session.tokenizer, prompt, answer, top_k=3)
    assert [token.token_id for token in found] == answer
    for place, token in enumerate(found):
        with torch.no_grad():
            logits = session.model(input_ids=torch.tensor([prompt + answer[:place]])).logits[0, -1]
        expected = logits.float().softmax(-1)
        assert token.probability == pytest.approx(expected[token.token_id].item(), abs=1e-5)
        values = [alternative.probability for alternative in token.alternatives]
        assert values == pytest.approx(expected.topk(3).values.tolist(), abs=1e-5)
        assert values == pytest.approx([expected[other.token_id].item() for other in token.alternatives], abs=1e-5)
        assert token.surprise == pytest.approx(-expected[token.token_id].log().item(), abs=1e-4)
        assert token.entropy == pytest.approx(torch.distributions.Categorical(expected).entropy().item(), abs=1e-4)
        # The answer is greedy.
        assert token.alternatives[0].token_id == token.token_id


def test_ends(session: ChatSession) -> None:
    assert token_probabilities(session.model, session.tokenizer, [0], []) == []
    size = session.model.config.vocab_size
    (token,) = token_probabilities(session.model, session.tokenizer, [5], [7], top_k=10**6)
    assert len(token.alternatives) == size
    assert sum(alternative.probability for alternative in token.alternatives) == pytest.approx(1, abs=1e-4)
    (token,) = token_probabilities(session.model, session.tokenizer, [5], [7], top_k=0)
    assert token.alternatives == ()


def test_texts(session: ChatSession) -> None:
    tokenizer = session.tokenizer
    for text in ("Hi! How are you?", "你好！我是一个小模型。", "😀👍🏽 yes 🎉"):
        for token_id in tokenizer.encode(text, add_special_tokens=False):
            shown = token_text(tokenizer, token_id)
            assert shown
            assert "\ufffd" not in shown
    # No merge covers this emoji, so its tokens are its bytes.
    ids = tokenizer.encode("🦥", add_special_tokens=False)
    parts = [token_text(tokenizer, token_id) for token_id in ids]
    assert all(part.startswith("<") and part.endswith(">") for part in parts)
    assert bytes.fromhex(" ".join(part[1:-1] for part in parts)).decode() == "🦥"
    assert token_text(tokenizer, tokenizer.eos_token_id) == tokenizer.eos_token
    assert token_text(tokenizer, len(tokenizer) + 5) == f"<{len(tokenizer) + 5}>"

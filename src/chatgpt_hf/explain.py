"""A page that explains a text, or what a chat model answered."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from .checkpoints import load_for_inference
from .errors import ConfigError
from .inference.cpu.packed_linear import PackedLinear
from .inference.session import ChatSession
from .interpretability.explanation import corpus_texts, explain
from .interpretability.page import check_page_file, write_page
from .interpretability.passage import passage_of_answer, passage_of_text
from .tokenization_chatgpt import check_text, load_tokenizer


def write_explanation(
    name_or_path: str,
    file: str | Path,
    *,
    text: str | None = None,
    prompt: str | None = None,
    corpus: str = "builtin:python-docs",
    report: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """Explains a text, or the answer to a prompt, on a page.

    Args:
        name_or_path: Folder or Hub id of a causal language model; of a chat model for a prompt.
        file: To be written, or written anew.
        text, prompt: One of the two.
        corpus: As `load_corpus` takes it; a tuned lens learns from it, and the effects of parts are measured on it.
        report: Is told what is being done.

    Raises:
        ConfigError: When it is not one of text and prompt that is given, or the model is quantized.
        CheckpointError: When there is no model, or it is not whole.
        TokenizerError: When there is a prompt, and no chat template.
        DataError: When the text is empty, no UTF-8 or longer than the model's context, or the corpus is too short.
        OutputError: When the page cannot be written.
    """
    if (text is None) == (prompt is None):
        raise ConfigError("Give --text or --prompt, one of the two: a text, or a message whose answer is explained.")
    check_page_file(file)
    check_text("--text", text or "")
    check_text("--prompt", prompt or "")
    model, tokenizer = _load(name_or_path), load_tokenizer(name_or_path)
    if prompt is not None:
        session = ChatSession(model, tokenizer, do_sample=False)
        session.reply(prompt)
        passage = passage_of_answer(model, tokenizer, session.ending.prompt_ids, session.ending.answer_ids)
    else:
        passage = passage_of_text(model, tokenizer, text or "")
    texts = corpus_texts(model, tokenizer, corpus)
    name = Path(name_or_path).name
    explanation = explain(model, tokenizer, passage, name=name, texts=texts, report=report, progress=True)
    return write_page(explanation, tokenizer, file)


def explain_last_answer(session: ChatSession, file: str | Path) -> Path:
    """Explains the last answer of a conversation on a page, without what needs other texts.

    Raises:
        ConfigError: When nothing was answered yet, or the last answer was read from a file, or moderation changed or ended
            it: the page would show what was held back; or when the model is quantized, or was handed over packed.
        OutputError: When the page cannot be written.
    """
    ending = session.ending
    last = session.messages[-1] if session.messages else {"role": "system"}
    if last["role"] != "assistant" or not ending.answer_ids:
        raise ConfigError(
            "Nothing was answered here yet, so there is no answer to explain: ask first, or again (/regenerate)."
        )
    whole = str(session.tokenizer.decode(ending.answer_ids, skip_special_tokens=True)).strip()
    if session.moderation is not None and last["content"] != whole:
        raise ConfigError("Moderation changed the last answer, and a page about it would show what was held back.")
    check_page_file(file)
    # A model that was loaded to answer gives no gradients: its weights are read again as they are stored.
    source = session.name_or_path
    if source is None:
        model = session.model
        _check_gradients(model, "The session's model")
    else:
        model = _load(source)
    passage = passage_of_answer(model, session.tokenizer, ending.prompt_ids, ending.answer_ids)
    name = Path(source or session.model.name_or_path).name or "the model"
    return write_page(explain(model, session.tokenizer, passage, name=name), session.tokenizer, file)


def _load(name_or_path: str) -> PreTrainedModel:
    model = load_for_inference(name_or_path)
    _check_gradients(model, name_or_path)
    # Gradients and integrals need more digits than half precision has.
    return model.float()


def _check_gradients(model: PreTrainedModel, name: str) -> None:
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise ConfigError(
            f"{name} was prepared for answering and gives no gradients: make the session by ChatSession.from_pretrained, or of "
            "a model as from_pretrained loads it."
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise ConfigError(
            f"{name} is quantized, and its weights have no gradients: explain the model that it was made from."
        )

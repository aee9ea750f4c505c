"""The page of an explanation, in a real browser: on a phone, on a desk, on paper, in English and in Chinese."""

import base64
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig, MambaForCausalLM

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, ChatSession
from chatgpt_hf.errors import DataError, OutputError
from chatgpt_hf.interpretability.explanation import Texts, corpus_texts, explain
from chatgpt_hf.interpretability.page import MAX_BYTES, render_page, write_page
from chatgpt_hf.interpretability.passage import passage_of_answer, passage_of_text

pytest.importorskip("captum", reason="needs captum: pip install 'chatgpt-hf[explain]'")

TEXTS = {
    "english": 'A cat number 3 looks at the river.\nIt is red & <b>blue</b>, "as" blue as the sky above, and there are 5 others.',
    "chinese": "你好！我是一个小模型。床前明月光，疑是地上霜。🦥 举头望明月，低头思故乡。",
}


@pytest.fixture(scope="module")
def both(chat_folder: Path) -> tuple:
    return AutoModelForCausalLM.from_pretrained(chat_folder), AutoTokenizer.from_pretrained(chat_folder)


@pytest.fixture(scope="module")
def texts(both: tuple, corpus_file: Path) -> Texts:
    return corpus_texts(*both, str(corpus_file))


@pytest.fixture(scope="module")
def pages(both: tuple, texts: Texts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model, tokenizer = both
    folder = tmp_path_factory.mktemp("pages")
    passages = {name: passage_of_text(model, tokenizer, text) for name, text in TEXTS.items()}
    session = ChatSession(model, tokenizer, do_sample=False)
    session.reply("你好")
    passages["answer"] = passage_of_answer(model, tokenizer, session.ending.prompt_ids, session.ending.answer_ids)
    return {
        name: write_page(
            explain(model, tokenizer, passage, name="Tiny <model>", texts=texts), tokenizer, folder / f"{name}.html"
        )
        for name, passage in passages.items()
    }


def payload(page: str) -> dict[str, Any]:
    (packed,) = re.findall(r'id="payload">([^<]*)<', page)
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_texts(both: tuple, texts: Texts, tmp_path: Path) -> None:
    assert {len(row) for row in texts.lens_rows + texts.ablation_rows} == {128}
    assert not set(texts.lens_rows) & set(texts.ablation_rows)
    (tmp_path / "short.txt").write_text("A cat.")
    with pytest.raises(DataError, match=r"short\.txt is too short"):
        corpus_texts(*both, str(tmp_path / "short.txt"))


def test_what_is_in_it(pages: dict[str, Path], both: tuple) -> None:
    page = pages["english"].read_text(encoding="utf-8")
    assert len(page.encode()) < 500_000
    # Nothing to fetch; addresses of other machines do not even occur.
    assert not re.findall(r"https?://|src=|href=|url\(|@import", page)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert "Tiny &lt;model&gt;" in page
    assert "<b>blue" not in page
    assert "sdpa attention gives no weights" in page
    data = payload(page)
    model, tokenizer = both
    passage = passage_of_text(model, tokenizer, TEXTS["english"])
    assert len(data["labels"]) == len(passage.ids) == len(data["surprise"]) + 1
    with torch.no_grad():
        logs = model(passage.tensor(model)).logits[0].log_softmax(-1)
    assert data["surprise"][4][0] == pytest.approx(-logs[4, passage.ids[5]].item(), rel=1e-3)
    assert len(data["lenses"]) == 2
    assert data["lenses"][0]["rank"][-1] == data["lenses"][1]["rank"][-1]
    for section in ("surprise", "attribution", "lens", "attention", "heads", "ablation", "method"):
        assert f'<section id="{section}">' in page


def test_an_answer(pages: dict[str, Path]) -> None:
    page = pages["answer"].read_text(encoding="utf-8")
    assert "the answer" in page
    assert "你好！我是一个小模型。" in re.findall(r"<q>(.*?)</q>", page, flags=re.DOTALL)[0]
    assert page.count("plus prompt") > 3


def test_a_model_in_which_less_can_be_seen(both: tuple) -> None:
    tokenizer = both[1]
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4)
    model = MambaForCausalLM(config).eval()
    passage = passage_of_text(model, tokenizer, "A cat")
    found = explain(model, tokenizer, passage, name="mamba")
    page = render_page(found, tokenizer)
    assert (found.maps, found.lens, found.heads) == (None, None, None)
    assert found.attributions["integrated_gradients"].error < 0.01
    for what in ("Attention", "Logit lens", "The heads"):
        assert any(note.startswith(f"{what} is left out. MambaForCausalLM") for note in found.notes)
        assert f"{what} is left out." in page


def test_one_token_and_no_bos(both: tuple) -> None:
    model, tokenizer = both[0], AutoTokenizer.from_pretrained(both[1].name_or_path)
    tokenizer.bos_token = None
    passage = passage_of_text(model, tokenizer, "A")
    assert (len(passage.ids), passage.begin) == (1, 0)
    found = explain(model, tokenizer, passage, name="tiny")
    assert found.surprise == ()
    assert found.flow.tolist() == [1]
    assert "What it hangs on" in render_page(found, tokenizer)


@pytest.mark.slow
def test_a_long_text_makes_no_large_page(both: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = both[1]
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 8, "hidden_size": 32, "intermediate_size": 32}
    model = ChatGPTForCausalLM(ChatGPTConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes)).eval()
    # Sharp maps like a trained model's; all the same weight everywhere would be packed to nothing.
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.normal_(std=0.5)
            layer.self_attn.k_proj.weight.normal_(std=0.5)
    monkeypatch.setattr("chatgpt_hf.interpretability.explanation.METHODS", ("gradient_x_input",))
    passage = passage_of_text(model, tokenizer, " ".join(f"cat{number}" for number in range(60)))
    found = explain(model, tokenizer, passage, name="long")
    assert len(passage.ids) > 300
    assert any(note.startswith("Attention flow is left out") for note in found.notes)
    for limit, heads in ((MAX_BYTES, 8), (600_000, 1)):
        monkeypatch.setattr("chatgpt_hf.interpretability.page.MAX_BYTES", limit)
        page = render_page(found, tokenizer)
        assert len(page.encode()) < limit
        assert payload(page)["attention"]["heads"] == heads
        assert ("mean of its heads" in page) == (heads == 1)
        assert f"The first {len(passage.ids) - 256} tokens are left out" in page
    monkeypatch.setattr("chatgpt_hf.interpretability.page.MAX_BYTES", 100_000)
    with pytest.raises(OutputError, match="explain a shorter text"):
        render_page(found, tokenizer)


def test_mistakes(both: tuple, tmp_path: Path, pages: dict[str, Path]) -> None:
    model, tokenizer = both
    found = explain(model, tokenizer, passage_of_text(model, tokenizer, "A"), name="tiny")
    with pytest.raises(OutputError, match="is a folder"):
        write_page(found, tokenizer, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_page(found, tokenizer, tmp_path / "file" / "page.html")


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file as a reader does; in the end there was no request but for it, and no error."""
    contexts, requests, errors = [], [], []

    def start(file: Path, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(900_000)  # a guard against hanging
        context.on("request", lambda request: requests.append(request.url))
        context.on("weberror", lambda error: errors.append(str(error.error)))
        context.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page = context.new_page()
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield start
    for context in contexts:
        context.close()
    assert errors == []
    assert [url for url in requests if not url.startswith("file:")] == []
    assert len(requests) == len(contexts)


# Boxes of what is read, none of which may lie on another; of nested ones the innermost.
OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll("h1, h2, h3, p, figcaption, .scroll, .maps canvas, .bar, dt, dd, summary, .panel")]
    .filter((e) => e.checkVisibility() && e.textContent.trim() + e.tagName.replace(/[^CANVAS]/g, "") !== "")
    .filter((e, _, all) => !all.some((other) => other !== e && e.contains(other)))
    .map((e) => [e, e.getBoundingClientRect()]).filter(([, box]) => box.height > 0);
  const found = [];
  boxes.forEach(([a, x], i) => boxes.slice(i + 1).forEach(([b, y]) => {
    if (Math.min(x.right, y.right) - Math.max(x.left, y.left) > 1 && Math.min(x.bottom, y.bottom) - Math.max(x.top, y.top) > 1)
      found.push(`${a.outerHTML.slice(0, 80)} and ${b.outerHTML.slice(0, 80)}`);
  }));
  return found;
}"""
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESK = {"viewport": {"width": 1280, "height": 800}}


@pytest.mark.slow
@pytest.mark.parametrize("device", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("name", ["english", "chinese", "answer"])
def test_in_a_browser(
    open_page: Callable[..., Any], pages: dict[str, Path], name: str, device: dict[str, Any], tmp_path: Path
) -> None:
    page = open_page(pages[name], **device)
    width = device["viewport"]["width"]
    press = "tap" if device is PHONE else "click"
    # The texts can be selected, and are what was written.
    selected = page.evaluate(
        """() => { const range = document.createRange(); range.selectNodeContents(document.querySelector("#surprise .tokens"));
        getSelection().removeAllRanges(); getSelection().addRange(range); return getSelection().toString(); }"""
    )
    if name in TEXTS:
        assert TEXTS[name] in selected.replace("↵", "")
    assert page.evaluate("getComputedStyle(document.querySelector('#surprise .tokens span')).userSelect") == "auto"
    getattr(page.locator("#surprise .tokens span").nth(6), press)()
    expected = "the model was given it" if name == "answer" else r"a surprise of [\d.]+ nats"
    assert re.search(expected, page.inner_text("#surprise-panel"))
    getattr(page.locator(".lens").first.locator("td").nth(5), press)()
    assert re.search(r"has rank \d+ and", page.inner_text("#lens .panel >> nth=0"))
    assert page.locator("#lens .panel td").count() == 10
    getattr(page.locator("#attribution .strip").first.locator("span").nth(3), press)()
    assert re.search(r": -?[\d.]+ nats$", page.locator("#attribution .strip .panel").first.inner_text())
    canvas = page.locator("#attention-maps canvas")
    assert canvas.count() == 2
    getattr(canvas.nth(1), press)()
    assert page.input_value("#attention-choice select") == "2"
    getattr(page.locator("#attention-text span").nth(4), press)()
    assert page.inner_text("#attention-panel").startswith("layer 0, head 1")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERLAPS) == []
    page.screenshot(path=tmp_path / f"{name}-{width}.png", full_page=True)


@pytest.mark.slow
def test_a_character_of_several_tokens(open_page: Callable[..., Any], pages: dict[str, Path]) -> None:
    page = open_page(pages["chinese"])
    page.locator("#surprise .tokens span", has_text="🦥").click()
    shown = page.inner_text("#surprise-panel")
    parts = re.findall(r"^<([0-9A-F ]+)>(?:=🦥)?:", shown, flags=re.MULTILINE)
    assert bytes.fromhex(" ".join(parts)).decode() == "🦥"


# The lowest contrast of a text on what lies behind it, as WCAG 2 defines it.
CONTRAST = """() => {
  const numbers = (color) => (color.match(/[\\d.]+/g) || []).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((value, i) => a * value + (1 - a) * below[i]);
  const backdrop = (e) => e ? over(numbers(getComputedStyle(e).backgroundColor), backdrop(e.parentElement)) : [255, 255, 255];
  const luminance = (color) => color.map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  return Math.min(...[...document.querySelectorAll("main *")]
    .filter((e) => e.checkVisibility() && [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((e) => {
      const [low, high] = [luminance(backdrop(e)), luminance(numbers(getComputedStyle(e).color))].sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05);
    }));
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(open_page: Callable[..., Any], pages: dict[str, Path], scheme: str) -> None:
    for name in ("english", "chinese", "answer"):
        page = open_page(pages[name], color_scheme=scheme)
        # The strongest shade of both kinds is looked at, whether the text has it or not.
        page.evaluate(
            """() => ["plus", "minus"].forEach((kind, i) => {
              const span = document.querySelectorAll("#attribution .tokens span")[i];
              span.className = kind; span.style.setProperty("--v", 1); })"""
        )
        assert page.evaluate(CONTRAST) > 4.5
        # In the dark a strong shade is a light one.
        assert "dark" not in page.inner_text("main").lower()


@pytest.mark.slow
def test_on_paper_and_in_the_dark(open_page: Callable[..., Any], pages: dict[str, Path], tmp_path: Path) -> None:
    page = open_page(pages["chinese"], color_scheme="dark")
    dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every((c) => c < 64)"
    assert page.evaluate(dark)
    page.screenshot(path=tmp_path / "dark.png", full_page=True)
    page.emulate_media(media="print")
    assert not page.evaluate(dark)
    assert page.evaluate(OVERLAPS) == []
    # There is nothing to tap, and nothing folded away.
    page.evaluate("document.querySelector('#ablation').append(document.createElement('details'))")
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").stat().st_size > 10_000
    assert page.evaluate("document.querySelector('#ablation > details').open")
    assert " tap " not in page.inner_text("main").lower()
    assert "takes most from" in page.inner_text("main")


@pytest.mark.slow
def test_without_scripts(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["english"].as_uri())
    assert "A cat number 3" in page.inner_text("#surprise .tokens")
    assert page.locator(".lens td").count() > 50
    context.close()

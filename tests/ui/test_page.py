"""The chat page in a real browser: user actions, and things that the page must never do."""

import re
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from forking import ForkServer
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatgpt_hf import ChatSession
from chatgpt_hf.errors import ContentFiltered

gradio = pytest.importorskip("gradio", reason="needs gradio: pip install 'chatgpt-hf[ui]'")

from chatgpt_hf.interpretability.surprise import Candidate, TokenProbability  # noqa: E402
from chatgpt_hf.ui import build_page  # noqa: E402
from chatgpt_hf.ui.page import Handlers, Sessions, conversation_of, launch_page, shown_ids  # noqa: E402
from chatgpt_hf.ui.tokens import tokens_html  # noqa: E402

LENGTH = 60
# Only ends a test that hangs; far longer than anything here takes on a slow and busy machine.
PATIENCE = 900


class Request:
    """The part of a Gradio request that handlers use."""

    def __init__(self, session_hash: str) -> None:
        self.session_hash = session_hash


def test_one_session_for_each_page(chat_folder: Path) -> None:
    made: list[ChatSession] = []

    def make() -> ChatSession:
        made.append(ChatSession.from_pretrained(chat_folder))
        return made[-1]

    sessions = Sessions(make, limit=2)
    first, second = sessions.of(Request("a")), sessions.of(Request("b"))
    assert first is not second
    assert sessions.of(Request("a")) is first
    # The third replaces the session that was idle longest.
    sessions.of(Request("c"))
    assert sessions.of(Request("a")) is first
    assert sessions.of(Request("b")) is not second
    sessions.drop(Request("b"))
    sessions.drop(Request("never seen"))
    assert len(made) == 4


def test_one_answer_at_a_time_in_a_page(chat_folder: Path) -> None:
    handlers = Handlers(Sessions(lambda: ChatSession.from_pretrained(chat_folder)))
    here, there = Request("a"), Request("b")
    history, before, _ = handlers.ask(" Hello! ", [], here)
    assert (history, before) == ([{"role": "user", "content": "Hello!"}], [])
    answer = handlers.answer(history, before, "", 0, 1.0, 50, 40, None, here)
    next(answer)
    for again in (
        lambda: handlers.ask("Smile", history, here),
        lambda: handlers.regenerate(history, here),
        lambda: handlers.undo(history, here),
    ):
        with pytest.raises(gradio.Error, match="stop it"):
            again()
    assert handlers.ask("Smile", [], there)[0]
    # Gradio closes the generator when the page is closed.
    answer.close()
    assert handlers.undo(history, here) == ([], "Hello!")
    *_, (history, _, _) = handlers.answer(history, before, "", 0, 1.0, 50, 40, None, here)
    assert conversation_of(history)[-1] == {"role": "assistant", "content": "Hi! How are you?"}
    # Neither page sees the other's turns.
    *_, (history, _, _) = handlers.answer([{"role": "user", "content": "Smile"}], [], "", 0, 1.0, 50, 40, None, there)
    assert history[-1]["content"] == "😀👍🏽 yes 🎉"
    assert list(handlers.answer(history, [], "", 0, 1.0, 50, 40, None, there)) == []


def test_a_page_whose_model_abstains(chat_folder: Path) -> None:
    handlers = Handlers(
        Sessions(lambda: ChatSession.from_pretrained(chat_folder, abstain=-0.02, abstain_text="No idea."))
    )
    here = Request("a")
    for question, answer, notice in (
        ("Hello!", "Hi! How are you?", ""),
        ("Is the river red?", "No idea.", "The model abstained, because it was not sure enough of its answer."),
    ):
        *_, (history, _, said) = handlers.answer(
            [{"role": "user", "content": question}], [], "", 0, 1.0, 50, 40, None, here
        )
        assert (history[-1]["content"], said) == (answer, notice)
    # The withheld answer is not in the panel.
    assert handlers.tokens(True, here) == ""


def test_a_pages_history() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]
    history = [{"role": "user", "content": "unanswered"}, {"role": "user", "content": parts}]
    assert conversation_of(history) == [{"role": "user", "content": "unanswered\n\none two"}]
    assert conversation_of([]) == []


def test_tokens_of_what_was_shown(chat_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    ids = [*tokenizer.encode("Hi! How are you?", add_special_tokens=False), tokenizer.eos_token_id]
    assert shown_ids(tokenizer, ids, "Hi! How are you?") == ids
    assert tokenizer.decode(shown_ids(tokenizer, ids, "Hi! How")).strip() == "Hi! How"
    assert shown_ids(tokenizer, ids, "Hi, changed by a filter") == []
    assert shown_ids(tokenizer, ids, "") == []


def test_tokens_are_escaped() -> None:
    other = Candidate(2, "<script>", 0.0004)
    page = tokens_html([TokenProbability(1, '<img src="x">\n', 0.25, 1.0, (other,))])
    assert "<script>" not in page
    assert "<img" not in page
    assert page.count("<br>") == 1
    # The token itself is always among the shown candidates.
    assert page.count('class="row') == 2
    assert page.count("25.0 %") == 2
    assert "&lt;0.1 %" in page
    assert tokens_html([]) == ""


def test_mistakes(refused: Callable[..., str], chat_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refused("ui", chat_folder, "--port", port)
    assert str(port) in message
    assert "--port" in message
    base = shutil.copytree(chat_folder, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    assert "no chat template" in refused("ui", base)
    (base / "tokenizer.json").unlink()
    assert "tokenizer" in refused("ui", base)
    assert "temperature" in refused("ui", chat_folder, "--temperature", "-1")


def test_without_gradio(refused: Callable[..., str], chat_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("chatgpt_hf.ui", "chatgpt_hf.ui.page"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'chatgpt-hf[ui]'" in refused("ui", chat_folder)


@pytest.mark.slow
def test_the_command(chat_folder: Path, fork_server: ForkServer, free_port: Callable[[], int], tmp_path: Path) -> None:
    port = free_port()
    options = ["--port", str(port), "--system", "Be brief.", "--temperature", "0.5"]
    with fork_server.running(tmp_path, arguments=["ui", str(chat_folder), *options]) as process:
        assert any(f"http://127.0.0.1:{port}/" in line for line in process.output)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert "Be brief." in answer.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0


@dataclass
class Server:
    """A served page with its model.

    Attributes:
        held: The gate that counts the model's steps, and blocks it where a test wants.
        outside: Addresses of other machines that the server connected to.
        forgotten: One entry for each time that a page told the server that another conversation was opened.
        stops: One entry for each time that an answer was stopped.
    """

    address: str
    model: Any
    tokenizer: Any
    held: Any
    outside: list[Any]
    forgotten: list[None]
    stops: list[None]


class Moderation:
    """Refuses messages with `bad`, and ends an answer before `are`."""

    class Filter:
        finish_reason: str | None = None
        said = ""

        def feed(self, piece: str) -> str:
            if "are" in piece:
                self.finish_reason = "content_filter"
                return ""
            return piece

        def finish(self) -> str:
            return ""

    def check(self, text: str) -> None:
        if "bad" in text:
            raise ContentFiltered("The message is refused: it is <b>bad</b>.")

    def filter(self) -> Any:
        return self.Filter()


def counted(function: Callable[..., None], calls: list[None]) -> Callable[..., None]:
    """Wraps a function to record its calls."""

    @wraps(function)
    def noting(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)
        calls.append(None)

    return noting


@pytest.fixture(scope="module")
def serve(chat_folder: Path, free_port: Callable[[], int], gate: Any) -> Iterator[Callable[..., Server]]:
    """Serves pages of the tiny chat model."""
    pages = []
    patch = pytest.MonkeyPatch()
    connect = socket.socket.connect
    outside: list[Any] = []

    def watched(self: socket.socket, address: Any) -> Any:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            outside.append(address)
        return connect(self, address)

    patch.setattr(socket.socket, "connect", watched)
    forgotten: list[None] = []
    stops: list[None] = []
    patch.setattr(Handlers, "forget", counted(Handlers.forget, forgotten))
    patch.setattr(ChatSession, "stop", counted(ChatSession.stop, stops))

    def start(**options: Any) -> Server:
        model = AutoModelForCausalLM.from_pretrained(chat_folder)
        tokenizer = AutoTokenizer.from_pretrained(chat_folder)
        page = build_page(model, tokenizer, title="Tiny", **options)
        pages.append(page)
        address = launch_page(page, port=free_port())
        return Server(address, model, tokenizer, gate(model), outside, forgotten, stops)

    yield start
    for page in pages:
        page.close(verbose=False)
    patch.undo()


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server]) -> Server:
    return serve()


@pytest.fixture(scope="module")
def babbler(serve: Callable[..., Server]) -> Server:
    """A model whose answers always have `LENGTH` tokens."""
    return serve(min_new_tokens=LENGTH, max_new_tokens=LENGTH)


@dataclass
class Tab:
    """A page in the browser, with the actions of its user."""

    page: Any
    server: Server

    def opens(self, act: Callable[[], object]) -> None:
        """Does something that opens a conversation, and waits until the server knows: then nothing is in progress."""
        before = len(self.server.forgotten)
        act()
        wait_until(lambda: len(self.server.forgotten) > before)

    def visit(self) -> None:
        """Opens the page."""
        self.opens(lambda: self.page.goto(self.server.address))
        self.page.wait_for_selector("#message textarea")
        self.page.wait_for_function("window.pages && document.querySelector('#title')")

    def send(self, text: str) -> None:
        self.page.fill("#message textarea", text)
        self.page.press("#message textarea", "Enter")

    def ask(self, text: str) -> str:
        """Sends a message and returns the whole answer."""
        self.send(text)
        self.page.locator("#chat .message.user").filter(has_text=text).last.wait_for()
        return self.settled()

    def settled(self) -> str:
        """The last answer, once it is complete."""
        self.page.wait_for_function("document.querySelector('#message textarea')?.disabled === false")
        self.page.wait_for_function("document.querySelector('#new')?.disabled === false")
        return self.messages("bot")[-1]

    def messages(self, who: str) -> list[str]:
        return [text.strip() for text in self.page.locator(f"#chat .message.{who}").all_inner_texts()]

    def tokens(self) -> Any:
        return self.page.locator(".token")

    def conversations(self) -> list[str]:
        return [text.strip() for text in self.page.locator("#conversations label").all_inner_texts()]

    def button(self, label: str) -> Any:
        return self.page.locator("#chat").get_by_role("button", name=label, exact=True).last

    def shot(self, file: Path) -> None:
        self.page.screenshot(path=file, animations="disabled")


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Opens pages in separate browser profiles; checks at the end that no request went to another machine."""
    contexts = []
    requests: list[str] = []
    errors: list[str] = []

    def start(server: Server, **options: Any) -> Tab:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append((context, server))
        context.set_default_timeout(PATIENCE * 1000)
        context.on("request", lambda request: requests.append(request.url))
        context.on("weberror", lambda error: errors.append(str(error.error)))
        tab = Tab(context.new_page(), server)
        tab.visit()
        return tab

    yield start
    outside = [address for _, server in contexts for address in server.outside]
    for context, _ in contexts:
        context.close()
    assert errors == []
    assert [url for url in requests if not re.match(r"(http://127\.0\.0\.1:\d+/|data:|blob:)", url)] == []
    assert outside == []


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_conversation(
    server: Server, open_tab: Callable[..., Tab], cli: Callable[..., Any], chat_folder: Path, tmp_path: Path
) -> None:
    tab = open_tab(server)
    session = ChatSession(server.model, server.tokenizer)
    answer = tab.ask("Who are you?")
    assert answer == session.reply("Who are you?")
    assert answer == cli("chat", chat_folder, "--prompt", "Who are you?").out.strip()
    # The second turn sees the first.
    assert tab.ask("Smile") == session.reply("Smile")
    assert tab.messages("user") == ["Who are you?", "Smile"]
    # The panel shows all tokens of the answer.
    ids = session.ending.answer_ids
    wait_until(lambda: tab.tokens().count() == len(ids))
    tab.tokens().first.hover()
    card = tab.tokens().first.locator(".card")
    card.wait_for(state="visible")
    assert card.locator(".row").count() == 5
    assert re.search(r"\d %", card.inner_text())
    tab.shot(tmp_path / "light.png")
    # Cards also work by keyboard, one at a time.
    tab.page.mouse.move(0, 0)
    tab.tokens().nth(2).focus()
    tab.tokens().nth(2).locator(".card").wait_for(state="visible")
    card.wait_for(state="hidden")
    tab.page.locator("#wanted input").uncheck()
    tab.page.locator("#panel").wait_for(state="hidden")
    tab.page.locator("#wanted input").check()
    wait_until(lambda: tab.tokens().count() == len(ids))


@pytest.mark.slow
def test_regenerate_edit_undo(server: Server, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(server)
    first = tab.ask("Hello!")
    steps = server.held.steps
    tab.button("Retry").click()
    wait_until(lambda: server.held.steps > steps)
    assert tab.settled() == first
    assert tab.messages("user") == ["Hello!"]
    tab.button("Edit").click()
    tab.page.locator("#chat textarea").fill("Count to five.")
    tab.button("Submit").click()
    wait_until(lambda: tab.messages("bot") == ["1, 2, 3, 4, 5."])
    assert tab.messages("user") == ["Count to five."]
    tab.settled()
    tab.button("Undo").click()
    wait_until(lambda: tab.messages("bot") == [])
    wait_until(lambda: tab.page.input_value("#message textarea") == "Count to five.")


@pytest.mark.slow
def test_stop(babbler: Server, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(babbler)
    with babbler.held as held:
        # It streams: the answer grows while the model continues. Few steps first: after the ninth this model adds no visible text.
        held.give(5)
        tab.send("Hello!")
        held.wait()
        wait_until(lambda: bool(tab.messages("bot")) and len(tab.messages("bot")[0]) > 2)
        early = tab.messages("bot")[0]
        held.give(25)
        wait_until(lambda: len(tab.messages("bot")[0]) > len(early))
        held.wait()
        steps, stops = held.steps, len(babbler.stops)
        tab.page.locator("#message button.stop-button").click()
        wait_until(lambda: len(babbler.stops) > stops)
        held.open()
        answer = tab.settled()
        wait_until(lambda: tab.tokens().count() > 0)
        # The blocked step was the last of the answer. The panel takes one more forward pass.
        assert held.steps == steps + 2
        assert answer.startswith(early[:2])
        assert tab.tokens().count() == steps + 1 < LENGTH
        # Later steps of the model are not for that answer.
        ChatSession(babbler.model, babbler.tokenizer, min_new_tokens=LENGTH, max_new_tokens=LENGTH).reply("Hello!")
        assert held.steps == steps + 2 + LENGTH
    # The text so far is part of the conversation.
    tab.opens(tab.page.reload)
    wait_until(lambda: tab.messages("bot") == [answer])


@pytest.mark.slow
def test_closing_the_page_stops_the_model(babbler: Server, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(babbler)
    with babbler.held as held:
        held.give(4)
        tab.send("Hello!")
        held.wait()
        steps, stops = held.steps, len(babbler.stops)
        tab.page.close()
        wait_until(lambda: len(babbler.stops) > stops)
        held.open()
        # The next page does not wait: the model does only the blocked step, the new answer and its panel.
        tab = open_tab(babbler)
        assert tab.ask("Hello!")
        wait_until(lambda: tab.tokens().count() > 0)
        assert held.steps == steps + 1 + LENGTH + 1


@pytest.mark.slow
def test_conversations_are_kept(server: Server, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(server)
    tab.ask("Hello!")
    tab.opens(tab.page.locator("#new").click)
    wait_until(lambda: tab.messages("user") == [])
    tab.ask("Who are you?")
    assert tab.conversations() == ["Who are you?", "Hello!"]
    tab.opens(tab.page.reload)
    wait_until(lambda: tab.messages("user") == ["Who are you?"])
    wait_until(lambda: tab.conversations() == ["Who are you?", "Hello!"])
    tab.opens(tab.page.locator("#conversations label").nth(1).click)
    wait_until(lambda: tab.messages("user") == ["Hello!"])
    wait_until(lambda: tab.messages("bot") == ["Hi! How are you?"])
    # Another tab of the same browser sees them, and neither tab overwrites the other's conversations.
    other = Tab(tab.page.context.new_page(), server)
    other.visit()
    wait_until(lambda: len(other.conversations()) == 2)
    tab.opens(tab.page.locator("#new").click)
    tab.ask("Smile")
    other.ask("Count to five.")
    assert set(other.conversations()) == {"Count to five.", "Smile", "Who are you?", "Hello!"}
    tab.opens(tab.page.locator("#chat").get_by_role("button", name="Clear").click)
    wait_until(lambda: tab.messages("user") == [])
    wait_until(lambda: set(tab.conversations()) == {"Count to five.", "Who are you?", "Hello!"})
    # Another browser does not have them.
    assert open_tab(server).conversations() == []


@pytest.mark.slow
def test_settings(server: Server, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(server)
    tab.page.locator("#settings button").first.click()
    tab.page.fill("#system textarea", "你好")
    assert tab.ask("Hello!") == ChatSession(server.model, server.tokenizer, system_prompt="你好").reply("Hello!")
    tab.page.locator("#max-new-tokens input[type=number]").fill("3")
    tab.page.locator("#max-new-tokens input[type=number]").press("Tab")
    tab.opens(tab.page.locator("#new").click)
    tab.ask("Who are you?")
    assert "cut off" in tab.page.inner_text("#notice")
    wait_until(lambda: tab.tokens().count() == 3)
    # The same seed gives the same sampled answer.
    for name, value in (("max-new-tokens", "20"), ("temperature", "2"), ("seed", "7")):
        tab.page.locator(f"#{name} input[type=number]").fill(value)
        tab.page.locator(f"#{name} input[type=number]").press("Tab")
    answers = []
    for seed in ("7", "7", "8"):
        tab.page.locator("#seed input").fill(seed)
        tab.page.locator("#seed input").press("Tab")
        tab.opens(tab.page.locator("#new").click)
        wait_until(lambda: tab.messages("user") == [])
        answers.append(tab.ask("never seen"))
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.slow
def test_refused_messages_are_not_lost(serve: Callable[..., Server], open_tab: Callable[..., Tab]) -> None:
    server = serve(moderation=Moderation())
    tab = open_tab(server)
    assert tab.ask("Smile")
    for text, reason in (("a bad word", "The message is refused"), ("long " * 300, "shorten the message")):
        tab.send(text)
        tab.page.get_by_text(reason).first.wait_for()
        wait_until(lambda: tab.messages("user") == ["Smile"])
        wait_until(lambda text=text: tab.page.input_value("#message textarea") == text.strip())
        assert len(tab.messages("bot")) == 1
    tab.opens(tab.page.locator("#new").click)
    assert tab.ask("Hello!") == "Hi! How"
    assert "moderation" in tab.page.inner_text("#notice")
    wait_until(lambda: tab.tokens().count() > 0)
    assert "are" not in tab.page.inner_text("#tokens")


@pytest.mark.slow
def test_pictures_from_elsewhere_are_not_fetched(server: Server, open_tab: Callable[..., Tab]) -> None:
    fetched = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
        tab = open_tab(server)
        tab.page.evaluate(
            "document.addEventListener('securitypolicyviolation', (e) => (window.refused ||= []).push(e.blockedURI))"
        )
        tab.send(f"![x](http://127.0.0.1:{elsewhere.server_port}/a.png) Hello!")
        tab.page.locator("#chat .message.user img").wait_for(state="attached")
        # The browser reports that the policy blocked the picture, so it does not load it later.
        tab.page.wait_for_function(f"window.refused?.some((address) => address.includes(':{elsewhere.server_port}/'))")
        tab.settled()
        elsewhere.shutdown()
    assert fetched == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(server: Server, open_tab: Callable[..., Tab], tmp_path: Path, scheme: str) -> None:
    tab = open_tab(server, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme=scheme)
    answer = tab.ask("Who are you?")
    assert answer
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    box = tab.page.locator("#message textarea").bounding_box()
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 844
    tab.shot(tmp_path / f"phone-{scheme}.png")
    wait_until(lambda: tab.tokens().count() > 0)
    tab.tokens().last.tap()
    card = tab.tokens().last.locator(".card")
    card.wait_for(state="visible")
    box = card.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.shot(tmp_path / f"phone-tokens-{scheme}.png")
    tab.page.get_by_role("button", name="Toggle Sidebar").tap()
    tab.page.locator("#new").wait_for(state="visible")
    tab.shot(tmp_path / f"phone-sidebar-{scheme}.png")
    tab.page.locator("#new").tap()
    wait_until(lambda: tab.messages("user") == [])


@pytest.mark.slow
def test_dark(server: Server, open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    tab = open_tab(server, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every((c) => c < 64)"
    wait_until(lambda: tab.page.evaluate(background))
    tab.ask("Count to five.")
    tab.ask("Who are you?")
    tab.tokens().nth(3).hover()
    tab.shot(tmp_path / "dark.png")
    tab.page.locator("#theme").click()
    wait_until(lambda: not tab.page.evaluate(background))
    tab.page.reload()
    tab.page.wait_for_selector("#message textarea")
    wait_until(lambda: not tab.page.evaluate(background))

"""The chat page: Gradio's components around `ChatSession`. Conversations stay in the browser (page.js)."""

import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib.resources import files
from inspect import signature
from itertools import groupby
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from accelerate.utils import set_seed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import context_length
from ..errors import ChatGPTError, ConfigError
from ..extras import needed_by
from ..inference.abstention import Abstention, choose_abstention
from ..inference.loading import load_for_generation
from ..inference.parameters import sampling
from ..inference.session import ChatSession
from ..interpretability.surprise import token_probabilities
from ..tokenization_chatgpt import load_tokenizer
from .tokens import tokens_html

# Gradio first: it brings what `web` and `gate` import, so where it is missing, the message names the extra with the page.
with needed_by("The page"):
    import gradio as gr
    from starlette.middleware import Middleware

    from ..web.connections import DEFAULT_LIMITS, ConnectionLimits, dampen_logs, guarded_protocol, within_open_files
    from ..web.hosts import Hosts
    from .gate import Gate

if TYPE_CHECKING:
    from ..moderation import Moderator

History = list[dict[str, Any]]

# How many answers can wait.
QUEUE = 32
# Pages whose state Gradio keeps; a stranger can open any number.
_PAGES = 64
# How long an open page may delay the end.
_CLOSING_SECONDS = 3
NOTICES = {
    "content_filter": "The answer was ended by moderation.",
    "length": "The answer was cut off at the maximum length in the settings.",
    "abstained": "The model abstained, because it was not sure enough of its answer.",
}


class Sessions:
    """One `ChatSession` per open page; beyond `limit` sessions, the one that was idle longest is dropped.

    The page keeps the conversation, so a dropped session costs only time.
    """

    def __init__(self, make: Callable[[], ChatSession], limit: int = 8) -> None:
        self._make = make
        self._limit = limit
        self._sessions: OrderedDict[str, ChatSession] = OrderedDict()
        self._lock = Lock()

    def of(self, request: gr.Request) -> ChatSession:
        """Returns the session of the page that sent a request."""
        page = str(request.session_hash)
        with self._lock:
            session = self._sessions.pop(page, None) or self._make()
            self._sessions[page] = session
            while len(self._sessions) > self._limit:
                self._sessions.popitem(last=False)
            return session

    def drop(self, request: gr.Request) -> None:
        """Drops the session of a closed page and stops its answer."""
        with self._lock:
            session = self._sessions.pop(str(request.session_hash), None)
        if session is not None:
            session.stop()


class Handlers:
    """Event handlers of the page."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        # Only one answer at a time is written; others wait in Gradio's queue.
        self._writing: ChatSession | None = None

    def ask(self, text: str, history: History, request: gr.Request) -> tuple[History, History, Any]:
        """Shows a new message. Like all question handlers, returns the new history, the old one, and the box."""
        self._refuse_while_writing(request)
        asked = [*history, {"role": "user", "content": text.strip()}] if text.strip() else history
        return asked, history, _writing("")

    def regenerate(self, history: History, request: gr.Request) -> tuple[History, History, Any]:
        """Removes the last answer, so that it can be replaced."""
        self._refuse_while_writing(request)
        question = max((i for i, message in enumerate(history) if message["role"] == "user"), default=-1)
        return history[: question + 1], history, _writing()

    def edit(self, history: History, edited: gr.EditData, request: gr.Request) -> tuple[History, History, Any]:
        """Goes back to a message and replaces it."""
        self._refuse_while_writing(request)
        index = edited.index[0] if isinstance(edited.index, (list, tuple)) else edited.index
        before = [*history]
        before[index] = {"role": "user", "content": edited.previous_value}
        return [*history[:index], {"role": "user", "content": edited.value}], before, _writing()

    def undo(self, history: History, request: gr.Request) -> tuple[History, str]:
        """Removes the last question and its answer; the question can be changed and sent again."""
        self._refuse_while_writing(request)
        question = max((i for i, message in enumerate(history) if message["role"] == "user"), default=0)
        return history[:question], text_of(history[question]) if history else ""

    def answer(
        self,
        history: History,
        before: History,
        system: str,
        temperature: float,
        top_p: float,
        top_k: int,
        max_new_tokens: int,
        seed: int | None,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Answers the last message; yields the history, and updates of the box and the line below it."""
        if not history or history[-1]["role"] != "user":
            return
        session = self._sessions.of(request)
        *earlier, asked = conversation_of(history)
        text = asked["content"]
        session.system_prompt = system.strip() or None
        session.reset()
        session.messages += earlier
        answer = ""
        self._writing = session
        try:
            if seed is not None:
                # NumPy's seeds have 32 bits.
                set_seed(int(seed) % 2**32)
            chosen = {"top_p": top_p, "top_k": int(top_k)} if temperature else {}
            session.set(max_new_tokens=int(max_new_tokens), **sampling(temperature), **chosen)
            for piece in session.stream(text):
                answer += piece
                yield [*history, {"role": "assistant", "content": answer.strip()}], gr.skip(), ""
        except ChatGPTError as error:
            gr.Warning(escape(str(error)), duration=20)
            yield before, gr.update(value=text_of(history[-1])), ""
            return
        finally:
            self._writing = None
        notice = NOTICES.get("abstained" if session.ending.abstained else session.ending.finish_reason or "", "")
        shown = [*history, {"role": "assistant", "content": answer.strip()}] if answer.strip() else history
        yield shown, gr.skip(), notice or ("" if answer.strip() else "The model gave an empty answer.")

    def stop(self, request: gr.Request) -> None:
        """Ends the answer; the text so far is kept."""
        self._sessions.of(request).stop()

    def tokens(self, wanted: bool, request: gr.Request) -> str:
        """The token panel of the last answer."""
        session = self._sessions.of(request)
        if not wanted or not session.ending.answer_ids:
            return ""
        ids = shown_ids(session.tokenizer, session.ending.answer_ids, session.messages[-1]["content"])
        # Moderation has not checked the alternatives, so they are not shown.
        top_k = 5 if session.moderation is None else 0
        return tokens_html(
            token_probabilities(session.model, session.tokenizer, session.ending.prompt_ids, ids, top_k=top_k)
        )

    def forget(self, request: gr.Request) -> None:
        """Resets the session when another conversation is opened: it has no last answer for the panel."""
        self._sessions.of(request).reset()

    def _refuse_while_writing(self, request: gr.Request) -> None:
        if self._sessions.of(request) is self._writing:
            raise gr.Error("The model is still answering: wait for the end, or stop it.", print_exception=False)


def text_of(message: dict[str, Any]) -> str:
    """The text of a Gradio message, whose content is a string or a list of parts."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def conversation_of(history: History) -> list[dict[str, str]]:
    """Converts a page's history to the format of chat templates. Joins unanswered questions with the next one."""
    return [
        {"role": role, "content": "\n\n".join(map(text_of, messages))}
        for role, messages in groupby(history, key=lambda message: message["role"])
    ]


def shown_ids(tokenizer: PreTrainedTokenizerBase, answer_ids: list[int], text: str) -> list[int]:
    """Returns the first tokens of an answer, as many as make up the shown text.

    Returns all of them if nothing was held back, and none if the text was changed.
    """

    def decoded(length: int) -> str:
        return str(tokenizer.decode(answer_ids[:length], skip_special_tokens=True)).strip()

    length = len(answer_ids)
    if decoded(length) != text:
        while length and len(decoded(length)) > len(text):
            length -= 1
    return answer_ids[:length] if text.startswith(decoded(length)) else []


def _writing(text: str | None = None) -> Any:
    """The state of the box while an answer is written, with a new text if one is given."""
    changes: dict[str, Any] = {} if text is None else {"value": text}
    return gr.update(submit_btn=False, stop_btn=True, interactive=False, **changes)


def build_page(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    title: str = "chatgpt-hf",
    system_prompt: str | None = None,
    moderation: "Moderator | None" = None,
    abstain: Abstention | float | None = None,
    **generation: Any,
) -> gr.Blocks:
    """Builds the page of a chat model; `launch_page` starts it.

    Args:
        title: Title above the conversations and in the browser's tab.
        system_prompt: System prompt of new conversations; it can be changed on the page.
        moderation: See `ChatSession`.
        abstain: See `ChatSession`.
        **generation: Initial values of the page's controls; the model sets the others.

    Raises:
        TokenizerError: If the tokenizer has no chat template or does not fit the model.
        ConfigError: If `generation` contains an unknown field or an invalid value.
    """

    def session() -> ChatSession:
        options: dict[str, Any] = {"moderation": moderation, "abstain": abstain, **generation}
        return ChatSession(model, tokenizer, system_prompt=system_prompt, **options)

    config = session().generation_config
    # transformers' defaults, for values that the model does not set.
    heat = (1.0 if config.temperature is None else config.temperature) if config.do_sample else 0.0
    nucleus = 1.0 if config.top_p is None else config.top_p
    choices = 50 if config.top_k is None else config.top_k
    # A slider with a larger range would be unusable.
    positions = min(context_length(model), 32_768)
    sessions = Sessions(session)
    handlers = Handlers(sessions)

    with gr.Blocks(title=title, analytics_enabled=False, fill_height=True, fill_width=True) as page:
        with gr.Sidebar(open=False, width=300, elem_id="sidebar") as sidebar:
            gr.HTML(f"<h1>{escape(title)}</h1>", elem_id="title")
            new = gr.Button("New conversation", variant="primary", elem_id="new")
            saved = gr.Radio([], label="Conversations", show_label=False, container=False, elem_id="conversations")
            with gr.Accordion("Settings", open=False, elem_id="settings"):
                system = gr.Textbox(system_prompt or "", label="System prompt", lines=2, max_lines=8, elem_id="system")
                temperature = gr.Slider(
                    0,
                    max(2.0, heat),
                    heat,
                    step=0.05,
                    label="Temperature",
                    info="0 always takes the likeliest token.",
                    elem_id="temperature",
                )
                top_p = gr.Slider(0.01, 1, nucleus, step=0.01, label="Top-p", elem_id="top-p")
                top_k = gr.Slider(
                    0,
                    max(200, choices),
                    choices,
                    step=1,
                    label="Top-k",
                    info="0 means no limit.",
                    elem_id="top-k",
                )
                max_new_tokens = gr.Slider(
                    1,
                    positions,
                    min(config.max_new_tokens or 256, positions),
                    step=1,
                    label="Maximum answer length (tokens)",
                    elem_id="max-new-tokens",
                )
                seed = gr.Number(
                    None,
                    precision=0,
                    label="Seed",
                    placeholder="none",
                    info="Same seed, same answers.",
                    elem_id="seed",
                )
            wanted = gr.Checkbox(True, label="Token probabilities", container=False, elem_id="wanted")
            theme = gr.Button("Light / dark", size="sm", elem_id="theme")
        with gr.Row(elem_id="desk"):
            with gr.Column(scale=3, min_width=320, elem_id="talk"):
                chatbot = gr.Chatbot(
                    show_label=False,
                    container=False,
                    editable="user",
                    buttons=["copy"],
                    feedback_options=None,
                    allow_tags=False,
                    placeholder=f"<h2>{escape(title)}</h2>Say something.",
                    elem_id="chat",
                )
                message = gr.Textbox(
                    show_label=False,
                    label="Message",
                    placeholder="Message",
                    max_lines=8,
                    autofocus=True,
                    submit_btn=True,
                    elem_id="message",
                )
                notice = gr.HTML(elem_id="notice")
            with gr.Column(scale=1, min_width=320, elem_id="panel") as panel:
                gr.HTML(PANEL_HEAD)
                tokens = gr.HTML(elem_id="tokens")

        before = gr.State([])
        settings = [system, temperature, top_p, top_k, max_new_tokens, seed]
        quiet: dict[str, Any] = {"show_progress": "hidden"}

        def then_answer(asked: Any) -> None:
            """Adds the steps that follow a question of any kind."""
            save: dict[str, Any] = {
                "fn": None,
                "inputs": [saved, chatbot, system],
                "outputs": [saved, new],
            }
            (
                asked.success(**save, js="(...state) => pages.save(...state, true)")
                .then(
                    handlers.answer,
                    [chatbot, before, *settings],
                    [chatbot, message, notice],
                    concurrency_limit=1,
                    **quiet,
                )
                .then(
                    lambda: gr.update(submit_btn=True, stop_btn=False, interactive=True),
                    None,
                    message,
                    queue=False,
                    **quiet,
                )
                .then(**save, js="(...state) => pages.save(...state, false)")
                .then(handlers.tokens, wanted, tokens, **quiet)
            )

        question = [chatbot, before, message]
        then_answer(message.submit(handlers.ask, [message, chatbot], question, queue=False, **quiet))
        then_answer(chatbot.retry(handlers.regenerate, chatbot, question, queue=False, **quiet))
        then_answer(chatbot.edit(handlers.edit, chatbot, question, queue=False, **quiet))
        message.stop(handlers.stop, None, None, queue=False, **quiet)
        chatbot.undo(handlers.undo, chatbot, [chatbot, message], queue=False, **quiet).success(
            None,
            [saved, chatbot, system],
            [saved, new],
            js="(...state) => pages.save(...state, false)",
        )

        opened = [chatbot, system, saved, tokens, notice, sidebar]
        for event, source, js in (
            (page.load, system, "(system) => pages.start(system)"),
            (new.click, None, "() => pages.open(null)"),
            (saved.input, saved, "(id) => pages.open(id)"),
            (chatbot.clear, saved, "(id) => pages.remove(id)"),
        ):
            event(None, source, opened, js=js).then(handlers.forget, None, None, queue=False, **quiet)
        page.load(None, None, None, js="() => pages.showTheme()")
        theme.click(None, None, None, js="() => pages.toggleTheme()")
        wanted.change(lambda shown: gr.update(visible=shown), wanted, panel, queue=False, **quiet).then(
            handlers.tokens, wanted, tokens, **quiet
        )
        page.unload(sessions.drop)
    # Answers wait in a queue, and can be asked for in no other way.
    page.queue(max_size=QUEUE, api_open=False)
    return page


PANEL_HEAD = """<h3>Token probabilities</h3>
<div class="legend"><span>unlikely</span><i></i><span>likely</span></div>
<p>The model's own, before temperature, top&#8209;p and top&#8209;k. Point at or tap a token to see its
alternatives.</p>"""


def launch_page(
    page: gr.Blocks,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    allowed_hosts: Sequence[str] = (),
    connection_limits: ConnectionLimits = DEFAULT_LIMITS,
) -> str:
    """Starts a page in the background and returns its address.

    Args:
        allowed_hosts: Names that the page answers to besides its own; see `Hosts`.
        connection_limits: Deadlines and maximum number of the server's connections.

    Raises:
        ConfigError: If the port is in use or the host is not an address of this machine.
    """
    folder = files(__package__)
    # A model's text may link to pictures on other machines, which the browser would fetch.
    policy = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<script>{(folder / 'page.js').read_text(encoding='utf-8')}</script>"
    )
    # Turns off Gradio's own copy of every conversation in the browser; early releases of Gradio 6 have no such copy.
    history: dict[str, Any] = {"run_history": False} if "run_history" in signature(page.launch).parameters else {}
    limits = within_open_files(connection_limits)
    middleware = [
        Middleware(Hosts, listens=host, allowed=allowed_hosts),
        Middleware(Gate, functions=page.fns),
    ]
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            share=False,
            ssr_mode=False,
            quiet=True,
            show_error=True,
            footer_links=[],
            theme=gr.themes.Base(
                primary_hue="blue", neutral_hue="zinc", font=SANS, font_mono=["ui-monospace", "monospace"]
            ),
            css=(folder / "page.css").read_text(encoding="utf-8"),
            head=head,
            state_session_capacity=_PAGES,
            enable_monitoring=False,
            app_kwargs={"middleware": middleware},
            **history,
        )
    except OSError as error:
        raise ConfigError(
            f"The page cannot be served at {host}, port {port}: the port is in use, or the host is not an address of this "
            "machine. Choose another with --port or --host."
        ) from error
    # Gradio makes its own server, and this is where the server looks when a connection comes.
    page.server.config.http_protocol_class = guarded_protocol(limits)
    dampen_logs()
    return str(address)


SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]


def serve_page(
    name_or_path: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    allowed_hosts: Sequence[str] = (),
    quantize: str | None = None,
    abstain: Abstention | float | bool | None = None,
    abstain_text: str | None = None,
    started: Callable[[str], None] = print,
    **options: Any,
) -> None:
    """Serves the page of a chat model, from a folder or Hub id, until SIGINT or SIGTERM; for the main thread.

    Args:
        allowed_hosts: See `launch_page`.
        quantize: See `load_for_generation`.
        abstain: See `choose_abstention`.
        abstain_text: See `choose_abstention`.
        started: Called with the address once the page is ready.
        **options: Options of `build_page`.
    """
    options.setdefault(
        "title", Path(name_or_path).resolve().name if Path(name_or_path).is_dir() else str(name_or_path)
    )
    model, tokenizer = load_for_generation(name_or_path, quantize), load_tokenizer(str(name_or_path))
    options["abstain"] = choose_abstention(name_or_path, tokenizer, abstain, abstain_text, quantize=quantize)
    page = build_page(model, tokenizer, **options)
    address = launch_page(page, host, port, allowed_hosts=allowed_hosts)
    # Gradio's own `block_thread` misses a signal that comes before it waits, and lets open pages delay the end.
    ended = Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        started(address)
        ended.wait()
    finally:
        page.server.config.timeout_graceful_shutdown = _CLOSING_SECONDS
        page.close(verbose=False)
        for number, handler in before.items():
            signal.signal(number, handler)

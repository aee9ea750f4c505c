"""The model behind the server's routes: token ids in, text out, one request at a time or with continuous batching."""

import asyncio
import contextlib
import queue
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import cached_property
from threading import Event
from typing import Any, TypeAlias

from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cli.serving.utils import (
    CBStreamer,
    GenerateManager,
    ReasoningText,
    ToolCall,
    get_response_template,
    set_torch_seed,
)
from transformers.utils.chat_parsing import ResponseParser

from ..chat_templates import ShownOfTools, shown_of_tools
from ..checkpoints import check_tokenizer_fits, context_length
from ..errors import ConfigError
from ..inference.abstention import Abstention, Draft
from ..inference.cache import PrefixCache
from ..inference.continuous import check_continuous_batching, prepare_batching
from ..inference.filters import FilterChain, StopStrings, TextFilter
from ..inference.parameters import generation_config_with, sampling
from ..inference.texts import together
from ..moderation import Moderator
from ..tokenization_chatgpt import CHAT_TEMPLATE, RESPONSE_TEMPLATE

# The longest answer if neither the request nor the model says: a request without a limit must not occupy the server.
MAX_TOKENS = 256


class ContextTooLong(ConfigError):
    """The prompt leaves no room for an answer, or the requested answer cannot fit."""


class GenerationFailed(RuntimeError):
    """The model itself failed: an error of the server, not of the request."""


@dataclass(frozen=True)
class Ended:
    """The last item that `Engine.generate` yields.

    Attributes:
        finish_reason: `stop`, `length`, `tool_calls` or `content_filter`.
        completion_tokens: Number of generated tokens, including the end mark.
        abstained: True if the model was not sure enough of its answer; then the tokens are those of the withheld one.
    """

    finish_reason: str
    completion_tokens: int
    abstained: bool = False


Item: TypeAlias = str | ToolCall | ReasoningText | Ended


@dataclass(frozen=True)
class Failure:
    """Put among the pieces of an answer if the model failed. transformers' own object for this also has a `msg`."""

    msg: str


class Engine:
    """Runs a model with its tokenizer.

    Args:
        name: The model's name for clients.
        continuous_batching: Let requests share the model's steps (paged attention). Then requests with `seed`,
            penalties, `min_p` or `logit_bias` are refused, because transformers applies only temperature, top_k and
            top_p per request.
        max_concurrent: Number of requests that fit into the paged cache.
        prefix: Generates the answers without continuous batching, and keeps what the last one computed; the model
            itself if not given.
        moderation: Checks every incoming message, and every answer before it is sent.
        abstain: When the model says that it does not know; see `ChatSession`. Not with continuous batching.
        **generation: Fields of `GenerationConfig` that override the model's own.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        continuous_batching: bool = False,
        max_concurrent: int = 16,
        moderation: Moderator | None = None,
        prefix: PrefixCache | None = None,
        abstain: Abstention | None = None,
        **generation: Any,
    ) -> None:
        if abstain is not None and continuous_batching:
            raise ConfigError(
                "Abstention judges one answer at a time, and continuous batching computes many: leave one of them out."
            )
        check_tokenizer_fits(model, tokenizer)
        self.name = name
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.moderation = moderation
        self.context = context_length(model)
        self._defaults = generation_config_with(model.generation_config, **generation)
        if self._defaults.max_new_tokens is None:
            self._defaults.max_new_tokens = MAX_TOKENS
        self.abstention = abstain
        if abstain is not None and prefix is None:
            # The answer begins with what the judged one has computed.
            prefix = PrefixCache(self.model)
        self._generator: Any = prefix or self.model
        self.batching: ContinuousBatching | None = None
        self._one_by_one: GenerateManager | None = None
        if continuous_batching:
            self.batching = ContinuousBatching(model, self._defaults, self.context, max_concurrent)
        else:
            self._one_by_one = GenerateManager()

    @cached_property
    def shown_of_tools(self) -> ShownOfTools:
        """What the model's chat template shows of tools; raises like `chat_templates.shown_of_tools`."""
        return shown_of_tools(self.tokenizer)

    def config(self, prompt_tokens: int, max_tokens: int | None, **parameters: Any) -> GenerationConfig:
        """Returns the generation config of a request.

        Args:
            parameters: Fields of `GenerationConfig`; `temperature` 0 means greedy, and None keeps the default.

        Raises:
            ConfigError: If a parameter cannot be used.
            ContextTooLong: If prompt or answer cannot fit.
        """
        if prompt_tokens >= self.context:
            raise ContextTooLong(
                f"The prompt takes {prompt_tokens} tokens, but the model's context is {self.context}: shorten it."
            )
        if max_tokens is not None and max_tokens > self.context:
            raise ContextTooLong(
                f"max_tokens is {max_tokens}, but the model's context is {self.context}: ask for at most {self.context}."
            )
        given = {name: value for name, value in parameters.items() if value is not None}
        if self.batching is not None:
            self.batching.check(given)
        given |= sampling(given.pop("temperature", None))
        cutoffs = {"top_k", "top_p", "min_p"} & set(given)
        if given.get("do_sample") is False:
            # Drop them: transformers would log a warning for every request.
            given = {name: value for name, value in given.items() if name not in cutoffs}
        elif cutoffs:
            given["do_sample"] = True
        config = generation_config_with(self._defaults, max_new_tokens=max_tokens, **given)
        config.max_new_tokens = min(config.max_new_tokens, self.context - prompt_tokens)
        return config

    async def generate(
        self,
        ids: list[int],
        config: GenerationConfig,
        *,
        seed: int | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> AsyncGenerator[Item, None]:
        """Yields the answer in pieces that may be shown, then `Ended`. Closing it stops the model within one token.

        If the model may abstain, its greedy answer is judged first. One that calls a tool is not withheld.

        Args:
            ids: The prompt.
            seed: Seed for sampling this answer.
            tools: Tools that the model may call; it yields calls as `ToolCall`.

        Raises:
            GenerationFailed: If the model fails.
        """
        stop, config.stop_strings = config.stop_strings, None
        stages: list[TextFilter] = [StopStrings([stop] if isinstance(stop, str) else stop)] if stop else []
        if self.moderation is not None:
            stages.append(self.moderation.filter())
        chain = FilterChain(stages)
        if self.abstention is not None:
            draft = await self._draft(self.abstention, ids)
            if self.abstention.withholds(draft) and not (tools and self._calls(ids, draft, tools)):
                yield self.abstention.text
                yield Ended("stop", len(draft.ids), abstained=True)
                return
        parser = self._parser(ids, tools) if tools else None
        pieces, streamer = self._start(ids, config, seed, parser)
        called = False
        try:
            while (item := await pieces.get()) is not None:
                if not isinstance(item, str | ToolCall):
                    raise GenerationFailed(item.msg)
                if isinstance(item, ToolCall):
                    called = True
                    # The client may act on the call, so moderation checks it like complete text.
                    if self.moderation is not None and not await asyncio.to_thread(_passes, self.moderation, item):
                        chain.finish_reason = "content_filter"
                    else:
                        yield item
                elif shown := await self._feed(chain, item):
                    yield ReasoningText(shown) if isinstance(item, ReasoningText) else shown
                if chain.finish_reason is not None:
                    break
            else:
                if rest := chain.finish():
                    yield rest
        finally:
            streamer.cancel()
        used_up = config.max_new_tokens is not None and streamer.total_tokens >= config.max_new_tokens
        reason = chain.finish_reason or ("tool_calls" if called else "length" if used_up else "stop")
        yield Ended(reason, streamer.total_tokens)

    async def _draft(self, abstention: Abstention, ids: list[int]) -> Draft:
        """The greedy answer, computed on the generating thread; it ends within one token if the client leaves."""
        assert self._one_by_one is not None
        gone = Event()
        answer = self._one_by_one.async_submit(
            abstention.draft, self.model, self.tokenizer, ids, self._generator.generate, gone
        )
        try:
            # Shielded: the thread could not deliver its result to a future that was cancelled.
            draft = await asyncio.shield(answer)
        except Exception as error:
            raise GenerationFailed(str(error)) from error
        finally:
            gone.set()
        assert draft is not None
        return draft

    def _calls(self, ids: list[int], draft: Draft, tools: list[dict[str, Any]]) -> bool:
        """True if an answer calls a tool, or begins to."""
        parser = self._parser(ids, tools)
        events = parser.feed(self.tokenizer.decode(draft.ids)) if parser is not None else []
        return any(event.get("field") == "tool_calls" for event in events)

    def _parser(self, ids: list[int], tools: list[dict[str, Any]]) -> ResponseParser | None:
        template = get_response_template(self.tokenizer, self.model)
        if template is None and self.tokenizer.chat_template == CHAT_TEMPLATE:
            template = RESPONSE_TEMPLATE
        return ResponseParser(template, prefix=self.tokenizer.decode(ids), tools=tools) if template else None

    async def _feed(self, chain: FilterChain, piece: str) -> str:
        if self.moderation is None:
            return chain.feed(piece)
        # In a thread, because a moderator may be a model, which must not block the text of other requests.
        return await asyncio.to_thread(chain.feed, piece)

    def _start(
        self, ids: list[int], config: GenerationConfig, seed: int | None, parser: ResponseParser | None
    ) -> tuple[asyncio.Queue, Any]:
        # Not the client's own id: two requests with the same id would get each other's tokens.
        request = uuid.uuid4().hex
        if self.batching is not None:
            return self.batching.answer(self.tokenizer, ids, config, request, parser)
        assert self._one_by_one is not None
        import torch

        inputs = torch.tensor([ids], device=self.model.device)
        if seed is not None:
            # Set the seed on the generating thread, right before it generates.
            self._one_by_one.submit(set_torch_seed, seed)
        return self._one_by_one.generate_streaming(
            self._generator,
            self.tokenizer,
            {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)},
            config,
            request,
            parser,
        )

    @property
    def healthy(self) -> bool:
        """True if the engine can answer requests."""
        return self.batching is None or self.batching.healthy

    def close(self) -> None:
        """Stops the threads."""
        if self.batching is not None:
            self.batching.close()


def _passes(moderation: Moderator, call: ToolCall) -> bool:
    from ..errors import ContentFiltered

    try:
        for text in together([call.name, call.arguments]):
            moderation.check(text)
    except ContentFiltered:
        return False
    return True


class ContinuousBatching:
    """transformers' continuous batching with temperature, top_k and top_p per request.

    The `CBGenerateManager` of transformers' own server uses the sampling parameters of the first request for all later
    ones. Greedy means a top_k of 1 here.
    """

    PARAMETERS = frozenset({"temperature", "top_k", "top_p", "stop_strings"})

    def __init__(self, model: PreTrainedModel, defaults: GenerationConfig, context: int, max_concurrent: int) -> None:
        otherwise = "serve without it (--no-continuous_batching)"
        check_continuous_batching(model, defaults, otherwise, ends_at_strings=True)
        sizes = prepare_batching(model, context, max_concurrent)
        batching = ContinuousBatchingConfig(per_request_processors=True, use_cuda_graph=False, **sizes)
        self._vocab_size = model.config.get_text_config().vocab_size
        # Any values that activate all processors; every request overrides them.
        shared = generation_config_with(defaults, do_sample=True, temperature=0.5, top_k=2, top_p=0.5)
        shared.use_cache = False
        self.manager = model.init_continuous_batching(generation_config=shared, continuous_batching_config=batching)
        self.manager.start()

    @property
    def healthy(self) -> bool:
        """True if the generation thread is alive."""
        return self.manager.background_thread_status.can_accept_new_requests() is None

    def close(self) -> None:
        """Stops the generation thread."""
        self.manager.stop(block=True, timeout=2)

    def check(self, parameters: dict[str, Any]) -> None:
        """Raises if continuous batching would ignore a parameter.

        Raises:
            ConfigError: If a request sets a parameter that continuous batching does not apply.
        """
        if others := sorted(set(parameters) - self.PARAMETERS):
            raise ConfigError(
                f"{others[0]} cannot be set per request with continuous batching; the server's owner can turn it off with "
                "--no-continuous_batching."
            )

    def sampling(self, config: GenerationConfig) -> dict[str, Any]:
        """Translates a generation config to the parameters of the logits processors."""
        if not config.do_sample:
            return {"temperature": 1.0, "top_k": 1, "top_p": 1.0}
        top_k = config.top_k or self._vocab_size
        return {
            "temperature": float(config.temperature if config.temperature is not None else 1.0),
            "top_k": min(top_k, self._vocab_size),
            "top_p": float(config.top_p if config.top_p is not None else 1.0),
        }

    def answer(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ids: list[int],
        config: GenerationConfig,
        request: str,
        parser: ResponseParser | None = None,
    ) -> tuple[asyncio.Queue, CBStreamer]:
        """Starts an answer.

        Args:
            tokenizer: The model's tokenizer.
            ids: The prompt.
            config: The request's generation config.
            request: An id that no other request has.
            parser: Parser of tool calls.

        Returns:
            A queue of pieces, which ends with None or a `Failure`, and a streamer that can cancel the request.

        Raises:
            GenerationFailed: If the generation thread has ended.
        """
        self._check_thread()
        pieces: asyncio.Queue = asyncio.Queue()
        rust_tokenizer = tokenizer.backend_tokenizer
        streamer = _Streamer(self.manager, request, rust_tokenizer, asyncio.get_running_loop(), pieces, parser)

        def receive(output: Any) -> None:
            try:
                streamer.put(output)
                if output.error is not None:
                    pieces.put_nowait(Failure(output.error))
                elif output.is_finished():
                    streamer.end()
            except Exception as error:
                pieces.put_nowait(Failure(str(error)))

        # Registered before the request, because the answer may arrive before the next line runs.
        self.manager.register_result_handler(request, receive)
        self.manager.add_request(
            ids,
            request_id=request,
            streaming=True,
            max_new_tokens=config.max_new_tokens,
            eos_token_id=config.eos_token_id,
            **self.sampling(config),
        )
        try:
            # A thread that ended since the first check drops the request, or has failed the others before it arrived.
            self._check_thread()
        except GenerationFailed:
            streamer.cancel()
            raise
        return pieces, streamer

    def _check_thread(self) -> None:
        status = self.manager.background_thread_status
        if (denial := status.can_accept_new_requests()) is not None:
            raise GenerationFailed(str(status.fatal_error or denial))


class _Streamer(CBStreamer):
    """Releases the handler and last tokens of a cancelled request, which transformers would keep forever."""

    def __init__(self, manager: Any, request: str, *args: Any) -> None:
        super().__init__(manager, request, *args)
        self.manager, self.request = manager, request

    def cancel(self) -> None:
        router = self.manager.output_router
        if router.result_handlers.pop(self.request, None) is not None:
            super().cancel()
        with contextlib.suppress(queue.Empty):
            while True:
                router.output_queue.get_nowait()

"""Reward functions: their results are checked, and an answer that does not end gets nothing."""

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ChatGPTError, ConfigError, one_line

# A text, or messages.
Text = str | Sequence[dict[str, Any]]
# What TRL and this package give to every function; everything else that a function asks for is a column of the data.
GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
# Columns of the data that are not passed on, because functions are given something else by these names.
RESERVED = (*GIVEN, "prompt", "completion", "place", "image", "images")


@dataclass
class Reward:
    """A reward function with a name, called like TRL's: `reward(prompts, completions, completion_ids=..., **columns)`.

    An answer whose tokens are given and do not end with an end mark gets no reward: 0, or the least that an answer to the same
    prompt got if that is less.

    Attributes:
        name: For logs and messages.
        function: Takes `prompts`, `completions` (texts or messages), `completion_ids` and columns, each with an item for every
            answer; returns a number for each, or None where it does not apply.
        columns: Columns that the data must have.
        optional: Columns that it also reads, where there are some.
        weight: Factor of this reward in the sum of several.
        ends: Token ids that end an answer; with none, every answer counts as ended.
        least: What an answer without an end mark gets at most.
        check: Raises if the reward cannot work on this machine; called before a training.
        check_cell: Raises `DataError` if a row's columns cannot be used; gets them by name.
    """

    name: str
    function: Callable[..., Sequence[Any]]
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    weight: float = 1.0
    ends: Collection[int] = ()
    least: float = 0.0
    check: Callable[[], None] = lambda: None
    check_cell: Callable[..., None] = lambda **columns: None
    _takes: frozenset[str] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        # TRL logs a function by this name.
        self.__name__ = self.name
        parameters = inspect.signature(self.function).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            self._takes = frozenset(parameter.name for parameter in parameters)

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Returns the reward of each answer, None where there is none.

        Raises:
            ConfigError: If the function fails, or returns another number of values or something that is no finite number; the
                message names the reward.
        """
        given = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
        taken = {name: value for name, value in given.items() if self._takes is None or name in self._takes}
        try:
            found = self.function(**taken)
        except ChatGPTError as error:
            raise type(error)(f"The reward {self.name} failed: {error}") from error
        except Exception as error:
            raise ConfigError(
                f"The reward {self.name} failed with {type(error).__name__}: {one_line(error)}"
            ) from error
        values = self._numbers(found, len(completions))
        if completion_ids is None or not self.ends:
            return values
        ended = [len(ids) > 0 and ids[-1] in self.ends for ids in completion_ids]
        # A prompt may be a list of messages.
        keys = [prompt if isinstance(prompt, str) else repr(prompt) for prompt in prompts]
        least: dict[str, float] = {}
        for key, value, is_whole in zip(keys, values, ended, strict=True):
            if is_whole and value is not None:
                least[key] = min(value, least.get(key, self.least))
        return [
            value if is_whole or value is None else least.get(key, self.least)
            for key, value, is_whole in zip(keys, values, ended, strict=True)
        ]

    def _numbers(self, found: Any, expected: int) -> list[float | None]:
        if inspect.isawaitable(found):
            if inspect.iscoroutine(found):
                found.close()
            raise ConfigError(f"The reward {self.name} is asynchronous: name a plain function.")
        try:
            items = list(found.tolist() if hasattr(found, "tolist") else found)
        except TypeError:
            raise ConfigError(
                f"The reward {self.name} returned {found!r:.80}: return a list with a number for each answer."
            ) from None
        if len(items) != expected:
            raise ConfigError(
                f"The reward {self.name} returned {len(items)} values for {expected} answers: return one for each."
            )
        values: list[float | None] = []
        for item in items:
            try:
                value = None if item is None else float(item)
            except (TypeError, ValueError, OverflowError):
                value = math.nan
            if isinstance(item, str) or (value is not None and not math.isfinite(value)):
                raise ConfigError(
                    f"The reward {self.name} returned {item!r:.80}: return a finite number for each answer, or None where there is no "
                    "reward."
                )
            values.append(value)
        return values


def total_rewards(
    rewards: Sequence[Reward],
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]] | None = None,
    **columns: Sequence[Any],
) -> list[float | None]:
    """The sum of several rewards with their weights, as TRL adds them; None where none applies.

    Args:
        rewards: The result of `load_rewards`.
        prompts, completions, completion_ids: See `Reward`.
        **columns: Columns of the data, with an item for each answer.
    """
    rows = zip(*(reward(prompts, completions, completion_ids, **columns) for reward in rewards), strict=True)
    weights = [reward.weight for reward in rewards]
    return [
        None
        if all(value is None for value in row)
        else sum(weight * value for weight, value in zip(weights, row, strict=True) if value is not None)
        for row in rows
    ]


def answer_text(completion: Text) -> str:
    """The text of an answer: a text, or what the assistant says in messages."""
    if isinstance(completion, str):
        return completion
    said = [message.get("content") for message in completion if message.get("role") == "assistant"]
    # A message that only calls a tool has an empty text.
    return "\n".join(text for text in said if isinstance(text, str) and text)

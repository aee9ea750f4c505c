"""The errors a user can cause: each message says what is wrong, where, and what would be right.

The command line prints them without a traceback and exits with code 2. Any other exception is a bug in this package and
keeps its traceback.
"""

from signal import Signals


class ChatGPTError(Exception):
    """Base class: the message names the thing (file, field, argument) and the remedy."""


def one_line(error: BaseException) -> str:
    """The text of a library's error as one line, with the error's name where the text alone would say little."""
    text = " ".join(str(error).split())
    return text if " " in text else f"{type(error).__name__} {text}".rstrip() + "."


class DataError(ChatGPTError):
    """A corpus, data file or column cannot be used."""


class TokenizerError(ChatGPTError):
    """A tokenizer cannot be trained as requested, or does not fit the model."""


class TemplateTimeout(TokenizerError):
    """A chat template does not come to an end. Later conversations are not tried."""


class ConfigError(ChatGPTError):
    """A recipe, argument or model configuration contradicts itself or names something unknown."""


class CheckpointError(ChatGPTError):
    """A model folder or weight file is missing, truncated, or does not match its configuration."""


class MissingDependency(ChatGPTError, ImportError):
    """A package that is not installed because its extra is not; the message has the `pip install` that helps."""


class MissingWeights(CheckpointError):
    """A checkpoint lacks some of the model's weights.

    Attributes:
        names: The names of the missing weights.
    """

    def __init__(self, message: str, names: list[str]) -> None:
        super().__init__(message)
        self.names = names


class ConversionError(ChatGPTError):
    """A foreign checkpoint cannot be read, or the target format cannot express the model."""


class OutputError(ChatGPTError):
    """A folder or file cannot be written: it is not empty and not ours, or the disk is full."""


class CardError(ChatGPTError):
    """A model card has metadata that the Hub rejects."""


class HubError(ChatGPTError):
    """A repository cannot be read or written: no permission, no connection, or unusable content."""


class DistributedError(ChatGPTError):
    """The processes of a run do not find one another, differ, or have lost one."""


class TrainingDiverged(ChatGPTError):
    """Loss or gradients became so bad that training cannot recover."""


class TrainingInterrupted(ChatGPTError):
    """The run was interrupted; it saved a checkpoint and can be resumed.

    Attributes:
        signal: The signal that interrupted it.
    """

    def __init__(self, message: str, signal: Signals = Signals.SIGTERM) -> None:
        super().__init__(message)
        self.signal = signal


class ContentFiltered(ChatGPTError):
    """Moderation blocked a message."""

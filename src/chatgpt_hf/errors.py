"""The one family of errors a user can cause: what is wrong, where, and what would be right.

The command line prints these without a traceback and exits with code 2. Everything else that escapes is a bug of ours
and keeps its traceback.
"""


class ChatGPTError(Exception):
    """Base class: the message names the thing (file, field, argument) and the remedy."""


class DataError(ChatGPTError):
    """A corpus, a data file or a column that cannot be used as given."""


class TokenizerError(ChatGPTError):
    """A tokenizer that cannot be trained as asked, or does not fit the model."""


class ConfigError(ChatGPTError):
    """A recipe, argument or model configuration that contradicts itself or names something unknown."""


class CheckpointError(ChatGPTError):
    """A model folder or weight file that is missing, cut short, or does not match its configuration."""


class MissingDependency(ChatGPTError, ImportError):
    """A package that is not installed because its extra is not; the message has the `pip install` that helps."""


class MissingWeights(CheckpointError):
    """A checkpoint without some of the model's weights.

    Attributes:
        names: Of these weights.
    """

    def __init__(self, message: str, names: list[str]) -> None:
        super().__init__(message)
        self.names = names


class ConversionError(ChatGPTError):
    """A foreign checkpoint, or a target format, that cannot express the model."""


class OutputError(ChatGPTError):
    """A folder or file that cannot be written: not empty and not ours, or no space left."""


class CardError(ChatGPTError):
    """A model card with metadata that the Hub refuses."""


class HubError(ChatGPTError):
    """A repository that cannot be written or read, for want of rights, of a connection, or because of what is in it."""


class TrainingDiverged(ChatGPTError):
    """A run whose loss or gradients left what further steps could mend."""


class TrainingInterrupted(ChatGPTError):
    """A run that was asked to end, saved a checkpoint, and can be gone on with."""


class ContentFiltered(ChatGPTError):
    """A message that moderation does not let pass."""

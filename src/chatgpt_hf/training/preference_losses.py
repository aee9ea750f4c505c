"""The losses of TRL's `DPOTrainer` and `KTOTrainer`: their names, the options that they contradict, and where they start."""

import math
from collections.abc import Callable

from ..errors import ConfigError
from .preference_arguments import DPOArguments

_LN_2 = math.log(2)
# In cross-entropies of guessing.
_SFT_START = 2


def _exo(arguments: DPOArguments) -> float:
    epsilon = arguments.label_smoothing
    return -_LN_2 - 0.5 * (math.log1p(-epsilon) + math.log(epsilon))


# The loss while the model equals its reference; `sft` depends on the model. Equations: `DPOTrainer._compute_loss`.
PAIR_LOSSES: dict[str, Callable[[DPOArguments], float] | None] = {
    "sigmoid": lambda _: _LN_2,
    "hinge": lambda _: 1.0,
    "ipo": lambda arguments: 1 / (4 * arguments.beta**2),
    "exo_pair": _exo,
    "nca_pair": lambda _: 2 * _LN_2,
    "robust": lambda _: _LN_2,
    "bco_pair": lambda _: 2 * _LN_2,
    "sppo_hard": lambda arguments: 1 / (2 * arguments.beta**2),
    "aot": lambda _: _LN_2,
    "aot_unpaired": lambda _: _LN_2,
    "apo_zero": lambda _: 1.0,
    "apo_down": lambda _: 1.0,
    "discopop": lambda _: 0.5 * (_LN_2 + 1),
    "sft": None,
    "sigmoid_norm": lambda _: _LN_2,
}
JUDGED_LOSSES = ("kto", "apo_zero_unpaired")
# Losses of a batch that are not the mean of losses of its rows: how a step is split changes what is learned.
BATCH_LOSSES = frozenset({"aot", "aot_unpaired", "sft", "kto"})

_SMOOTHED = frozenset({"exo_pair", "robust", "aot", "aot_unpaired"})
_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
# The others are not functions of the difference of both answers' rewards, in which the unknown normalizer cancels.
_WITH_ANY_DIVERGENCE = frozenset({"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"})


def first_loss(arguments: DPOArguments, vocab_size: int) -> float:
    """The loss of the first step, while the model equals its reference; a bound on it where that depends on the data.

    Args:
        arguments: With `loss_type` set.
        vocab_size: A model that guesses has the cross-entropy ln(vocab_size); one that is sure of other answers has a higher one.
    """
    if set(arguments.loss_type) & set(JUDGED_LOSSES):
        # All of these losses are below their weight, and begin at half of it.
        return max(arguments.desirable_weight, arguments.undesirable_weight)
    weights = arguments.loss_weights or [1.0] * len(arguments.loss_type)
    starts = [PAIR_LOSSES[name] for name in arguments.loss_type]
    values = [_SFT_START * math.log(vocab_size) if start is None else start(arguments) for start in starts]
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def check_losses(arguments: DPOArguments, *, use_peft: bool) -> None:
    """Raises `ConfigError` for losses that there are not, and for options that contradict them or one another."""
    known = (*PAIR_LOSSES, *JUDGED_LOSSES)
    if unknown := [name for name in arguments.loss_type if name not in known]:
        raise ConfigError(f"--loss_type {unknown[0]} is unknown; choose from {', '.join(known)}.")
    losses = set(arguments.loss_type)
    if not arguments.beta > 0:
        raise ConfigError(f"--beta is {arguments.beta}: give a number above 0; TRL's default is 0.1.")
    for name in ("desirable_weight", "undesirable_weight"):
        if not 0 <= getattr(arguments, name) < math.inf:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}: give a finite number that is not negative.")
    if "exo_pair" in losses and not 0 < arguments.label_smoothing < 1:
        raise ConfigError(
            f"--loss_type exo_pair needs a --label_smoothing above 0 and it is {arguments.label_smoothing}: its paper takes 0.001."
        )
    if "robust" in losses and not 0 <= arguments.label_smoothing < 0.5:
        raise ConfigError(
            f"--loss_type robust needs a --label_smoothing from 0 to below 0.5, the share of flipped labels, and it is "
            f"{arguments.label_smoothing}."
        )
    if arguments.label_smoothing and not losses & _SMOOTHED:
        raise ConfigError(
            f"--label_smoothing is for the losses {', '.join(sorted(_SMOOTHED))}: add one with --loss_type, or leave it out."
        )
    if arguments.f_divergence_type not in _DIVERGENCES:
        raise ConfigError(
            f"--f_divergence_type {arguments.f_divergence_type} is unknown; choose from {', '.join(_DIVERGENCES)}."
        )
    if arguments.f_divergence_type != "reverse_kl" and (wrong := sorted(losses - _WITH_ANY_DIVERGENCE)):
        raise ConfigError(
            f"--f_divergence_type {arguments.f_divergence_type} does not go with --loss_type {wrong[0]}, only with "
            f"{', '.join(sorted(_WITH_ANY_DIVERGENCE))}: leave it out."
        )
    if arguments.use_weighting and (wrong := sorted(losses & {"aot", "aot_unpaired"})):
        raise ConfigError(f"--use_weighting weights pairs, and --loss_type {wrong[0]} sorts them: give only one.")
    if arguments.ld_alpha is not None and not 0 <= arguments.ld_alpha <= 1:
        raise ConfigError(f"--ld_alpha is {arguments.ld_alpha}: give a number from 0 to 1, or leave it out.")
    if arguments.sync_ref_model and use_peft:
        raise ConfigError(
            "--sync_ref_model needs a reference in memory, and with --use_peft the base model is the reference: leave one out."
        )
    if arguments.sync_ref_model and arguments.precompute_ref_log_probs:
        raise ConfigError(
            "--sync_ref_model changes the reference, and --precompute_ref_log_probs asks it only once: give only one."
        )


def choose_losses(arguments: DPOArguments, *, judged: bool) -> None:
    """Sets `loss_type` where it was not given, by the kind of rows.

    Raises:
        ConfigError: If it was given and is for the other kind of rows, or an option is.
    """
    if not arguments.loss_type:
        arguments.loss_type = ["kto"] if judged else ["sigmoid"]
    fitting = JUDGED_LOSSES if judged else tuple(PAIR_LOSSES)
    if wrong := [name for name in arguments.loss_type if name not in fitting]:
        rows = "judged answers (prompt, completion, label)" if judged else "pairs (prompt, chosen, rejected)"
        raise ConfigError(
            f"--loss_type {wrong[0]} does not go with the data, which are {rows}; choose from {', '.join(fitting)}."
        )
    if not judged:
        if wrong := [name for name in ("desirable_weight", "undesirable_weight") if getattr(arguments, name) != 1]:
            raise ConfigError(f"--{wrong[0]} is for judged answers, and the data are pairs: leave it out.")
        return
    if len(arguments.loss_type) > 1:
        raise ConfigError("--loss_type: judged answers are learned with one loss: kto or apo_zero_unpaired.")
    if arguments.loss_type == ["kto"] and arguments.per_device_train_batch_size < 2:
        raise ConfigError(
            "--per_device_train_batch_size 1: kto estimates how far the model has moved from answers to other prompts of a batch: "
            "give 2 or more."
        )
    if arguments.loss_type == ["kto"] and arguments.train_sampling_strategy not in ("random", "sequential"):
        raise ConfigError(
            f"--train_sampling_strategy {arguments.train_sampling_strategy}: kto pairs the rows of a batch before the training: "
            "leave it out."
        )
    for name, unset in (("use_weighting", False), ("ld_alpha", None), ("f_divergence_type", "reverse_kl")):
        if getattr(arguments, name) != unset:
            raise ConfigError(f"--{name} is for pairs, and the data are judged answers: leave it out.")
    if arguments.loss_weights is not None:
        raise ConfigError(
            "--loss_weights is for pairs; judged answers have --desirable_weight and --undesirable_weight."
        )

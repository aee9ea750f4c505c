"""One model on several processes, by transformers' tensor parallelism: each holds a part of every matrix.

The first process runs the command. The others only load their part of the model and compute it in each forward pass, with the
arguments that the first one sends them. So sampling, stopping, files and requests exist once, and nothing has to be the same
by chance.
"""

import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import wraps
from math import gcd
from pathlib import Path
from threading import RLock
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from ..checkpoints import load_config, load_model
from ..conversion.heads import check_language_model
from ..errors import ChatGPTError, CheckpointError, ConfigError, ConversionError, one_line
from ..model.modeling_chatgpt import CACHE_NAME
from ..stored import is_adapter, quantization_of
from .cache import GrowingCache

PLANS = ("auto", "mlp")
# A server may wait for its next request as long as this.
PATIENCE = timedelta(days=365)
# Time between the end of a forward pass in the first process that ends it and in the last.
MEETING = timedelta(seconds=60)
# What changes a cache outside of a forward pass.
_OPERATIONS = ("crop", "reorder_cache", "batch_select_indices", "batch_repeat_interleave", "reset")
_CACHES = {"DynamicCache": DynamicCache, "GrowingCache": GrowingCache}

_group: "Group | None" = None


def current_group() -> "Group | None":
    """The processes among which models are shared now; None if there is one process."""
    return _group


def run_shared(plan: str, work: Callable[[], None]) -> None:
    """Runs `work` in the first process that torchrun started; models that it loads are shared among all.

    Args:
        plan: `auto` shares everything that the model's own plan names. `mlp` leaves attention whole on each process.
        work: Loads models by `load_language_model` or `load_for_generation`.

    Raises:
        ConfigError: If the plan is unknown, or there is one process, or there are more than accelerators.
        SystemExit: In all processes but the first: with its exit code, when `work` has ended.
    """
    global _group
    group = Group(plan)
    if group.rank:
        raise SystemExit(group.follow())
    _group, code = group, 1
    try:
        work()
        code = 0
    except BaseException as error:
        code = _code_of(error)
        raise
    finally:
        _group = None
        group.end(code)


def _code_of(error: BaseException) -> int:
    """The exit code with which the command line ends after an error."""
    if isinstance(error, ChatGPTError):
        return 2
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    code = getattr(error, "exit_code", getattr(error, "code", 1))
    return code if isinstance(code, int) else 1


class Group:
    """The processes that share models, seen from one of them.

    Args:
        plan: See `run_shared`.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.

    Raises:
        ConfigError: See `run_shared`.
    """

    def __init__(self, plan: str) -> None:
        if plan not in PLANS:
            raise ConfigError(f"--tp_plan {plan} is unknown; choose from {', '.join(PLANS)}.")
        self.plan = plan
        self.rank, self.size = (
            int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1))
        )
        if self.size < 2:
            raise ConfigError(
                "--tp_plan shares a model among several processes, and this is a single one: start several with `torchrun "
                "--nproc_per_node N --no-python chatgpt-hf ...`, or leave it out."
            )
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        local = int(os.environ.get("LOCAL_RANK", 0))
        if device.type != "cpu":
            if local >= torch.accelerator.device_count():
                raise ConfigError(
                    f"This machine has {torch.accelerator.device_count()} accelerators, and torchrun started more processes: lower "
                    "--nproc_per_node."
                )
            torch.accelerator.set_device_index(local)
        dist.init_process_group(dist.get_default_backend_for_device(device))
        self._control = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._meeting = dist.new_group(backend="gloo", timeout=MEETING)
        self._lock = RLock()
        self._loaded = 0

    def load(self, name_or_path: str | Path, **kwargs: Any) -> PreTrainedModel:
        """Loads a causal language model, in the first process; the others load their parts.

        The model computes without gradients. Its caches are those that `generate` makes, or `GrowingCache`.

        Args:
            **kwargs: Passed to `load_model`.

        Raises:
            ConfigError: If the model cannot be shared among so many processes.
            CheckpointError: If there is no model, or a process could not load its part.
            ConversionError: If it has the head of another task.
        """
        overrides = check_plan(name_or_path, self.plan, self.size)
        with self._lock:
            number, self._loaded = self._loaded, self._loaded + 1
            self._send("load", number, str(name_or_path), overrides, kwargs)
            model = self._load(str(name_or_path), overrides, kwargs)
            check_language_model(model, name_or_path, "do this")
            _Leader(self, number, model)
        return model

    def _load(self, name: str, overrides: dict[str, str], kwargs: dict[str, Any]) -> PreTrainedModel:
        """Loads this process's part; raises in all processes if one cannot."""
        model, error = None, None
        try:
            with _quietly(everything=self.rank > 0):
                shared = DistributedConfig(tp_size=self.size, tp_plan=overrides or "auto")
                model = load_model(name, AutoModelForCausalLM, distributed_config=shared, **kwargs).eval()
        except Exception as caught:
            error = caught
        errors: list[str | None] = [None] * self.size
        dist.all_gather_object(errors, error and str(error), group=self._control)
        if error is not None:
            raise error
        for rank, message in enumerate(errors):
            if message is not None:
                raise CheckpointError(f"Process {rank} could not load its part of {name}: {message}")
        assert model is not None
        return model

    def end(self, code: int) -> None:
        """Ends the other processes with an exit code. In the first process."""
        with self._lock:
            self._send("end", code)
            dist.destroy_process_group()

    def compute(self, *call: Any) -> None:
        """Tells the others to compute their part of a forward pass. In the first process."""
        self._send("forward", *call)

    def agree(self, error: Exception | None) -> None:
        """Ends a forward pass in all processes: `error` is this one's, or None.

        One that failed alone leaves others in the middle of an exchange, which nothing can mend: then it ends, and the others
        with it.

        Raises:
            RuntimeError: If only others failed.
        """
        failed = torch.tensor([int(error is not None)])
        try:
            dist.all_reduce(failed, group=self._meeting)
        except RuntimeError:
            said = f" {one_line(error)}" if error is not None else ""
            print(f"error: process {self.rank} lost the others in a forward pass.{said}", file=sys.stderr, flush=True)
            os._exit(1)
        if error is None and failed.item():
            raise RuntimeError(f"{failed.item()} of {self.size} processes failed in a forward pass.")

    def _send(self, *message: Any) -> None:
        dist.broadcast_object_list([message], src=0, group=self._control)

    def _receive(self) -> tuple[Any, ...]:
        message: list[Any] = [None]
        dist.broadcast_object_list(message, src=0, group=self._control)
        return message[0]

    def follow(self) -> int:
        """Computes what the first process asks for, until it ends; returns its exit code. In the other processes."""
        # They end when the first process has: a server finishes its running answers first.
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        models: dict[int, _Follower] = {}
        while True:
            try:
                kind, *rest = self._receive()
            except RuntimeError:
                # The first process was killed.
                return 1
            if kind == "end":
                dist.destroy_process_group()
                return rest[0]
            if kind == "load":
                number, *what = rest
                try:
                    models[number] = _Follower(self._load(*what))
                except Exception:
                    # The first process says what happened.
                    continue
            else:
                number, *call = rest
                error = None
                try:
                    models[number].forward(*call)
                except Exception as caught:
                    error = caught
                # The first process says what happened.
                with suppress(RuntimeError):
                    self.agree(error)


class _Leader:
    """Replaces the forward of a model in the first process by one that the others take part in."""

    def __init__(self, group: Group, number: int, model: PreTrainedModel) -> None:
        self._caches: weakref.WeakKeyDictionary[DynamicCache, int] = weakref.WeakKeyDictionary()
        self._made = 0
        # Changes of caches since the last forward pass.
        self._changes: list[tuple[int, str, Any]] = []
        original = model.forward

        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            with group._lock, torch.no_grad():
                cache = _cache_of(kwargs)
                known = None if cache is None else self._number_of(cache)
                others = {name: value for name, value in kwargs.items() if value is not cache}
                changes, self._changes = self._changes, []
                group.compute(number, changes, known, _to_cpu(args), _to_cpu(others))
                try:
                    output = original(*args, **kwargs)
                except Exception as error:
                    group.agree(error)
                    raise
                group.agree(None)
                return output

        model.forward = forward

    def _number_of(self, cache: DynamicCache) -> int:
        if (number := self._caches.get(cache)) is not None:
            return number
        kind = type(cache).__name__
        if type(cache) not in _CACHES.values() or cache.get_seq_length():
            raise ConfigError(
                f"With --tp_plan, a cache of the kind {kind} cannot be used, nor one that was filled before."
            )
        self._made += 1
        number = self._caches[cache] = self._made
        records = any(getattr(layer, "record_past", False) for layer in cache.layers)
        self._changes.append((number, "make", (kind, records)))
        weakref.finalize(cache, self._changed, number, "drop", ())
        # Not a bound method: the cache would hold itself.
        alive = weakref.ref(cache)
        for name in _OPERATIONS:
            setattr(cache, name, self._recording(alive, number, name))
        return number

    def _changed(self, number: int, name: str, args: Any) -> None:
        self._changes.append((number, name, args))

    def _recording(self, alive: weakref.ref[DynamicCache], number: int, name: str) -> Callable[..., Any]:
        def operation(*args: Any) -> Any:
            cache = alive()
            result = getattr(type(cache), name)(cache, *args)
            self._changed(number, name, _to_cpu(args))
            return result

        return operation


class _Follower:
    """A part of a model, and its part of the first process's caches."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._caches: dict[int, DynamicCache] = {}

    @torch.no_grad()
    def forward(self, changes: list[tuple[int, str, Any]], cache: int | None, args: Any, kwargs: Any) -> None:
        """Makes the changes to the caches, then computes."""
        device = self._model.device
        for number, name, values in changes:
            if name == "make":
                kind, records = values
                made = self._caches[number] = _CACHES[kind](config=self._model.config)
                if records:
                    made.activate_past_recording()
            elif name == "drop":
                self._caches.pop(number, None)
            else:
                getattr(self._caches[number], name)(*_to(values, device))
        known = {} if cache is None else {CACHE_NAME: self._caches[cache]}
        self._model(*_to(args, device), **_to(kwargs, device), **known)


def check_plan(name_or_path: str | Path, plan: str, size: int) -> dict[str, str]:
    """Checks that a model can be shared among `size` processes.

    Returns:
        What differs from the model's own plan: for `mlp`, the style `replicate` for everything in attention.

    Raises:
        ConfigError: If it cannot; the message says why and what can be done.
        ConversionError: If it is an adapter.
    """
    if is_adapter(name_or_path):
        raise ConversionError(
            f"{name_or_path} is an adapter, which --tp_plan cannot share: merge it into its base first, with `chatgpt-hf merge`."
        )
    if quantization_of(name_or_path):
        raise ConfigError(
            f"{name_or_path} is quantized, which --tp_plan cannot share: use the model that it was made from."
        )
    config = load_config(name_or_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if not model.supports_tp_plan:
        raise ConfigError(
            f"{type(model).__name__} has no tensor-parallel plan in transformers: leave --tp_plan out, or convert the model first with "
            "`chatgpt-hf convert`."
        )
    if plan == "mlp":
        return {name: "replicate" for name in model.tp_plan if "attn" in name or "attention" in name}
    _check_heads(config, size)
    return {}


def _check_heads(config: PreTrainedConfig, size: int) -> None:
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)
    key_value_heads = getattr(text, "num_key_value_heads", None) or heads
    if heads % size == 0 and key_value_heads % size == 0:
        return
    common = gcd(heads, key_value_heads)
    fits = [str(number) for number in range(2, common + 1) if common % number == 0]
    start = f"start {' or '.join(fits)} processes, or give" if fits else "give"
    raise ConfigError(
        f"--tp_plan auto: {heads} attention heads and {key_value_heads} heads of keys and values do not divide among {size} processes: "
        f"{start} --tp_plan mlp, which leaves attention whole."
    )


def _cache_of(kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get(CACHE_NAME, kwargs.get("past_key_values"))


def _to(values: Any, device: torch.device | str) -> Any:
    """Moves the tensors in nested tuples, lists and dicts to a device."""
    if isinstance(values, torch.Tensor):
        return values.to(device)
    if isinstance(values, dict):
        return {name: _to(value, device) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_to(value, device) for value in values)
    return values


def _to_cpu(values: Any) -> Any:
    return _to(values, "cpu")


@contextmanager
def _quietly(everything: bool) -> Iterator[None]:
    """Silences transformers' warning of layers that a plan leaves whole, and `everything` else that loading says."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    shown = transformers_logging.is_progress_bar_enabled()
    if everything:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()

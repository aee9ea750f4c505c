"""Several processes as one run: what the first one decides, the others learn; where one fails, all end with one message.

torchrun, accelerate and other launchers start the processes and say in the environment which one each is (`RANK`,
`WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`, `MASTER_PORT`). Gradients and weights travel through torch.distributed's process
groups, which give up after a time limit. What is decided here travels through the key-value store that the processes meet
at anyway, where they wait for as long as the first one works: preparing a corpus may take hours.
"""

import json
import math
import os
import queue
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any, TypeVar

from torch import distributed

from ..errors import ChatGPTError, DistributedError, TrainingInterrupted
from ..evaluation.sharing import Share, shared
from ..files import clear_disk_errors
from ..terminal import visible
from .launch import Place, environment_number, place
from .liveness import Failure, Hub, Link

Value = TypeVar("Value")

# How long the processes of a run wait for one another to start, in seconds.
JOIN_SECONDS = "CHATGPT_HF_JOIN_SECONDS"
_JOIN_SECONDS = 300
# In the run's folder: what all processes but the first one print.
LOG_FOLDER = "logs"
# A store takes values of up to 8 MB.
_PIECE = 2**20
_LONGEST_PAUSE = 0.25
_ANSWER_SECONDS = 8.0
_TELL_SECONDS = 3.0
# A job that is stopped gets little time.
_STOP_SECONDS = 10.0
# What gloo says when a process that it talks to is gone, or does not answer in time.
_LOST = (
    "connectFullMesh failed",
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Broken pipe",
)


class World:
    """The processes of a run, seen from one of them. A single process is a world too, in which nothing is sent.

    All processes must call the same methods in the same order.

    Attributes:
        place: Which process this is.
    """

    def __init__(self, place: Place, held: IO[bytes] | None = None) -> None:
        self.place = place
        self._store: Any = None
        # Served for as long as the run.
        self._new_store: Any = None
        self._calls = 0
        self._log: Path | None = None
        # What a process that must not print has printed so far.
        self._held = held

    @property
    def is_first(self) -> bool:
        """True in the process that decides, writes and prints."""
        return self.place.rank == 0

    def decide(self, choose: Callable[[], Value]) -> Value:
        """Returns in all processes what the first one chooses.

        An error of `choose` is raised in the first process only: it ends the others, wherever they are.

        Args:
            choose: Called in the first process only. Returns what JSON can hold.
        """
        if self.place.size == 1:
            return choose()
        key = self._next()
        if self.is_first:
            value = choose()
            self._put(key, value)
            return value
        return self._get(key)

    def wait(self) -> None:
        """Waits for the first process, without a time limit."""
        self.decide(lambda: None)

    def gather(self, value: Any) -> list[Any]:
        """Returns in all processes the values of all, in the order of their ranks. Values are what JSON can hold."""
        if self.place.size == 1:
            return [value]
        key = self._next()
        if not self.is_first:
            self._put(f"{key}/{self.place.rank}", value)
        ranks = range(1, self.place.size)
        return self.decide(lambda: [value, *(self._get(f"{key}/{rank}") for rank in ranks)])

    def agree(self, values: Mapping[str, Any], *, remedy: str) -> None:
        """Checks that some values are the same in all processes.

        Args:
            values: What JSON can hold, by name.
            remedy: The last sentence of the message.

        Raises:
            DistributedError: In the first process, which ends the others.
        """
        if self.place.size == 1:
            return
        values = json.loads(json.dumps(values, default=str))
        hosts = self.gather([socket.gethostname(), None if self.is_first else values])

        def compare() -> None:
            for rank, (host, others) in enumerate(hosts[1:], 1):
                for name in [*values, *(name for name in others if name not in values)]:
                    if values.get(name) != others.get(name):
                        raise DistributedError(
                            f"The processes differ: {name} is {values.get(name)} in process 0 and {others.get(name)} in "
                            f"process {rank} (on {host}). {remedy}"
                        )

        self.decide(compare)

    def shared(self) -> AbstractContextManager[None]:
        """Divides the evaluations of a block among the processes; see `evaluation.sharing.shared`."""
        return shared(Share(self.place.rank, self.place.size, self.gather))

    def open_log(self, folder: Path) -> None:
        """Lets every process but the first one print into a file in the run's folder, which exists by now.

        What they have printed so far goes there too. The first process tells where the files are if another one dies.
        """
        if self.place.size == 1:
            return
        self._log = folder / LOG_FOLDER / f"process-{self.place.rank}.log"
        if self.is_first:
            return
        with clear_disk_errors(folder):
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                begun = f"{datetime.now():%Y-%m-%d %H:%M:%S}, process {self.place.rank} of {self.place.size}"
                log.write(f"--- {begun}, on {socket.gethostname()}, pid {os.getpid()}\n".encode())
                _flush()
                if self._held is not None:
                    self._held.seek(0)
                    log.write(self._held.read())
                    self._held.close()
                    self._held = None
                log.flush()
                for descriptor in (1, 2):
                    os.dup2(log.fileno(), descriptor)

    def _died(self, rank: int, host: str) -> str:
        log = self._log and self._log.with_name(f"process-{rank}.log")
        words = f" Its last words are in {log}." if log else ""
        return (
            f"Process {rank} of {self.place.size} (on {host}) has ended without a message: it was killed, perhaps because the memory "
            f"was full, or its machine failed. All others were ended.{words} --resume continues the run."
        )

    def _open_new_store(self, seconds: float) -> int | None:
        """Opens a store for the process groups of a restarted run, and returns its port; None for a run that was not restarted.

        torchrun's agent keeps its store. The new processes would find the addresses of dead ones there, and wait for them in
        gloo's connectFullMesh without end (torch 2.13, also with `--rdzv-backend c10d`).
        """
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            return None
        timeout = timedelta(seconds=seconds)
        self._new_store = distributed.TCPStore(
            os.environ["MASTER_ADDR"], 0, is_master=True, timeout=timeout, wait_for_workers=False, multi_tenant=True
        )
        return self._new_store.port

    def _next(self) -> str:
        self._calls += 1
        return str(self._calls)

    def _put(self, key: str, value: Any) -> None:
        data = json.dumps(value).encode()
        pieces = [data[begin : begin + _PIECE] for begin in range(0, len(data), _PIECE)]
        for number, piece in enumerate(pieces):
            self._store.set(f"{key}/piece/{number}", piece)
        # Last: whoever sees it finds the pieces.
        self._store.set(key, str(len(pieces)))

    def _get(self, key: str) -> Any:
        pause = 0.002
        # Not in the store's own wait, during which no handler of a signal would run.
        while not self._store.check([key]):
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        pieces = int(self._store.get(key))
        return json.loads(b"".join(self._store.get(f"{key}/piece/{number}") for number in range(pieces)))


_world: World | None = None


@contextmanager
def joined(message_of: Callable[[Exception], str | None] | None = None) -> Iterator[World]:
    """Joins the other processes of the run for the time of the block; inside another such block, yields its world.

    If the block fails in one process, or a process dies, all processes end within seconds with the same exit code, also those
    that wait inside a collective: they are ended without an exception. The first process prints the message, and raises its own
    errors as usual. Each of the others prints into a log; see `World.open_log`.

    Args:
        message_of: Returns the line to print for an error that a user can act on, and None for a bug.

    Raises:
        DistributedError: If the processes do not find one another, or one waited for another in vain.
    """
    global _world
    if _world is not None:
        yield _world
        return
    held = _mute() if os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1" else None
    here = place()
    if here.size == 1:
        yield World(here)
        return
    link: Hub | Link | None = None
    world = World(here, held)
    with _told_before_ended():
        try:
            link = _join(world)
            _world = world
            yield world
        except BaseException as error:
            failure = _failure(error, here, message_of or _message)
            if link is None:
                if not here.rank:
                    raise
                _report_own(error, failure)
                os._exit(2)
            if failure is None:
                link.finish(_STOP_SECONDS)
                raise
            if not here.rank:
                link.fail(failure)
                if failure.lost:
                    raise DistributedError(str(failure.message)) from error
                raise
            _report_own(error, failure)
            link.fail(failure)
        else:
            link.finish(None)
        finally:
            _world = None


def _join(world: World) -> Hub | Link:
    here = world.place
    seconds = _seconds_to_join()
    world._store = _store(here, seconds)
    if here.rank == 0:
        token = secrets.token_hex(16)
        hub = Hub(here.size, token, world._died, _tell)
        world._put("hub", [os.environ["MASTER_ADDR"], hub.port, token])
        if missing := hub.missing(seconds):
            shown = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
            error = DistributedError(
                f"WORLD_SIZE is {here.size}, but only {here.size - len(missing)} processes came within {seconds:g} seconds "
                f"(missing: rank {shown}): start as many as WORLD_SIZE says. ${JOIN_SECONDS} sets the limit."
            )
            hub.fail(Failure(str(error)))
            raise error
        port = world._open_new_store(seconds)
        world._put("joined", port)
        _meet_at(port)
        return hub
    deadline = time.monotonic() + seconds
    while not world._store.check(["hub"]):
        if time.monotonic() > deadline:
            raise _nobody(os.environ["MASTER_ADDR"], environment_number("MASTER_PORT", 0))
        time.sleep(0.02)
    host, port, token = world._get("hub")
    try:
        hello = {"token": token, "rank": here.rank, "size": here.size, "host": socket.gethostname()}
        link = Link((host, port), hello, seconds)
    except OSError as error:
        raise DistributedError(f"Process 0 does not answer at {host}, port {port}: {error}.") from error
    # Ended by the first process if somebody is missing.
    while not world._store.check(["joined"]) or link.refused:
        if link.refused:
            raise DistributedError(f"Process {here.rank} cannot join the run at MASTER_ADDR {host}: {link.refused}")
        time.sleep(0.02)
    _meet_at(world._get("joined"))
    return link


def _seconds_to_join() -> float:
    text = os.environ.get(JOIN_SECONDS) or str(_JOIN_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise DistributedError(f"{JOIN_SECONDS} is {text} in the environment: give a number of seconds above 0.")
    return seconds


def _meet_at(port: int | None) -> None:
    """Lets torch's process groups meet at a store of the first process; None leaves the launcher's."""
    if port is not None:
        os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="False")


def _store(here: Place, seconds: float) -> Any:
    """Opens the store at which the process groups meet too, under a separate prefix of keys."""
    host, port = os.environ["MASTER_ADDR"], environment_number("MASTER_PORT", 0)
    # torchrun's agent has it already.
    serves = here.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    options: dict[str, Any] = {"timeout": timedelta(seconds=seconds), "wait_for_workers": False, "multi_tenant": True}
    if not serves:
        _wait_for_listener(host, port, seconds)
    made: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def make() -> None:
        try:
            made.put(distributed.TCPStore(host, port, is_master=serves, **options))
        except distributed.DistError as error:
            made.put(error)

    # In a thread, because torch waits without end for an answer if what listens there is no store.
    threading.Thread(target=make, daemon=True).start()
    try:
        store = made.get(timeout=_ANSWER_SECONDS)
    except queue.Empty:
        raise _nobody(host, port) from None
    if isinstance(store, Exception):
        if "EADDRINUSE" in str(store):
            raise DistributedError(
                f"Port {port} of {host} is in use, perhaps by another run: choose another MASTER_PORT (--master-port of "
                "torchrun, --main_process_port of accelerate launch)."
            ) from store
        raise _nobody(host, port) from store
    # After a restart, the store may still hold what was said before.
    return distributed.PrefixStore(f"chatgpt_hf/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _wait_for_listener(host: str, port: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise _nobody(host, port) from error
            time.sleep(0.1)


def _nobody(host: str, port: int) -> DistributedError:
    return DistributedError(
        f"Process 0 does not answer at MASTER_ADDR {host}, MASTER_PORT {port}: start it there, and let its firewall pass the others."
    )


@contextmanager
def _told_before_ended() -> Iterator[None]:
    """Delays what SIGTERM does by default: launchers send it when another process has ended, which the first one must print."""
    process = os.getpid()

    def end(signum: int, frame: Any) -> None:
        if os.getpid() == process:
            # The thread that hears of the other process's end ends this one too.
            time.sleep(_TELL_SECONDS)
        os._exit(128 + signum)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _mute() -> IO[bytes]:
    """Holds back what this process prints, until it is known where the run's folder is."""
    held = tempfile.TemporaryFile()  # noqa: SIM115
    _flush()
    for descriptor in (1, 2):
        os.dup2(held.fileno(), descriptor)
    return held


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _message(error: Exception) -> str | None:
    return str(error) if isinstance(error, ChatGPTError) else None


def _failure(error: BaseException, here: Place, message_of: Callable[[Exception], str | None]) -> Failure | None:
    """Describes an error to the other processes; None for an ordinary end, which all reach."""
    if isinstance(error, TrainingInterrupted) or hasattr(error, "exit_code"):
        return None
    if not isinstance(error, Exception):
        code = error.code if isinstance(error, SystemExit) else 1
        return Failure(None, code if isinstance(code, int) else 1)
    where = f"process {here.rank} on {socket.gethostname()}"
    if (message := message_of(error)) is not None:
        return Failure(f"{where}: {message}")
    if (words := _lost(error)) is not None:
        return Failure(
            f"{where} waited for another process in vain ({words}). Is the network in order? --ddp_timeout says how long a step "
            "may wait, in seconds; --resume continues the run.",
            lost=True,
        )
    trace = "".join(traceback.format_exception(error))
    return Failure(f"{where} failed: {type(error).__name__}: {error}", 1, trace=trace)


def _lost(error: Exception) -> str | None:
    """Returns the words of an error that says that a collective waited in vain; None for other errors."""
    words = next((words for words in _LOST if words in str(error)), None)
    if isinstance(error, distributed.DistError):
        return words or str(error).partition("\n")[0][:200]
    return words if isinstance(error, RuntimeError) else None


def _report_own(error: BaseException, failure: Failure | None) -> None:
    """Writes an error of this process, which is not the first, into its log."""
    text = (
        "".join(traceback.format_exception(error))
        if failure is None or failure.trace
        else f"error: {failure.message}\n"
    )
    sys.stderr.write(text)
    _flush()


def _tell(failure: Failure) -> None:
    """Prints why another process has ended all of them."""
    if failure.trace:
        sys.stderr.write(failure.trace)
    if failure.message is not None:
        one_line = " ".join(line.strip() for line in failure.message.splitlines())
        sys.stderr.write(f"error: {visible(one_line)}\n")
    sys.stderr.flush()

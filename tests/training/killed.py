"""A command that reaches a chosen moment, reports it through a pipe, and waits to be killed; run by killable.py.

The test passes two names: `job` says what to run and when to stop, `pipe` takes the report. Without a stop, the command
finishes. Moments are callbacks of `Trainer`, Python's audit events for files, and the two functions that write files
without audit events, so the package needs no code for the test.
"""

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import DefaultFlowCallback

job: dict[str, Any] = globals()["job"]
pipe: Any = globals()["pipe"]


class Stop:
    """Stops the run at its moment, once.

    Args:
        folder: The run's folder.
        moment: A method of `TrainerCallback`; `before NAME` or `within NAME`, for a file that is written, where NAME
            may have wildcards; or `removing`, while files of an old checkpoint are deleted.
        step: The step of the moment.
        count: Number of files that are already deleted at the moment.
        share: Share of the file that is already written at the moment.
        sigterm: True if the process sends itself SIGTERM and continues. Otherwise it waits to be killed.
    """

    def __init__(
        self, folder: str, moment: str, step: int = 0, count: int = 0, share: float = 0.5, sigterm: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.step = step
        self.moment, _, name = moment.partition(" ")
        self.file = self.folder / name.format(step=step)
        self.count = count
        self.share = share
        self.sigterm = sigterm
        self.came = self.removing = False
        if self.moment.startswith("on_"):
            self._watch_callback()
        else:
            sys.addaudithook(self.audit)
            torch.save = self._cut_short(torch.save, 1)
            safetensors.torch.serialize_file = self._cut_short(safetensors.torch.serialize_file, 1)

    def come(self) -> None:
        if self.came:
            return
        self.came = True
        if self.sigterm:
            signal.raise_signal(signal.SIGTERM)
            return
        pipe.send("here")
        while True:
            signal.pause()

    def _watch_callback(self) -> None:
        before = getattr(DefaultFlowCallback, self.moment)
        # `Trainer` counts a step at its end.
        counted = self.step if self.moment == "on_step_end" else self.step - 1

        def watched(callback: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if state.global_step == counted:
                self.come()
            return before(callback, args, state, control, **kwargs)

        setattr(DefaultFlowCallback, self.moment, watched)

    def _cut_short(self, write: Callable[..., Any], index: int) -> Callable[..., Any]:
        """Wraps `write` so that it leaves a truncated file, as if it were interrupted."""

        def written(*args: Any, **kwargs: Any) -> None:
            write(*args, **kwargs)
            if self.moment == "within" and self._is_meant(args[index]):
                os.truncate(args[index], int(self.share * os.stat(args[index]).st_size))
                self.come()

        return written

    def _is_meant(self, path: Any) -> bool:
        return fnmatch(os.path.abspath(path), str(self.file))

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python calls this before each file operation of this process."""
        if self.came:
            return
        if self.moment == "removing":
            if event == "shutil.rmtree" and (self.file / "trainer_state.json").exists():
                self.removing = Path(arguments[0]).name.startswith(".saving-checkpoint-")
            elif event == "os.remove" and self.removing:
                self.count -= 1
                if self.count < 0:
                    self.come()
            return
        opened = event == "open" and "w" in str(arguments[1]) and isinstance(arguments[0], (str, os.PathLike))
        target = arguments[0] if opened else arguments[1] if event == "os.rename" else None
        if target is None or not self._is_meant(target):
            return
        if self.moment == "within":
            self.came = True
            text = b'{\n  "best_global_step": null,\n  "processes": 1, "state": {'
            Path(target).write_bytes(text[: int(self.share * len(text))])
            self.came = False
        self.come()


# As in an ordinary process: workers of a data loader end with it.
multiprocessing.set_start_method("fork", force=True)
# Killing a process loses nothing that it has written, so nothing has to wait for the disk.
os.fsync = lambda descriptor: None
# Collections then pass over what was imported before the fork: `Trainer` collects at its end, in 0.4 s without this.
gc.freeze()
sys.stderr = open(job["log"], "a")  # noqa: SIM115
os.environ |= job["environment"]
torch.set_num_threads(1)
if job["stop"] is not None:
    Stop(**job["stop"])
if "code" in job:
    exec(job["code"], {"__name__": "__main__"})
else:
    from chatgpt_hf_cli import main

    sys.argv = ["chatgpt-hf", *job["arguments"]]
    main()

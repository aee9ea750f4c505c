"""A process that has imported what commands import, and runs each in a fork of itself: importing takes longer than most of them.

forking.py starts it. It reads requests from its standard input and answers each on its standard output, in lines of JSON:

- A job: `code` in Python, `arguments` of `chatgpt-hf`, or both, in this order; the `folder` to be in; and `streams`, the files
  that are the standard input, output and error. The answer is the process's id.
- `wait` with a process's id. The answer is its exit code, when it has ended.
- `poll` with a process's id. The answer is its exit code, or null if it still runs.
"""

import contextlib
import gc
import json
import os
import signal
import sys

import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import scipy.io  # noqa: F401
import trl  # noqa: F401
from transformers import Trainer  # noqa: F401

from chatgpt_hf_cli import main

with contextlib.suppress(ImportError):
    import chatgpt_hf.serving.server  # noqa: F401


def exit_code(pid: int, options: int) -> int | None:
    ended, status = os.waitpid(pid, options)
    return os.waitstatus_to_exitcode(status) if ended else None


# Collections in the forks pass over what is imported here, which takes 0.4 s each otherwise.
gc.freeze()
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job or "poll" in job:
        print(
            json.dumps(exit_code(job["wait"], 0) if "wait" in job else exit_code(job["poll"], os.WNOHANG)), flush=True
        )
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    # Ends a job that hangs; none takes as long on a slow and busy machine.
    signal.alarm(3600)
    for descriptor, file in enumerate(job["streams"]):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if descriptor else 0)), descriptor)
    os.chdir(job["folder"])
    if "code" in job:
        exec(compile(job["code"], "<example>", "exec"), {"__name__": "__main__"})
    if "arguments" in job:
        sys.argv = ["chatgpt-hf", *job["arguments"]]
        main()
    break

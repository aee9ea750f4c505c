"""A process that has imported what commands import, and runs each in a fork of itself: importing takes longer than most of them.

Reads jobs from its standard input, a line of JSON each: `arguments` of `chatgpt-hf` or `code` in Python, the `folder` to be in,
and `streams`, the files that are the standard input, output and error. Answers each with the exit code, when it has ended.
"""

import json
import os
import signal
import sys

import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import trl  # noqa: F401
from transformers import Trainer  # noqa: F401

from chatgpt_hf.cli import main

print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    # Ends a job that hangs; none takes as long on a slow and busy machine.
    signal.alarm(3600)
    os.chdir(job["folder"])
    for descriptor, file in enumerate(job["streams"]):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if descriptor else 0)), descriptor)
    if "code" in job:
        exec(compile(job["code"], "<example>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = ["chatgpt-hf", *job["arguments"]]
        main()
    break

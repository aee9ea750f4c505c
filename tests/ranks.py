"""Starts a command in several processes that find one another, as launchers do, but forked from one that has imported everything."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Ends a test that would hang.
PATIENCE = 900
# Kills its own process.
KILL = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


@dataclass(frozen=True)
class Ended:
    """How the processes ended, each in the order of the ranks.

    Attributes:
        codes: Exit codes.
        out, err: What they printed.
    """

    codes: list[int]
    out: list[str]
    err: list[str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(
    server: Any,
    folder: Path,
    arguments: Sequence[object] = (),
    *,
    size: int = 2,
    code: str = "",
    of: Mapping[int, Mapping[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Runs `arguments` of `chatgpt-hf`, if there are any, in each of several processes, to their ends.

    Args:
        server: The fixture `fork_server`.
        folder: For what they print.
        code: Python that each runs first.
        of: For some ranks further `code`, `arguments` and `environment`.
    """
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    common |= {"LOCAL_WORLD_SIZE": str(size), "CHATGPT_HF_CACHE": os.environ["CHATGPT_HF_CACHE"]}
    pids, files = [], []
    for rank in range(size):
        own = (of or {}).get(rank, {})
        variables = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), **(environment or {})}
        variables |= own.get("environment", {})
        lines = f"import os, torch\nos.environ.update({variables!r})\ntorch.set_num_threads(1)\nos.fsync = lambda descriptor: None\n"
        streams = [str(folder / f"{name}{rank}") for name in ("in", "out", "err")]
        for file in streams:
            Path(file).write_text("")
        job: dict[str, Any] = {
            "code": f"{lines}{code}\n{own.get('code', '')}",
            "folder": str(folder),
            "streams": streams,
        }
        if arguments:
            job["arguments"] = [str(word) for word in (*arguments, *own.get("arguments", ()))]
        pids.append(server.ask(**job))
        files.append(streams)
    end = time.monotonic() + PATIENCE
    codes: list[int | None] = [None] * size
    while None in codes:
        assert time.monotonic() < end, f"still running: {codes}"
        codes = [server.ask(poll=pid) if known is None else known for pid, known in zip(pids, codes, strict=True)]
        time.sleep(0.02)
    printed = [[Path(file).read_text(errors="replace") for file in streams] for streams in files]
    return Ended(
        [code for code in codes if code is not None], [texts[1] for texts in printed], [texts[2] for texts in printed]
    )


def under_torchrun(arguments: Sequence[object], *, restarts: int, first_time: str = "") -> str:
    """Code that starts two processes with torchrun's agent, forked instead of imported anew.

    Args:
        first_time: Python that process 1 runs first, unless it was restarted.
    """
    return f"""
import os, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from chatgpt_hf_cli import main

def work():
    os.fsync = lambda descriptor: None
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        exec({first_time!r}, {{}})
    sys.argv = ["chatgpt-hf", *{json.dumps([str(word) for word in arguments])}]
    main()

os.environ["CHATGPT_HF_CACHE"] = {os.environ["CHATGPT_HF_CACHE"]!r}
elastic_launch(
    LaunchConfig(1, 1, 2, run_id="test", rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", max_restarts={restarts}, start_method="fork"),
    work,
)()
"""

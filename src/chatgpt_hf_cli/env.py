"""`chatgpt-hf env`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._terminal import say
from .errors import UsageMistake
from .help import Command

if TYPE_CHECKING:
    from pathlib import Path

    from chatgpt_hf.cache import Entry, Pruned


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def env(
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
        prune: Annotated[
            bool, typer.Option("--prune", help="Empty this package's cache instead, and say what was removed.")
        ] = False,
        older_than: Annotated[
            float | None,
            typer.Option("--older_than", help="With --prune: only what was not used for this many days."),
        ] = None,
    ) -> None:
        """Show versions, machine and caches for a bug report, or empty the cache.

        --prune removes only what this package wrote into its own cache: training rows, texts and models of an adaptation, and what killed processes left there. What a running process uses stays. The caches of datasets and of the Hub are not touched. The cache is $CHATGPT_HF_CACHE, or ~/.cache/chatgpt_hf.

        Example: chatgpt-hf env

        Example: chatgpt-hf env --prune --older_than 30
        """
        if older_than is not None and not prune:
            raise UsageMistake("--older_than needs --prune.")
        if older_than is not None and not older_than >= 0:
            raise UsageMistake(f"--older_than is {older_than:g}: give a number of days, 0 or more.")
        if prune:
            from chatgpt_hf.cache import cache_root
            from chatgpt_hf.cache import prune as empty

            root = cache_root()
            pruned = empty(root, older_than=older_than or 0)
            say(json.dumps(pruned_figures(root, pruned), indent=2) if as_json else pruned_text(root, pruned))
            return
        from chatgpt_hf.environment import environment

        found = environment()
        say(json.dumps(found, indent=2) if as_json else text(found))


def pruned_figures(root: "Path", pruned: "Pruned") -> dict[str, Any]:
    """Returns the object that `--prune --json` prints."""

    def rows(entries: "list[Entry]") -> list[dict[str, Any]]:
        return [{**asdict(entry), "path": str(entry.path)} for entry in entries]

    return {
        "cache": str(root),
        "bytes": sum(entry.bytes for entry in pruned.removed),
        "removed": rows(pruned.removed),
        "in_use": rows(pruned.in_use),
    }


def pruned_text(root: "Path", pruned: "Pruned") -> str:
    """Returns the text that `--prune` prints."""
    from chatgpt_hf.cache import readable

    lines = [f"{readable(entry.bytes):>12}  {entry.kind:<10}  {entry.path}" for entry in pruned.removed]
    lines += [f"In use, not removed: {entry.path} ({readable(entry.bytes)})" for entry in pruned.in_use]
    total = readable(sum(entry.bytes for entry in pruned.removed))
    return "\n".join([*lines, f"Removed {total} from {root}" if pruned.removed else f"Nothing to remove from {root}"])


def text(found: dict[str, Any]) -> str:
    """The lines of a bug report."""
    from chatgpt_hf.cache import readable

    lines = [f"- {name}: {version or 'not installed'}" for name, version in found["versions"].items()]
    lines.append(f"- platform: {found['platform']}")
    lines.append("- CPU cores: {count}, usable: {usable}".format(**found["cores"]))
    memory = found["memory"]
    lines.append(f"- memory: {readable(memory['total'])}, available: {readable(memory['available'])}")
    accelerators = [
        device["name"] + (f", {readable(device['memory'])}" if device["memory"] else "")
        for device in found["accelerators"]
    ]
    lines += [f"- accelerator: {name}" for name in accelerators or ["none"]]
    lines.append("- extras: " + (", ".join(name for name, lacks in found["extras"].items() if not lacks) or "none"))
    lines += [f"- not in extra {name}: {', '.join(lacks)}" for name, lacks in found["extras"].items() if lacks]
    for cache in found["caches"]:
        size, free = readable(cache["bytes"]), readable(cache["free"])
        lines.append(f"- cache of {cache['name']}: {cache['path']}, {size}, free on its disk: {free}")
    return "\n".join(lines)

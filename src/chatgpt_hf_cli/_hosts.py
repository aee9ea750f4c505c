"""The option for the names that a server answers to."""

from typing import Annotated

import typer

AllowedHostsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed_hosts",
        help="Further names under which browsers may use it, separated by commas; on a loopback address it otherwise answers only "
        "to localhost and loopback addresses. * allows all.",
    ),
]

"""What all commands share: the console, the experiment to work on, and changes to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from physnet.errors import DeclarationError

console = Console(width=None if sys.stdout.isatty() else 110)

File = Annotated[Path, typer.Argument(help="an experiment in YAML", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", help="change a value, such as --set learn.beta=0.05")]


def changes(items: list[str] | None) -> dict[str, str]:
    """What stands behind every --set, by key.

    Raises:
        DeclarationError: if one of them isn't KEY=VALUE.
    """
    result: dict[str, str] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise DeclarationError(f"--set {item}: expected KEY=VALUE", "such as --set train.epochs=3")
        result[key.strip()] = value
    return result

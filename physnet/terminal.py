"""What all commands share: the console, the experiment to work on, and changes to it."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from physnet.errors import DataError, DeclarationError

console = Console(width=None if sys.stdout.isatty() else 110)

File = Annotated[Path, typer.Argument(help="an experiment in YAML", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", help="change a value, such as --set learn.beta=0.05")]


Hardware = Annotated[
    list[str] | None, typer.Option("--hardware", help="a key of the hardware, such as --hardware bits=4")
]


def changes(items: list[str] | None, section: str = "") -> dict[str, str]:
    """What stands behind every --set, or --hardware, by dotted key.

    Arguments:
        items: KEY=VALUE.
        section: what the keys belong to, if not to the whole experiment; also the name of the option.

    Raises:
        DeclarationError: if one of them isn't KEY=VALUE.
    """
    result: dict[str, str] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            example = "--hardware bits=4" if section else "--set train.epochs=3"
            raise DeclarationError(f"--{section or 'set'} {item}: expected KEY=VALUE", f"such as {example}")
        result[f"{section}.{key.strip()}" if section else key.strip()] = value
    return result


def made_folder(folder: Path) -> Path:
    """A folder that exists from now on.

    Raises:
        DataError: if it can't be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DataError(f"{folder}: can't be created ({problem.strerror}); choose another with --out") from None
    return folder


def write_csv(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Rows by column, as a CSV file.

    Raises:
        DataError: if it can't be written.
    """
    columns = dict.fromkeys(key for row in table for key in row)
    try:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(table)
    except OSError as problem:
        raise DataError(f"{path}: can't be written ({problem.strerror}); choose another folder with --out") from None

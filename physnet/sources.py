"""YAML with a memory of where everything stood, so that an error can point at it.

Files are data: tags, duplicate keys and oversized or deeply nested documents are refused before anything is built.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from physnet.errors import DeclarationError, Fault, Place

MAX_BYTES = 100_000
MAX_EVENTS = 10_000
MAX_VALUES = 50_000
MAX_DIGITS = 40
MAX_DEPTH = 30


@dataclass(frozen=True)
class Source:
    """A parsed file.

    Arguments:
        name: what errors call it.
        lines: its text.
        tree: the parsed document, with positions.
        data: the same as plain dicts and lists.
        moved: where values stand in the file that were put elsewhere in the data, by their path there.
    """

    name: str
    lines: tuple[str, ...]
    tree: Any
    data: Any
    moved: Mapping[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)

    def locate(self, fault: Fault) -> Fault:
        """The fault with its place in this file: the deepest key of its path that the file holds."""
        for there, here in self.moved.items():
            if fault.path[: len(there)] == there:
                fault = replace(fault, path=(*here, *fault.path[len(there) :]))
                break
        tree, position, exact = self.tree, (0, 0), True
        for depth, key in enumerate(fault.path, 1):
            found = _position(tree, key, fault.at_key and depth == len(fault.path))
            if found is None:
                exact = False
                break
            position, tree = found
        line, column = position
        text = self.lines[line] if line < len(self.lines) else ""
        if exact and fault.offset is not None and not isinstance(tree, dict | list):
            quoted = text[column : column + 1] in ("'", '"')
            column = column + fault.offset + quoted
            if column > len(text):  # a folded or multi-line scalar: the expression itself is shown instead
                return replace(fault, place=Place(self.name, line + 1), message=f"{fault.message} in {fault.value}")
        return replace(fault, place=Place(self.name, line + 1, column + 1, text))

    def relocate(self, error: DeclarationError) -> DeclarationError:
        """The error with every fault that has no place yet located in this file."""
        return type(error)(fault if fault.place else self.locate(fault) for fault in error.faults)


def _position(tree: Any, key: str | int, at_key: bool) -> tuple[tuple[int, int], Any] | None:
    if isinstance(tree, CommentedMap) and key in tree:
        child = tree[key]
        if key not in (tree.lc.data or {}):  # merged into the mapping from elsewhere
            return (tree.lc.line, tree.lc.col), child
        whole = at_key or isinstance(child, CommentedMap | CommentedSeq)
        where = tree.lc.key(key) if whole else tree.lc.value(key)
        return (where[0], where[1]), child
    if isinstance(tree, CommentedSeq) and isinstance(key, int) and key < len(tree):
        where = tree.lc.item(key)
        return (where[0], where[1]), tree[key]
    return None


def read_source(path: str | Path) -> Source:
    """Read a YAML file.

    Raises:
        DeclarationError: if it can't be read, isn't YAML, or isn't plain data.
    """
    path = Path(path)
    try:
        mode = path.stat()
        if not stat.S_ISREG(mode.st_mode):  # a pipe or a device may never end
            raise DeclarationError(f"{path}: not a file", "give the name of a YAML file")
        raw = path.read_bytes() if mode.st_size <= MAX_BYTES else None
    except OSError as problem:
        raise DeclarationError(f"{path}: {problem.strerror or problem}", "check the name of the file") from None
    except ValueError as problem:
        if isinstance(problem, DeclarationError):
            raise
        raise DeclarationError(f"{path}: {problem}", "check the name of the file") from None
    if raw is None:
        raise DeclarationError(f"{path}: larger than {MAX_BYTES:,} bytes", "a declaration is a short text")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise DeclarationError(f"{path}: not a text file", "declarations are UTF-8 encoded YAML") from None
    return parse_source(text, str(path))


def parse_source(text: str, name: str = "<text>") -> Source:
    """Parse YAML text; `name` is what errors call it."""
    if len(text) > MAX_BYTES:
        raise DeclarationError(f"{name}: larger than {MAX_BYTES:,} bytes", "a declaration is a short text")
    lines = tuple(text.splitlines())

    def fail(message: str, fix: str, line: int = 0, column: int = 0) -> DeclarationError:
        shown = lines[line][:200] if line < len(lines) else ""
        return DeclarationError(Fault(message, fix, place=Place(name, line + 1, min(column, 200) + 1, shown)))

    try:
        _check_events(text, fail)
        tree = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as problem:
        mark = problem.problem_mark
        message = str(problem.problem or problem.context or "not YAML").split("\n")[0]
        raise fail(
            f"YAML: {message}",
            "give each key once" if "duplicate" in message else "check indentation, colons and quotes",
            mark.line if mark else 0,
            mark.column if mark else 0,
        ) from None
    except DeclarationError:
        raise
    except Exception as problem:  # the reader stumbles over malformed documents in many ways
        reason = next(iter(str(problem).splitlines()), type(problem).__name__)
        raise fail(f"this can't be read as YAML: {reason}", "a declaration is plain YAML") from None
    return Source(name, lines, tree, _Plain(fail).convert(tree, 0))


def _check_events(text: str, fail: Any) -> None:
    """Refuse tags and what is too large or nested too deep, one event after the other, before anything is built."""
    depth = 0
    for number, event in enumerate(YAML(typ="safe", pure=True).parse(text)):
        mark = event.start_mark
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if number > MAX_EVENTS:
            raise fail(f"more than {MAX_EVENTS} values", "a declaration is a short text", mark.line, mark.column)
        if depth > MAX_DEPTH:
            raise fail(f"nested more than {MAX_DEPTH} deep", "a declaration is flat", mark.line, mark.column)
        if getattr(event, "tag", None) is not None:
            raise fail(f"the tag {event.tag} is not allowed", "remove it", mark.line, mark.column)


class _Plain:
    """Copies a parsed document into dicts, lists and scalars, counting what aliases multiply."""

    def __init__(self, fail: Any) -> None:
        self.fail, self.values = fail, 0

    def convert(self, tree: Any, depth: int) -> Any:
        self.values += 1
        line, column = (tree.lc.line, tree.lc.col) if isinstance(tree, CommentedMap | CommentedSeq) else (0, 0)
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            raise self.fail("the document is too large or nested too deep", "aliases count each time", line, column)
        if isinstance(tree, CommentedMap):
            for key in tree:
                if not isinstance(key, str):
                    raise self.fail(f"the key {key!r} is not text", "quote it", *tree.lc.key(key))
            return {str(key): self.convert(value, depth + 1) for key, value in tree.items()}
        if isinstance(tree, list):
            return [self.convert(value, depth + 1) for value in tree]
        if isinstance(tree, bool) or tree is None:
            return tree
        if isinstance(tree, int) and abs(tree) >= 10**MAX_DIGITS:
            raise self.fail(f"a number of more than {MAX_DIGITS} digits", "rescale")
        for kind in (int, float, str):  # ruamel's round-trip scalars are subclasses of these
            if isinstance(tree, kind):
                return kind(tree)
        raise self.fail(f"{tree!r} is neither a number nor text", "quote it")


def dump_yaml(data: Any) -> str:
    """Plain data as YAML text, keys in the order given."""
    from io import StringIO

    writer = YAML()
    writer.default_flow_style = None
    writer.width = 120
    stream = StringIO()
    writer.dump(data, stream)
    return stream.getvalue()

# ruff: noqa: E501 the rows of tables are long
"""Files that anybody may have written: whatever they hold, the answer is a `DeclarationError`, at once; no code runs.

The oracle of every row is the promise itself: the kind of error, the time it takes, the modules that are loaded when it
comes, and a file that any of the payloads would have left behind had it run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from physnet.declaration import load_experiment, parse_experiment
from physnet.errors import DeclarationError
from physnet.expressions import parse

ROOT = Path(__file__).parent.parent
LIMIT = 2.0
"""Seconds of processor time that any refusal may take, so that a busy machine changes nothing."""
BLOCKED = 30
"""Seconds after which something waits for ever."""

GOOD = """\
name: small
energy: hopfield
nodes:
  a: {shape: 4, role: input}
  b: {shape: 3}
  c: {shape: 2, role: output, domain: real}
edges:
  - a -> b: dense
  - b -> c: dense
cost: (x - y)**2/2
"""


class _Slow(BaseException):
    """Not an `Exception`, so that nothing in between can swallow it."""


@contextmanager
def in_time() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise _Slow

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, LIMIT), signal.SIGALRM: (signal.ITIMER_REAL, BLOCKED)}
    before = {number: signal.signal(number, ring) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    except _Slow:
        pytest.fail("took too long")
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def refused(text: str) -> DeclarationError:
    with in_time(), pytest.raises(DeclarationError) as caught:
        parse_experiment(text)
    assert all(fault.message for fault in caught.value.faults)
    return caught.value


def with_cost(expression: str) -> str:
    return GOOD.replace("(x - y)**2/2", json.dumps(expression))


CODE = [
    "__import__('os').system('touch canary')",
    "__import__('os').system('x')",
    "open('canary', 'w')",
    "exec('1')",
    "eval('1')",
    "x.__class__",
    "x.__class__.__bases__[0].__subclasses__()",
    "().__class__",
    "x[0]",
    "x[:, None]",
    "lambda: x",
    "(lambda z: z)(x)",
    "[x for x in (1, 2)]",
    "{x: 1}",
    "{x}",
    "(x, y)",
    "(x := 3)",
    "x if y else 1",
    "x and y",
    "not x",
    "x < y",
    "x == y",
    "x @ y",
    "x // y",
    "x % y",
    "x & y",
    "~x",
    "x << 3",
    "f'{x}'",
    "'x'",
    "b'x'",
    "'x' * 10**9",
    "await x",
    "yield x",
    "*x",
    "x; y",
    "x = 1",
    "import os",
    "sin(*x)",
    "sin(**x)",
    "sin(x, evaluate=False)",
    "sin.__call__(x)",
    "sin(x)(y)",
    "print(x)",
    "torch.zeros(3)",
    "sympify(x)",
    "x.subs(x, 1)",
    "__builtins__",
    "_x",
    "None",
    "True",
    "...",
    "1j",
    "#",
    "",
    " ",
    "\\",
    "\t\n",
    "\0",
    "x\0",
    "x # canary",
    "x\n+ y; import os",
]
NUMBERS = [
    "9**9**9",
    "9**9**9*x",
    "x**9**9",
    "2**-9999999999*x",
    "x**x**x**x**1e9",
    "x**33",
    "(x + y)**500",
    "(x**30)**30",
    "((x**8)**8)**8",
    "1e400*x",
    "-1e400*x",
    "1e-400*x",
    "1e39*x",
    "inf",
    "nan",
    "nan*x",
    "x/0",
    "0/0",
    "0**-1",
    "1/(x - x)",
    "log(0)",
    "log(-1)*x",
    "sqrt(-2)",
    "(-1)**0.5",
    "(-8)**(1/3)",
    "exp(1000)",
    "exp(exp(exp(exp(1e9))))",
    "exp(exp(exp(5)))*x",
    "tan(pi/2)",
    "max(1/0, x)",
    "10**10**10",
    "1" * 3000,
    "0x" + "f" * 3000,
    "1" * 5000,
    "factorial(10**9)",
    "gamma(x)",
    "x!",
    "sin(x, y)",
    "sin()",
    "max(x)",
    "clip(x)",
    "relu",
    "pi(x)",
    "(" * 10_000 + "x" + ")" * 10_000,
    "(" * 1000 + "x" + ")" * 1000,
    "-" * 3000 + "x",
    "+".join(["x"] * 1900),
    "x" + "**x" * 500,
    "sin(" * 300 + "x" + ")" * 300,
    "x" * 100_000,
    "x+" * 100_000,
]
NAMES = [
    "ｘ**2",  # a full-width x, which Python takes for x
    "𝓍𝓎",
    "ſin(x)",  # a long s, which Python takes for an s
    "x\u202e + y",
    "x\u200b",
    "x\ufeff",
    "х",
    "x²",
    "x − y",
    "√x",
    "print",
    "torch",
    "lambda",
    "None_",
    "self",
    "p",
    "s",
    "nudge",
    "fixed 0",
    "b__c",
    "b.c",
    "pre",
    "t",
    "a",
]


@pytest.mark.parametrize("expression", [*CODE, *NUMBERS, *NAMES], ids=lambda text: ascii(text[:30]))
def test_an_expression_is_arithmetic_or_refused(
    expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(with_cost(expression))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "coupling",
    [
        "(pre + post)**32*(pre - post)**32*(1 + pre*post)**32",
        "*".join(f"(pre + {k}*post)**9" for k in range(1, 12)),
        "exp((pre + post + w)**32*(pre + w)**32)",
        "cos((pre + post)**32*(pre + 2*post)**32*(pre + 3*post)**32)",
        "w*unknown",
        "w*x",
    ],
)
def test_a_coupling_that_explodes_when_it_is_expanded_is_refused(coupling: str) -> None:
    refused(f"""
energy:
  node: x**2/2
  coupling: {coupling}
  parameters: {{w: {{on: edge}}}}
nodes: {{a: {{shape: 4, role: input}}, b: {{shape: 3, role: output}}}}
edges: [a -> b]
""")


@pytest.mark.parametrize(
    "init",
    ["normal(0, 1)**9**9", "__import__('os')", "uniform(0)", "normal", "zeros(3)", "uniform(x, 1)", "fan", "nan", "1/0",
     "uniform(0, 1e400)", "log(-1)", "", "[]", "{}", "null", "true", "2026-01-01"],
)  # fmt: skip
def test_an_initialiser_is_arithmetic_or_refused(init: str) -> None:
    if init in ("null", "[]", "{}", "true", "2026-01-01", ""):
        refused(GOOD.replace("b: {shape: 3}", f"b: {{shape: 3, parameters: {{b: {{init: {init}}}}}}}"))
    else:
        refused(GOOD.replace("b: {shape: 3}", f"b: {{shape: 3, parameters: {{b: {{init: {json.dumps(init)}}}}}}}"))


SHAPES = [
    "-3", "0", "1.5", "true", "false", "null", ".nan", ".inf", "-.inf", "[]", "[0]", "[-1, 3]", "[3, 1.5]", "[[3]]",
    "[3, null]", "{}", "{a: 3}", "abc", "'3'", "1e3", "[2147483647, 9]", "99999999999999999999", "[1, 1, 1, 1, 1, 1, 1, 1, 1]",
    "[65536, 65536]", "2147483649", "0x1_0000_0000", "2026-01-01", "[true]", "!!int 3", "&a [*a]", "''",
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_positive_whole_numbers_or_refused(shape: str) -> None:
    refused(GOOD.replace("{shape: 3}", f"{{shape: {shape}}}"))


DOMAINS = ["[1, 0]", "[0, 0]", "[.nan, 1]", "[0, .nan]", "[]", "[0]", "[0, 1, 2]", "[[0, 1], [2, 1]]", "3", ".inf", "true",
           "{}", "{real: 3}", "dense", "real(3)", "circle(circle)", "'[0, 1]'", "__import__('os')", "a.b", "[circle]",
           "[{real: 99}]", "[{real: -1}]", "[{real: 1.5}]", "[{'[': 3}]", "[[[[[[0, 1]]]]]]", "'lambda: 3'", "'('", "''"]  # fmt: skip


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_is_known_or_refused(domain: str) -> None:
    refused(GOOD.replace("{shape: 3}", f"{{shape: 3, domain: {domain}}}"))


CONNECTED = ["densely", "dense(3)", "dense(x=1)", "dense(*[1])", "dense(**{})", "dense.__class__", "dense()()", "[dense]", "{}",
             "3", "true", "dense; import os", "__import__('os').system('touch canary')", "dense(__import__('os'))",
             "dense(9**9**9)", "'" + "dense(" * 3000 + "'", "'" + "(" * 400 + "'", "'dense\0'", "''", "identity"]  # fmt: skip


@pytest.mark.parametrize("via", CONNECTED, ids=lambda text: ascii(text[:30]))
def test_a_connection_is_known_or_refused(via: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(GOOD.replace("a -> b: dense", f"a -> b: {{via: {via}}}" if via[0] != "{" else "a -> b: {via: {}}"))
    assert list(tmp_path.iterdir()) == []


GRAPHS = {
    "an edge to nowhere": GOOD.replace("a -> b: dense", "a -> z: dense"),
    "an edge from nowhere": GOOD.replace("a -> b: dense", "z -> b: dense"),
    "an edge to itself": GOOD.replace("a -> b: dense", "b -> b: dense"),
    "an edge of clamped nodes": GOOD.replace("b: {shape: 3}", "b: {shape: 3, role: input}").replace("b -> c", "a -> b"),
    "an edge twice": GOOD.replace("cost", "  - a -> b: dense\ncost"),
    "no arrow": GOOD.replace("a -> b: dense", "a b: dense"),
    "two arrows": GOOD.replace("a -> b: dense", "a -> b -> c: dense"),
    "a list for an edge": GOOD.replace("a -> b: dense", "[a, b]"),
    "a number for an edge": GOOD.replace("- a -> b: dense", "- 3"),
    "nothing for an edge": GOOD.replace("- a -> b: dense", "-"),
    "a mapping of edges": GOOD.replace("- a -> b: dense", "a: b").replace("- b -> c: dense", "b: c"),
    "two keys in an edge": GOOD.replace("a -> b: dense", "{a -> b: dense, b -> c: dense}"),
    "two nodes of one name": GOOD.replace("  b: {shape: 3}", "  b: {shape: 3}\n  b: {shape: 3}"),
    "two quoted nodes of one name": GOOD.replace("  b: {shape: 3}", "  b: {shape: 3}\n  'b': {shape: 3}"),
    "a node called like an edge": GOOD.replace("  b: {shape: 3}", "  b: {shape: 3}\n  a_b: {shape: 3}"),
    "an unreachable node": GOOD.replace("  b: {shape: 3}", "  b: {shape: 3}\n  d: {shape: 3}"),
    "an unknown key": GOOD + "surprise: 3\n",
    "a key of another kind": GOOD + "3: 4\n",
    "an empty key": GOOD + "'': 4\n",
    "a null key": GOOD + "~: 4\n",
    "a list as a key": GOOD + "? [a, b]\n: 4\n",
    "a mapping as a key": GOOD + "? {a: b}\n: 4\n",
    "no nodes": "edges: []\n",
    "empty nodes": "nodes: {}\n",
    "null nodes": "nodes:\n",
    "a list of nodes": "nodes: [a, b]\n",
    "a null node": GOOD.replace("b: {shape: 3}", "b:"),
    "a name with blanks": GOOD.replace("b: {shape", "b c: {shape"),
    "a dotted name": GOOD.replace("  b: {shape", "  b.c: {shape"),
    "a dunder name": GOOD.replace("  b: {shape", "  __class__: {shape"),
    "a path for a name": GOOD.replace("  b: {shape", "  ../b: {shape"),
    "code for a name": GOOD.replace("  b: {shape", "  'b(); import os': {shape"),
    "a newline in a name": GOOD.replace("  b: {shape", '  "b\\nimport os": {shape'),
    "a foreign letter in a name": GOOD.replace("  b: {shape", "  ｂ: {shape"),
    "a bidirectional name": GOOD.replace("  b: {shape", '  "b\\u202ec": {shape'),
    "a long name": GOOD.replace("  b: {shape", f"  {'b' * 5000}: {{shape"),
    "a keyword for an input": GOOD.replace("a: {", "beta: {").replace("a -> b", "beta -> b"),
    "an unknown energy": GOOD.replace("hopfield", "hopfeld"),
    "a path for an energy": GOOD.replace("hopfield", "../../../etc/passwd"),
    "an energy file that isn't there": GOOD.replace("hopfield", "./absent.yaml"),
    "a folder for an energy": GOOD.replace("hopfield", "/tmp/.yaml"),
    "a number for an energy": GOOD.replace("hopfield", "3"),
    "a list for an energy": GOOD.replace("hopfield", "[hopfield]"),
    "an empty domain role": GOOD.replace("hopfield", "{domain: {input: real}}"),
    "a parameter that is no mapping": GOOD.replace("hopfield", "{parameters: {b: 3}}"),
    "a reserved parameter": GOOD.replace("hopfield", "{parameters: {x: {on: node}}}"),
    "a parameter with a number for a name": GOOD.replace("hopfield", "{parameters: {3: {on: node}}}"),
    "a constant that isn't finite": GOOD.replace("{shape: 3}", "{shape: 3, parameters: {b: {init: g*ones, g: .nan}}}"),
    "an infinite gain": GOOD.replace("a -> b: dense", "a -> b: {gain: .inf}"),
    "a gain of text": GOOD.replace("a -> b: dense", "a -> b: {gain: big}"),
    "a constraint to a circle": GOOD.replace("{shape: 3}", "{shape: 3, parameters: {b: {constraint: circle}}}"),
    "a cost on nothing": GOOD.replace("cost: (x - y)**2/2", "costs: [{node: z, term: x}]"),
    "a weight that isn't finite": GOOD.replace("cost: (x - y)**2/2", "costs: [{node: c, term: x - y, weight: .nan}]"),
    "a cost on an input": GOOD.replace("cost: (x - y)**2/2", "costs: [{node: a, term: x - y}]"),
    "a target called like an input": GOOD.replace("cost: (x - y)**2/2", "costs: [{node: c, term: x - y, target: a}]"),
    "a target with a bad name": GOOD.replace("cost: (x - y)**2/2", "costs: [{node: c, term: x - y, target: 'y\"];1'}]"),
    "a beta that isn't a number": GOOD + "learn: {beta: .nan}\n",
    "an infinite beta": GOOD + "learn: {beta: .inf}\n",
    "a negative beta": GOOD + "learn: {beta: -1}\n",
    "an unknown protocol": GOOD + "learn: {protocol: centred}\n",
    "a tolerance that isn't a number": GOOD + "relax: {tolerance: .nan}\n",
    "an infinite tolerance": GOOD + "relax: {tolerance: .inf}\n",
    "no sweeps": GOOD + "relax: {max_sweeps: 0}\n",
    "a fraction of epochs": GOOD + "train: {epochs: 1.5}\n",
    "endless epochs": GOOD + "train: {epochs: .inf}\n",
    "a batch of true": GOOD + "train: {batch: true}\n",
    "a negative seed": GOOD + "train: {seed: -1}\n",
    "a huge seed": GOOD + "train: {seed: 1" + "0" * 40 + "}\n",
    "a rate that isn't a number": GOOD + "train: {rates: {a_b.w: .nan}}\n",
    "code in the name of a target": GOOD.replace(
        "cost: (x - y)**2/2", 'costs: [{node: c, term: x - y, target: \'t"]; open("canary", "w") #\'}]'
    ),
    "code in the name of a parameter": GOOD.replace(
        "{shape: 3}", '{shape: 3, parameters: {\'b"]; open("canary", "w") #\': {init: zeros}}}'
    ),
    "an unknown data set": GOOD + "train: {data: digitz}\n",
    "an unknown option of data": GOOD + "train: {data: {npz: {path: x}}}\n",
    "two data sets": GOOD + "train: {data: {npz: {file: x}, mnist: {}}}\n",
    "a list of data": GOOD + "train: {data: [digits]}\n",
    "a future format": GOOD + "physnet: 2\n",
    "a format of text": GOOD + "physnet: one\n",
}
"""Declarations that are well-formed YAML."""


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_complete_or_refused(name: str) -> None:
    assert GRAPHS[name] != GOOD
    refused(GRAPHS[name])


def test_faults_of_all_sections_are_told_at_once() -> None:
    text = GOOD.replace("{shape: 3}", "{shape: -3}") + "learn: {protocol: centred}\ntrain: {data: digitz}\n"
    places = {(fault.place.line, fault.path[0]) for fault in refused(text).faults if fault.place}
    assert places == {(5, "nodes"), (11, "learn"), (12, "train")}


def test_what_a_message_shows_is_short_and_printable() -> None:
    hostile = "\x1b]0;title\x07\u202e" + "x" * 3000
    message = str(DeclarationError(hostile, hostile))
    assert all(letter.isprintable() or letter == "\n" for letter in message)
    assert len(message) < 2000


def _laughs(levels: int) -> str:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{k}: &l{k} [{', '.join([f'*l{k - 1}'] * 10)}]" for k in range(1, levels)]
    return "\n".join(lines) + "\n"


DOCUMENTS: dict[str, str] = {
    "nothing": "",
    "a blank": " ",
    "a comment": "# nothing\n",
    "a scalar": "3",
    "text": "abc",
    "a list": "[1, 2]",
    "null": "~",
    "two documents": GOOD + "---\n" + GOOD,
    "an unclosed bracket": "nodes: {a: [",
    "an unclosed quote": 'name: "abc',
    "tabs": "nodes:\n\ta: 3\n",
    "a billion laughs": _laughs(12),
    "laughs in mappings": "b-1: &b-1 {x: 1}\n" + "\n".join(f"b{k}: &b{k} {{p: *b{k - 1}, q: *b{k - 1}}}" for k in range(60)),
    "an alias of itself": "a: &a [*a]\n",
    "an alias of a mapping of itself": "&a nodes: *a\n",
    "a mapping that holds itself": "nodes: &a {b: *a}\n",
    "an unknown alias": "a: *nowhere\n",
    "a merge key": "base: &base {shape: 3}\nnodes: {a: {<<: *base}}\n",
    "a merge of itself": "nodes: &a {<<: *a}\n",
    "a merge of a number": "nodes: {<<: 3}\n",
    "many merges": "a: &a {b: 1}\nnodes: {<<: [" + ", ".join(["*a"] * 3000) + "]}\n",
    "a Python tag": "nodes: !!python/object/apply:os.system ['touch canary']\n",
    "a Python name": "nodes: !!python/name:os.system\n",
    "a Python module": "!!python/module:os {}\n",
    "a new Python object": "!!python/object/new:os.system [touch canary]\n",
    "a tag of its own": "nodes: !secret {}\n",
    "a tag on a scalar": "name: !secret x\n",
    "a binary tag": "name: !!binary aGVsbG8=\n",
    "a set": "nodes: !!set {a, b}\n",
    "an ordered mapping": "nodes: !!omap [a: 1]\n",
    "a timestamp": "name: 2026-01-01\n",
    "a tag directive": "%TAG ! tag:example.com,2000:\n---\nnodes: !x {}\n",
    "another version": "%YAML 9.9\n---\nnodes: {}\n",
    "an unknown directive": "%SURPRISE\n---\n{}\n",
    "deep brackets": "a: " + "[" * 10_000 + "]" * 10_000,
    "deep brackets, unclosed": "a: " + "[" * 100_000,
    "deep braces": "a: " + "{a: " * 10_000,
    "deep brackets, line by line": "a:\n" + "\n".join(" [" for _ in range(10_000)),
    "deep indentation": "\n".join(" " * k + "a:" for k in range(900)),
    "deep sequences": "- " * 10_000 + "x",
    "deep keys": "? " * 10_000 + "x",
    "too many comments": "#\n" * 200_000 + "nodes: 3\n",
    "many comments": "#\n" * 45_000 + "nodes: 3\n",
    "many blank lines": "\n" * 95_000 + "nodes: 3\n",
    "many anchors": "\n".join(f"k{k}: &a{k} 1" for k in range(7_000)),
    "many documents": "---\n" * 20_000,
    "a folded scalar": "name: >\n" + "  x\n" * 20_000 + "nodes: 3\n",
    "an alias of a long name": f"a: &{'x' * 100_000} 1\nb: *{'x' * 100_000}\n",
    "deep quotes": "a: " + "'" * 9_999,
    "many keys": "\n".join(f"k{k}: 1" for k in range(9_000)),
    "a long line": "name: " + "x" * 95_000 + "\nsurprise: 1\n",
    "a long key": "x" * 95_000 + ": 1\n",
    "a long number": "nodes: {a: {shape: " + "9" * 100_000 + "}}\n",
    "a long hexadecimal number": "nodes: {a: {shape: 0x" + "f" * 100_000 + "}}\n",
    "a long fraction": "nodes: {a: {shape: 1." + "9" * 100_000 + "}}\n",
    "a long sexagesimal number": "nodes: {a: {shape: " + "1:" * 10_000 + "1}}\n",
    "a long exponent": "nodes: {a: {shape: 1e" + "9" * 10_000 + "}}\n",
    "a NUL": "name: a\0b\n",
    "an escape": "name: \x1b[31m\n",
    "a lone surrogate": 'name: "\\ud800"\nnodes: {a: 1}\n',
    "a bidirectional mark": "\u202enodes: {}\n",
    "a line separator": "nodes:\u2028  a: 1\n",
    "a byte order mark inside": "nodes: {a: \ufeff{}}\n",
    "carriage returns": "nodes: {a: {shape: -1}}\r\nedges: [z]\r\n",
    "lone carriage returns": "nodes: {a: {shape: -1}}\redges: [z]\r",
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_plain_data_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(DOCUMENTS[name])
    assert list(tmp_path.iterdir()) == []
    assert len(str(error)) < 20_000


BYTES = {
    "garbage": bytes(range(256)) * 40,
    "random": bytes((k * k * 7919 >> 3) % 256 for k in range(5000)),
    "zeros": bytes(10_000),
    "utf-16": GOOD.encode("utf-16"),
    "utf-16 without a mark": GOOD.encode("utf-16-le"),
    "utf-32": GOOD.encode("utf-32"),
    "latin-1": "name: é\n".encode("latin-1"),
    "an overlong slash": b"name: \xc0\xaf\n",
    "too large": b"# " + b"x" * 2_000_000,
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "a pickle": b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
}


@pytest.mark.parametrize("name", BYTES)
def test_a_file_is_text_or_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_bytes(BYTES[name])
    with in_time(), pytest.raises(DeclarationError, match=r"hostile\.yaml"):
        load_experiment(path)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_endings_and_a_byte_order_mark_do_no_harm(ending: str, mark: str, tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_bytes((mark + GOOD.replace("\n", ending)).encode())
    assert load_experiment(path).graph == parse_experiment(GOOD).graph


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe, unreadable = tmp_path / "pipe", tmp_path / "unreadable"
    os.mkfifo(pipe)
    unreadable.write_text(GOOD)
    unreadable.chmod(0)
    paths = [
        tmp_path,
        tmp_path / "missing",
        tmp_path / "a\nb",
        pipe,
        Path("/dev/zero"),
        Path("/dev/null"),
        tmp_path / ("x" * 5000),
    ]
    if os.geteuid() != 0:
        paths.append(unreadable)
    for path in paths:
        with in_time(), pytest.raises(DeclarationError):
            load_experiment(path)
    with in_time(), pytest.raises(DeclarationError):
        load_experiment("a\0b")


def test_a_newline_in_a_file_name_is_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.yaml"
    path.write_text(GOOD)
    assert load_experiment(path).graph.name == "small"


@pytest.mark.parametrize(
    ("key", "value"),
    [("learn.beta", ".nan"), ("learn.beta", "!!python/name:os.system"), ("learn.beta", "[" * 1000), ("learn.beta", "&a [*a]"),
     ("learn.beta", "9" * 10_000), ("", "3"), (".", "3"), ("a.b.c", "3"), ("name.x", "3"), ("nodes.b.shape", "-1"),
     ("nodes", "3"), ("__class__", "3"), ("learn.__init__", "3"), ("learn..beta", "1"), ("cost", "__import__('os')"),
     ("." * 10_000, "1"), ("learn.beta", "\0"), ("learn.beta", "{"), ("edges.0", "3")],
    ids=lambda text: ascii(text[:30]),
)  # fmt: skip
def test_a_changed_value_is_judged_like_the_file(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    with in_time(), pytest.raises(DeclarationError):
        load_experiment(path, {key: value})


# --------------------------------------------------------------------------- random text

TOKENS = st.sampled_from(
    ["x", "y", "a", "pre", "w", "sin", "exp", "log", "relu", "clip", "max", "(", ")", "[", "]", ",", "+", "-", "*", "**", "/", "//",
     "%", "0", "1", "2", "9", "33", "1e9", "0.5", "1e400", ".", " ", "\n", "=", ":=", "lambda", ":", "'", '"', "{", "}", "if", "else",
     "nan", "inf", "pi", "_", "#", "\\", "@", "!", "~", "é", "\0", "j", "e"]
)  # fmt: skip


@given(text=st.one_of(st.text(max_size=40), st.lists(TOKENS, max_size=14).map("".join)))
@example("log(sin(pi))")
@example("0**0**-1")
@example("max(x, 1/log(1))")
@example("x**(1/(2-2))")
@settings(max_examples=300)
def test_random_text_is_an_expression_or_refused(text: str) -> None:
    with in_time(), suppress(DeclarationError):
        parse(text)


LINES = st.sampled_from(GOOD.splitlines())
PIECES = st.sampled_from(
    ["a", "nodes", "edges", "shape", "&x", "*x", "<<", "!!int", "!t", ": ", ":", "- ", "[", "]", "{", "}", ",", "'", '"', "|", ">",
     "\n", "\n  ", "? ", "%", "---", "...", "#", "~", "null", ".nan", "1", "-1", "1e9", "0x", "\t", "\r", "@", "`", "é", "\0", "\x85"]
)  # fmt: skip


@given(text=st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=20).map("".join)))
@settings(max_examples=300)
def test_random_text_is_a_declaration_or_refused(text: str) -> None:
    with in_time(), suppress(DeclarationError):
        parse_experiment(text)


@given(at=st.integers(0, len(GOOD)), length=st.integers(0, 12), text=st.lists(PIECES, max_size=3).map("".join))
@settings(max_examples=300)
def test_a_damaged_declaration_is_read_or_refused(at: int, length: int, text: str) -> None:
    with in_time(), suppress(DeclarationError):
        parse_experiment(GOOD[:at] + text + GOOD[at + length :])


# --------------------------------------------------------------------------- the command line

SAMPLE = {
    "code": with_cost("__import__('os').system('touch canary')"),
    "a tower": with_cost("9**9**9"),
    "exponentials": with_cost("exp(exp(exp(exp(1e9))))"),
    "brackets in an expression": with_cost("(" * 10_000 + "x" + ")" * 10_000),
    "brackets": DOCUMENTS["deep brackets"],
    "laughs": DOCUMENTS["a billion laughs"],
    "a tag": DOCUMENTS["a Python tag"],
    "not a number": GRAPHS["a beta that isn't a number"],
    "a negative shape": GOOD.replace("{shape: 3}", "{shape: -3}"),
    "an absurd shape": GOOD.replace("{shape: 3}", "{shape: [2147483647, 9]}"),
    "two nodes of one name": GRAPHS["two nodes of one name"],
    "an exploding coupling": GOOD.replace("b: dense", "b: {via: dense, term: '(pre + post)**32*(pre - post)**32*(2 + pre*post)**32'}"),
    "binary": "".join(map(chr, range(1, 256))),
}  # fmt: skip

# what the entry point does, and then whether torch was needed for it
SCRIPT = """
import sys
from physnet.cli import main
sys.argv = ["physnet", *sys.argv[1:]]
try:
    main()
finally:
    print("torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def started_before() -> None:
    """A first start compiles what it imports and reads it from the disk, which isn't what a refusal takes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", "import physnet.cli"], env=environment, check=True, timeout=BLOCKED)


@pytest.mark.usefixtures("started_before")
@pytest.mark.parametrize("name", SAMPLE)
def test_the_command_line_refuses_at_once_without_torch(name: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(SAMPLE[name], encoding="utf-8")
    before = os.times()
    command = [sys.executable, "-c", SCRIPT, "train" if name == "code" else "explain", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=BLOCKED)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 2, done.stderr
    assert done.stdout.strip() == "False"
    assert "Traceback" not in done.stderr
    assert "hostile.yaml" in done.stderr
    assert seconds < LIMIT
    assert [item.name for item in tmp_path.iterdir()] == ["hostile.yaml"]

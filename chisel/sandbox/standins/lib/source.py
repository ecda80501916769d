"""Read HIP source text as far as a stand-in compiler needs: structure, macros, kernels, launches.

This is no C++ parser. It sees through comments, strings and conditional blocks, finds what is certainly wrong, and
otherwise believes the source.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .motions import Value, evaluate

_TOKEN = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"\n]+)"')
_DEFINE = re.compile(r"^\s*#\s*define\s+(\w+)(?:[ \t]+(.*))?$")
_CONDITION = re.compile(r"^\s*#\s*(ifdef|ifndef|if|elif|else|endif)\b(.*)$")
_ERROR = re.compile(r"^\s*#\s*error\b\s*(.*)$")
_KERNEL = re.compile(
    r"(?:template\s*<(?P<template>[^<>]*)>\s*)?(?P<before>(?:\b(?:static|inline|extern)\b\s*(?:\"C\"|\"\s*\")?\s*)*)"
    r"__global__(?P<between>[^;{}]*?)\bvoid\b(?P<after>[^;{}]*?)\b(?P<name>\w+)\s*\((?P<parameters>[^;{}]*?)\)\s*[;{]"
)
_CHEVRONS = re.compile(r"\b(?P<name>\w+)\s*(?P<arguments><[^<>;(){}]*>)?\s*<<<(?P<rest>.*?)>>>", re.DOTALL)
_MACRO_LAUNCH = re.compile(r"\bhipLaunchKernelGGL\s*\(")
_ASSERT = re.compile(r"\bstatic_assert\s*\(")
_CONSTANT = re.compile(r"\b(?:constexpr|const)\s+(?:static\s+)?(?:unsigned\s+|std::)*\w+\s+(\w+)\s*=\s*([^;]+);")
_DIM3 = re.compile(r"\bdim3\s+(\w+)\s*[({]([^;]*?)[)}]\s*;|\bdim3\s+(\w+)\s*=\s*([^;]+);")
_CAST = re.compile(
    r"static_cast\s*<[^<>]*>|\((?:const\s+)?(?:unsigned|signed|int|long|size_t|std::size_t|uint\d+_t|\s)+\)"
)
_OPENING = {")": "(", "]": "[", "}": "{"}


class SourceError(Exception):
    """Something the compiler would refuse, with its place."""

    def __init__(self, file: str, line: int, column: int, message: str, text: str = "", *, kind: str = "error") -> None:
        super().__init__(message)
        self.file, self.line, self.column, self.message, self.text, self.kind = file, line, column, message, text, kind

    def __str__(self) -> str:
        """Give it in clang's form."""
        head = f"{self.file}:{self.line}:{self.column}: {self.kind}: {self.message}"
        return f"{head}\n{self.text}\n{' ' * (self.column - 1)}^" if self.text else head


@dataclass(frozen=True)
class Kernel:
    """One `__global__` function: `display` is its demangled name, `pointers` how many arrays it is handed.

    `template` names the parameters of a template, empty for an ordinary function.
    """

    name: str
    display: str
    symbol: str
    pointers: int
    template: tuple[str, ...] = ()

    def shown_as(self, arguments: str) -> str:
        """Give the demangled name of the instance with these template arguments."""
        if not self.template:
            return self.display
        given = dict(zip(self.template, (part.strip() for part in arguments.split(",")), strict=False))
        signature = re.sub(r"\w+", lambda match: given.get(match.group(), match.group()), self.display)
        return f"void {self.name}<{arguments}>{signature[len(self.name) :]}"


@dataclass(frozen=True)
class Launch:
    """One place that launches a kernel; `grid` and `block` are expressions that may name run-time values."""

    kernel: str
    arguments: str
    grid: str
    block: str
    at: str


@dataclass
class Unit:
    """What one source file and the headers it includes amount to."""

    macros: dict[str, str]
    kernels: list[Kernel] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    markers: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    mallocs: int = 0
    to_device: int = 0
    to_host: int = 0


@dataclass(frozen=True)
class _Text:
    """One file with its comments and dead branches blanked: every offset is that of the file."""

    file: str
    original: str
    code: str

    def error(self, offset: int, message: str, *, kind: str = "error") -> SourceError:
        line = self.original.count("\n", 0, offset) + 1
        column = offset - (self.original.rfind("\n", 0, offset) + 1) + 1
        shown = self.original.splitlines()[line - 1] if self.original else ""
        return SourceError(self.file, line, column, message, shown.replace("\t", " "), kind=kind)

    def at(self, offset: int) -> str:
        return f"{self.file}:{self.original.count(chr(10), 0, offset) + 1}"


def read_unit(path: str, defines: Mapping[str, str], include_dirs: Sequence[str]) -> Unit:
    """Read a source file and what it includes; raises SourceError for what a compiler refuses, OSError likewise."""
    unit = Unit(macros=dict(defines))
    texts: list[_Text] = []
    _read(path, unit, set(defines), include_dirs, texts)
    constants = _constants(texts, unit.macros)
    for text in texts:
        _check_asserts(text, constants)
        unit.kernels += [kernel for kernel in _kernels(text) if kernel.name not in {k.name for k in unit.kernels}]
    for text in texts:
        unit.launches += _launches(text, constants)
        _count_calls(text, unit)
    _check_launched(texts, unit)
    return unit


def _read(path: str, unit: Unit, fixed: set[str], include_dirs: Sequence[str], texts: list[_Text]) -> None:
    with open(path, encoding="utf-8", errors="replace") as file:
        original = file.read()
    unit.files.append(path)
    code = _TOKEN.sub(_blank, original)
    text = _Text(path, original, _live(path, original, code, unit, fixed, include_dirs, texts))
    _check_balance(text)
    texts.append(text)


def _blank(match: re.Match[str]) -> str:
    text = match.group()
    inner = re.sub(r"[^\n]", " ", text)
    return text[0] + inner[1:-1] + text[-1] if text[0] in "\"'" else inner


def _live(
    path: str,
    original: str,
    code: str,
    unit: Unit,
    fixed: set[str],
    include_dirs: Sequence[str],
    texts: list[_Text],
) -> str:
    """Follow the preprocessor: take macros and includes from live lines, blank all directives and dead lines."""
    kept, taken, offset = [], [True], 0
    whole = _Text(path, original, code)
    for line, raw in zip(code.splitlines(keepends=True), original.splitlines(keepends=True), strict=False):
        live = all(taken)
        condition = _CONDITION.match(line)
        if condition:
            _turn(taken, condition.group(1), condition.group(2).strip(), unit.macros)
        elif live:
            _directive(whole, line, raw, offset, unit, fixed, include_dirs, texts)
        hidden = condition or not live or line.lstrip().startswith("#")
        kept.append(re.sub(r"[^\n]", " ", line) if hidden else line)
        offset += len(line)
    return "".join(kept)


def _turn(taken: list[bool], word: str, rest: str, macros: Mapping[str, str]) -> None:
    """Apply one conditional directive; a condition that cannot be computed counts as true."""
    if word in ("if", "ifdef", "ifndef"):
        taken.append(_holds(word, rest, macros))
    elif len(taken) > 1 and word == "endif":
        taken.pop()
    elif len(taken) > 1:
        taken[-1] = not taken[-1] and (word == "else" or _holds("if", rest, macros))


def _holds(word: str, rest: str, macros: Mapping[str, str]) -> bool:
    if word != "if":
        return (rest.split()[:1] != [] and rest.split()[0] in macros) == (word == "ifdef")
    known = re.sub(r"\bdefined\s*\(?\s*(\w+)\s*\)?", lambda m: str(int(m.group(1) in macros)), rest)
    try:
        return bool(evaluate(to_python(known), _values(macros), unknown=0))
    except ValueError:
        return True


def _directive(
    text: _Text,
    line: str,
    raw: str,
    offset: int,
    unit: Unit,
    fixed: set[str],
    include_dirs: Sequence[str],
    texts: list[_Text],
) -> None:
    include, define, error = _INCLUDE.match(raw), _DEFINE.match(line), _ERROR.match(raw)
    if error:
        raise text.error(offset + raw.index("#") + 1, error.group(1).strip() or "#error")
    if define and define.group(1) not in fixed:
        unit.macros[define.group(1)] = (define.group(2) or "").strip()
    if include and line.lstrip().startswith("#"):
        name = include.group(1)
        found = _find(name, [os.path.dirname(text.file) or ".", *include_dirs])
        if found is None:
            raise text.error(offset + raw.index('"'), f"'{name}' file not found", kind="fatal error")
        if found not in unit.files:
            _read(found, unit, fixed, include_dirs, texts)


def _find(name: str, directories: Sequence[str]) -> str | None:
    paths = [os.path.normpath(os.path.join(directory, name)) for directory in directories]
    return next((path for path in paths if os.path.isfile(path)), None)


def _check_balance(text: _Text) -> None:
    opened: list[int] = []
    for offset, sign in enumerate(text.code):
        if sign in "([{":
            opened.append(offset)
        elif sign in _OPENING:
            if not opened or text.code[opened[-1]] != _OPENING[sign]:
                raise _unbalanced(text, opened, offset)
            opened.pop()
    if opened:
        raise text.error(max(len(text.original.rstrip()) - 1, 0), _expected(text, opened[-1]))


def _unbalanced(text: _Text, opened: list[int], offset: int) -> SourceError:
    if opened:
        return text.error(offset, _expected(text, opened[-1]))
    sign = text.code[offset]
    return text.error(offset, f"extraneous closing brace ('{sign}')" if sign == "}" else "expected expression")


def _expected(text: _Text, opening: int) -> str:
    closing = {"(": ")", "[": "]", "{": "}"}[text.code[opening]]
    return f"expected '{closing}' to match '{text.code[opening]}' at {text.at(opening)}"


def to_python(text: str) -> str:
    """Rewrite a C++ integer expression so that `motions.evaluate` can read it; what it cannot stays as it is."""
    text = " ".join(_CAST.sub(" ", text).split()).replace("std::", "").replace("&&", " and ").replace("||", " or ")
    text = re.sub(r"\b(0[xX][0-9a-fA-F]+|\d+)(?:[uU]?[lL]{0,2}|[lL]{1,2}[uU]?)\b", r"\1", text)
    text = re.sub(r"!(?!=)", " not ", text).replace("{", "(").replace("}", ")")
    return text.strip()


def _values(macros: Mapping[str, str]) -> dict[str, Value]:
    """Compute those macros that are integers, through each other."""
    known: dict[str, Value] = {}
    for _ in range(4):
        for name, text in macros.items():
            try:
                known[name] = evaluate(to_python(text or "1"), known)
            except ValueError:
                continue
    return known


def _constants(texts: Sequence[_Text], macros: Mapping[str, str]) -> dict[str, str]:
    """Collect macros and `const` integers and `dim3` variables, each as an expression."""
    found = {name: to_python(text) for name, text in macros.items() if text}
    for text in texts:
        for match in _CONSTANT.finditer(text.code):
            found.setdefault(match.group(1), to_python(match.group(2)))
        for match in _DIM3.finditer(text.code):
            name, dimensions = match.group(1) or match.group(3), match.group(2) or match.group(4)
            found.setdefault(name, f"dim3({to_python(dimensions)})")
    return found


def _resolved(expression: str, constants: Mapping[str, str]) -> str:
    """Put constants into an expression until only run-time names are left."""
    text = to_python(expression)
    for _ in range(6):
        text = re.sub(r"\b[A-Za-z_]\w*\b", lambda m: _parenthesised(m.group(), constants), text)
        if len(text) > 4000:
            return "0"
    return text


def _parenthesised(name: str, constants: Mapping[str, str]) -> str:
    return f"({constants[name]})" if name in constants and name != constants[name] else name


def _arguments(code: str, start: int) -> list[tuple[int, str]]:
    """Cut what stands between the bracket before `start` and its partner at the commas of its own level."""
    depth, begin, parts = 0, start, []
    for offset in range(start, len(code)):
        sign = code[offset]
        if sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        if depth < 0 or (depth == 0 and sign == ","):
            parts.append((begin, code[begin:offset].strip()))
            begin = offset + 1
        if depth < 0:
            break
    return parts


def _check_asserts(text: _Text, constants: Mapping[str, str]) -> None:
    for match in _ASSERT.finditer(text.code):
        condition = _arguments(text.code, match.end())[0][1]
        resolved = _resolved(condition, constants)
        try:
            holds = bool(evaluate(resolved, {}))
        except ValueError:
            continue
        if not holds:
            message = f"static assertion failed due to requirement '{condition}'"
            raise text.error(match.start(), message)


def _kernels(text: _Text) -> Iterator[Kernel]:
    for match in _KERNEL.finditer(text.code):
        parameters = [_type_of(part) for _, part in _arguments(match.group("parameters") + ")", 0) if part]
        signature = f"({', '.join(parameters)})"
        name = match.group("name")
        display = name if "extern" in match.group("before") else name + signature
        pointers = sum(1 for parameter in parameters if "*" in parameter)
        template = tuple(part.split("=")[0].split()[-1] for part in (match.group("template") or "").split(",") if part)
        yield Kernel(name=name, display=display, symbol=f"{name}.kd", pointers=pointers, template=template)


def _type_of(parameter: str) -> str:
    """Turn `const float* __restrict__ a` into `float const*`, as a demangler writes it."""
    words = re.sub(r"__restrict__|\brestrict\b|__restrict\b|\bstd::", " ", parameter.split("=")[0])
    pointer = "*" * words.count("*") + "&" * words.count("&")
    names = words.replace("*", " ").replace("&", " ").split()
    is_const = "const" in names[: -1 or None]
    kinds = [name for name in names if name != "const"]
    builtin = {"unsigned", "signed", "long", "short", "int", "char", "float", "double", "bool", "void"}
    if len(kinds) > 1 and kinds[-1] not in builtin:
        kinds = kinds[:-1]
    kind = " ".join(kinds).replace("unsigned long long int", "unsigned long long")
    kind = {"unsigned": "unsigned int", "size_t": "unsigned long"}.get(kind, kind)
    return f"{kind} const{pointer}" if is_const and pointer else f"{kind}{pointer}"


def _launches(text: _Text, constants: Mapping[str, str]) -> Iterator[Launch]:
    found = [(match.start(), _chevron_launch(match)) for match in _CHEVRONS.finditer(text.code)]
    found += [(match.start(), _macro_launch(text, match.end())) for match in _MACRO_LAUNCH.finditer(text.code)]
    for offset, (name, arguments, grid, block) in sorted(found):
        yield Launch(name, arguments, _resolved(grid, constants), _resolved(block, constants), text.at(offset))


def _chevron_launch(match: re.Match[str]) -> tuple[str, str, str, str]:
    parts = [part for _, part in _arguments(match.group("rest") + ")", 0)]
    grid, block = (*parts, "1", "1")[:2]
    return match.group("name"), (match.group("arguments") or "").strip("<> "), grid, block


def _macro_launch(text: _Text, start: int) -> tuple[str, str, str, str]:
    parts = [part for _, part in _arguments(text.code, start)]
    kernel, grid, block = (*parts, "", "1", "1")[:3]
    named = re.sub(r"^HIP_KERNEL_NAME\s*\((.*)\)$", r"\1", kernel.strip()).strip("() ")
    name, _, arguments = named.partition("<")
    return name.strip(), arguments.rstrip("> "), grid, block


def _count_calls(text: _Text, unit: Unit) -> None:
    unit.mallocs += len(re.findall(r"\bhipMalloc\w*\s*\(", text.code))
    unit.to_device += len(re.findall(r"\bhipMemcpyHostToDevice\b", text.code))
    unit.to_host += len(re.findall(r"\bhipMemcpyDeviceToHost\b", text.code))
    for match in re.finditer(r"\broctxRange(?:Push|Start)A?\s*\(\s*\"", text.code):
        ended = text.code.index('"', match.end())
        unit.markers.append(text.original[match.end() : ended])


def _check_launched(texts: Sequence[_Text], unit: Unit) -> None:
    """Refuse a launch of a name that stands nowhere else."""
    known = {kernel.name for kernel in unit.kernels}
    for launch in unit.launches:
        pattern = re.compile(rf"\b{re.escape(launch.kernel)}\b")
        if launch.kernel in known or sum(len(pattern.findall(text.code)) for text in texts) > 1:
            continue
        for text in texts:
            match = pattern.search(text.code)
            if match:
                raise text.error(match.start(), f"use of undeclared identifier '{launch.kernel}'")

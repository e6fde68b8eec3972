"""YAML text as a tree in which every value knows the file and line it was written in, and back to text.

Owns the reading of scalars: those of YAML 1.2 (``2e-5`` is a number, ``no`` is text), none of Python's own tags.
Refuses duplicate keys, keys that are not text, tags and recursive anchors, all of them at once; it knows nothing of
what a recipe holds. `recipe.reading` and `recipe.merge` call it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from launcher.errors import Problem

Scalar = str | int | float | bool | None
Key = str | int
_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[str, Callable[[str], Scalar]]] = {
    "null": (r"^(?:~|null|Null|NULL|)$", lambda text: None),
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", lambda text: text.lower() == "true"),
    "int": (r"^[-+]?[0-9]+$", int),
    "float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        lambda text: float(text.replace(".i", "i").replace(".I", "I").replace(".n", "n").replace(".N", "N")),
    ),
}
"""Tag -> how its plain scalars look, and their value. The first that matches holds."""
MAX_DEPTH = 50
"""Maps and lists inside one another; a recipe needs 7, and Python cannot follow hundreds."""
_TOO_DEEP = f"more than {MAX_DEPTH} maps and lists inside one another; take some out"


@dataclass(frozen=True)
class Origin:
    """Where a value was written."""

    file: str
    line: int | None
    """1-based; None: not in a file but in a ``--set``."""


@dataclass
class Tree:
    """A value of a YAML document."""

    value: Scalar | list[Tree] | dict[str, Tree]
    origin: Origin
    """The line of its key in a map; of itself in a list."""

    def plain(self) -> Any:
        """The value as plain Python."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, key: Key) -> Tree | None:
        """The value under a key of a map or at a position of a list; None where there is none."""
        if isinstance(self.value, dict):
            return self.value.get(key) if isinstance(key, str) else None
        if isinstance(self.value, list) and isinstance(key, int):
            return self.value[key] if 0 <= key < len(self.value) else None
        return None


class _Loader(yaml.SafeLoader):
    """Composes nodes only; scalars are resolved as `_SCALARS` says."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, _TOO_DEEP, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either YAML 1.1 or `_SCALARS` would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """U+0085 is a line break to YAML 1.1, and PyYAML reads one back as a space unless it stands escaped."""
    return dumper.represent_scalar(_TAG + "str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(str, _text)
for _name, (_pattern, _) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(_pattern), None)
_Loader.add_implicit_resolver(_TAG + "merge", re.compile(r"^<<$"), None)


def shortened(text: str) -> str:
    """A value's text as a message quotes it: the beginning of a long one."""
    return text if len(text) <= 60 else text[:57] + "..."


def to_yaml(value: Any) -> str:
    """Plain Python as YAML, keys in the order given; `parse` of the text gives the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse(text: str, file: str, *, has_lines: bool = True) -> tuple[Tree | None, list[Problem]]:
    """The tree of one document and what is wrong with it.

    The tree is None when the text is not YAML at all, or empty. Duplicate keys leave a tree that holds the first value.
    ``has_lines`` False: the text is not of a file, so that its lines mean nothing (``--set``).
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        return None, [_syntax_problem(error, text, file, has_lines)]
    finally:
        if loader is not None:
            loader.dispose()
    if node is None:
        return None, []
    builder = _Builder(file, has_lines)
    return builder.build(node, (), node), builder.problems


def _syntax_problem(error: yaml.YAMLError, text: str, file: str, has_lines: bool) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        what = f"character {chr(int(error.character))!r} is not allowed in YAML; take it out"
    else:
        line = mark.line + 1 if mark else 1
        what = str(getattr(error, "problem", None) or error)
        if "\\t" in what:
            what = "a tab in the indentation; YAML indents with spaces only, so replace it by spaces"
        elif getattr(error, "context", None) and getattr(error, "context_mark", None):
            context_mark = error.context_mark  # type: ignore[attr-defined]
            what += f" ({error.context} from line {context_mark.line + 1})"  # type: ignore[attr-defined]
    return Problem("", f"not valid YAML: {what}", file, line if has_lines else None)


class _Builder:
    """Turns nodes into trees and collects what is wrong on the way."""

    def __init__(self, file: str, has_lines: bool) -> None:
        self.file = file
        self.has_lines = has_lines
        self.problems: list[Problem] = []
        self.open: list[int] = []

    def build(self, node: yaml.Node, path: tuple[str, ...], written_at: yaml.Node) -> Tree:
        """The tree of a node; ``written_at`` is the node of its key, whose line is reported."""
        if id(node) in self.open:
            self.complain(path, "an anchor that contains itself; write the values out", written_at)
            return Tree(None, self.origin(written_at))
        if len(self.open) >= MAX_DEPTH:  # by way of anchors
            self.complain(path[:3], _TOO_DEEP, written_at)
            return Tree(None, self.origin(written_at))
        self.open.append(id(node))
        value: Scalar | list[Tree] | dict[str, Tree]
        if isinstance(node, yaml.MappingNode):
            value = {
                key: self.build(child, (*path, key), key_node)
                for key, (key_node, child) in self.pairs(node, path).items()
            }
        elif isinstance(node, yaml.SequenceNode):
            value = [
                self.build(item, (*path, _item_name(item, path, index)), item) for index, item in enumerate(node.value)
            ]
        else:
            value = self.scalar(node, path)
        self.open.pop()
        return Tree(value, self.origin(written_at))

    def pairs(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key -> its node and its value's, those of ``<<`` after the map's own, which hold."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        repeated: dict[str, list[yaml.Node]] = {}
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        for key_node, child in node.value:
            if key_node.tag == _TAG + "merge":
                merged.append((key_node, child))
            elif not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a map or list"
                self.complain(path, f"key {shown} is not text; put quotes around it", key_node)
            elif key_node.value in own:
                repeated.setdefault(key_node.value, [own[key_node.value][0]]).append(key_node)
            else:
                own[key_node.value] = (key_node, child)
        for key, nodes in repeated.items():
            lines = " and ".join(str(one.start_mark.line + 1) for one in nodes)
            where = f" in lines {lines}" if self.has_lines else ""
            self.complain((*path, key), f"key {key!r} is written {len(nodes)} times{where}; keep one", nodes[-1])
        for key_node, child in merged:
            for source in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                if not isinstance(source, yaml.MappingNode) or id(source) in self.open:
                    self.complain(path, "<< takes the anchor of another map, or a list of them", key_node)
                    continue
                for key, pair in self.pairs(source, path).items():
                    own.setdefault(key, pair)
        return own

    def scalar(self, node: yaml.Node, path: tuple[str, ...]) -> Scalar:
        text = str(node.value)
        if node.tag == _TAG + "str":
            return text
        known = _SCALARS.get(node.tag.removeprefix(_TAG))
        if known is None:
            shown = node.tag.replace(_TAG, "!!")
            self.complain(path, f"the tag {shown} is not allowed; write a plain value", node)
            return None
        try:
            return known[1](text)
        except ValueError:
            self.complain(
                path, f"{shortened(text)!r} is not of the type of its tag !!{node.tag.removeprefix(_TAG)}", node
            )
            return None

    def origin(self, node: yaml.Node) -> Origin:
        return Origin(self.file, node.start_mark.line + 1 if self.has_lines else None)

    def complain(self, path: tuple[str, ...], message: str, node: yaml.Node) -> None:
        origin = self.origin(node)
        self.problems.append(Problem(".".join(path), message, origin.file, origin.line))


def _item_name(item: yaml.Node, path: tuple[str, ...], index: int) -> str:
    """Stages go by name in a dotted path, other items by position."""
    if path == ("stages",) and isinstance(item, yaml.MappingNode):
        names = [value.value for key, value in item.value if key.value == "name" and isinstance(value.value, str)]
        return names[0] if names else str(index)
    return str(index)


def walk(tree: Tree, parts: tuple[Key, ...] = ()) -> Iterator[tuple[tuple[Key, ...], Tree]]:
    """Every value with the keys that lead to it, outermost first."""
    yield parts, tree
    if isinstance(tree.value, dict):
        for key, child in tree.value.items():
            yield from walk(child, (*parts, key))
    elif isinstance(tree.value, list):
        for index, child in enumerate(tree.value):
            yield from walk(child, (*parts, index))

"""A reader of YAML that keeps comments: those after a value, and those in the lines above its key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from equirelax.errors import ConfigError

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True)
class Leaf:
    """A value other than a mapping, with its comments."""

    value: Any
    comment: str = ""


@dataclass(frozen=True)
class Branch:
    """A mapping, with the comment lines above its key."""

    items: Mapping[str, Leaf | Branch]
    comment: str = ""

    def merged(self, other: Branch) -> Branch:
        """This mapping with the values of `other`; mappings are merged key by key, and values keep their comments."""
        items = dict(self.items)
        for key, value in other.items.items():
            before = items.get(key)
            both = isinstance(before, Branch) and isinstance(value, Branch)
            items[key] = before.merged(value) if both else value  # type: ignore[union-attr,arg-type]
        return Branch(items, "\n".join(filter(None, (self.comment, other.comment))))

    def branch(self, key: str) -> Branch:
        """The mapping at a key; an empty one if there is none."""
        found = self.items.get(key)
        return found if isinstance(found, Branch) else Branch({})

    def text(self, key: str) -> str | None:
        """The text at a key; None if there is none."""
        found = self.items.get(key)
        return str(found.value) if isinstance(found, Leaf) else None

    def plain(self) -> dict[str, Any]:
        """Plain Python, without comments."""
        return {k: v.plain() if isinstance(v, Branch) else v.value for k, v in self.items.items()}


def parse(text: str, name: str) -> Branch:
    """The mapping in a YAML text.

    Args:
        text: The YAML text; 1e-3 is read as a number.
        name: The file's name, for messages.

    Raises:
        ConfigError: The text is not YAML, is not a mapping, or has a duplicate key.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"The recipe {name} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"The recipe {name} should hold a mapping of keys to values.")
    return _Parser(text.splitlines(), name).branch(root, "")


@dataclass(frozen=True)
class _Parser:
    lines: list[str]
    name: str

    def branch(self, node: yaml.MappingNode, comment: str) -> Branch:
        items: dict[str, Leaf | Branch] = {}
        for key, value in node.value:
            word = str(key.value)
            if word in items:
                raise ConfigError(
                    f"The recipe {self.name}, line {key.start_mark.line + 1}: the key '{word}' is there twice."
                )
            above = "" if node.flow_style else self._above(key.start_mark)
            if isinstance(value, yaml.MappingNode):
                items[word] = self.branch(value, above)
            else:
                comments = filter(None, (above, self._behind(value.end_mark)))
                items[word] = Leaf(_value(value), "\n".join(comments))
        return Branch(items, comment)

    def _above(self, mark: yaml.Mark) -> str:
        """Comment lines directly above a key, with the same indentation."""
        found: list[str] = []
        for line in reversed(self.lines[: mark.line]):
            if not line.strip().startswith("#") or len(line) - len(line.lstrip()) != mark.column:
                break
            found.append(line.strip().lstrip("#").strip())
        return "\n".join(reversed(found))

    def _behind(self, mark: yaml.Mark) -> str:
        """The comment after a value, on its last line."""
        line = self.lines[mark.line] if mark.line < len(self.lines) else ""
        # braces and further values of a mapping on one line may come before it
        found = re.search(r"(?:^|\s)#\s*(.*)$", line[mark.column :])
        return found.group(1).strip() if found else ""


def _value(node: yaml.Node) -> Any:
    """The plain value of a node, 1e-3 as a number."""
    found = yaml.SafeLoader("").construct_object(node, deep=True)
    return float(found) if isinstance(found, str) and _EXPONENT.fullmatch(found) else found

"""An index from patterns to values: who wants this subject.

One node per token. A subject walks down three ways at each node (its own token, ``*``, ``>``), so
the work grows with the wildcards in place, not with the number of patterns. Nodes left empty are
cut off again: the index is as large as what it holds. The router caches answers, this index
computes them.

A wildcard that stands in a *subject* is literal text. The walk takes the wildcard children once, as
wildcards, and never a second time as the literal that happens to be spelt the same.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")


class _Node(Generic[V]):
    __slots__ = ("children", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Node[V]] = {}
        self.values: dict[V, None] = {}


class Trie(Generic[V]):
    """Patterns with any number of hashable values each, in order of insertion per pattern."""

    __slots__ = ("_count", "_root")

    def __init__(self) -> None:
        self._root: _Node[V] = _Node()
        self._count = 0

    def __len__(self) -> int:
        """How many (pattern, value) pairs are in."""
        return self._count

    def insert(self, pattern: str, value: V) -> None:
        """Add a value under a valid pattern; adding the same pair again changes nothing."""
        node = self._root
        for token in pattern.split("."):
            child = node.children.get(token)
            if child is None:
                child = node.children[token] = _Node()
            node = child
        if value not in node.values:
            node.values[value] = None
            self._count += 1

    def remove(self, pattern: str, value: V) -> bool:
        """Take a pair out; False when it was not in."""
        path: list[tuple[_Node[V], str]] = []
        node = self._root
        for token in pattern.split("."):
            child = node.children.get(token)
            if child is None:
                return False
            path.append((node, token))
            node = child
        if value not in node.values:
            return False
        del node.values[value]
        self._count -= 1
        for parent, token in reversed(path):
            child = parent.children[token]
            if child.values or child.children:
                break
            del parent.children[token]
        return True

    def match(self, subject: str) -> list[V]:
        """The values of every pattern that ``subject`` reaches, each pair once; a new list."""
        tokens = subject.split(".")
        if "" in tokens:
            return []
        found: list[V] = []
        nodes = [self._root]
        for token in tokens:
            is_plain = token not in ("*", ">")
            below: list[_Node[V]] = []
            for node in nodes:
                children = node.children
                if ">" in children:
                    found.extend(children[">"].values)
                if "*" in children:
                    below.append(children["*"])
                if is_plain and token in children:
                    below.append(children[token])
            if not below:
                return found
            nodes = below
        for node in nodes:
            found.extend(node.values)
        return found

    def __iter__(self) -> Iterator[tuple[str, V]]:
        """All (pattern, value) pairs, in no promised order."""
        stack: list[tuple[str, _Node[V]]] = [("", self._root)]
        while stack:
            prefix, node = stack.pop()
            for token, child in node.children.items():
                pattern = f"{prefix}.{token}" if node is not self._root else token
                for value in child.values:
                    yield pattern, value
                stack.append((pattern, child))

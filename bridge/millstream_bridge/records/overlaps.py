"""Which of many patterns one overlaps, without a look at each. Pure.

Patterns are kept as a tree, a level for each token; a search goes down only where tokens can be
equal. What it finds is what `overlap` of the pattern and each of the others would.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Owner = TypeVar("Owner", bound=Hashable)


@dataclass(slots=True)
class _Node(Generic[Owner]):
    below: "dict[str, _Node[Owner]]" = field(default_factory=dict)
    ends: dict[Owner, int] = field(default_factory=dict)
    """Who has the pattern that ends here, and the number it was first added with."""

    def whole(self) -> "Iterator[_Node[Owner]]":
        """The node itself and all below it."""
        nodes = [self]
        while nodes:
            node = nodes.pop()
            yield node
            nodes += node.below.values()


class Overlaps(Generic[Owner]):
    """Patterns, each somebody's; those of one owner may overlap."""

    def __init__(self) -> None:
        self._root: _Node[Owner] = _Node()

    def add(self, pattern: str, owner: Owner, number: int) -> None:
        """Keep a pattern, unless the owner has it already."""
        node = self._root
        for token in pattern.split("."):
            node = node.below.setdefault(token, _Node())
        node.ends.setdefault(owner, number)

    def other(self, pattern: str, owner: Owner) -> int | None:
        """The number of a pattern of somebody else that overlaps this one; None: there is none."""
        for node in self._reached(pattern.split(".")):
            for other, number in node.ends.items():
                if other != owner:
                    return number
        return None

    def _reached(self, tokens: list[str]) -> Iterator[_Node[Owner]]:
        nodes = [self._root]
        for token in tokens:
            further = []
            for node in nodes:
                if ">" in node.below:
                    yield node.below[">"]
                if token == ">":
                    for child in node.below.values():
                        yield from child.whole()
                elif token == "*":
                    further += [child for name, child in node.below.items() if name != ">"]
                else:
                    further += [node.below[name] for name in (token, "*") if name in node.below]
            nodes = further
        yield from nodes

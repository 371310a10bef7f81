"""The subjects of one stream: ids, their sequences, and a tree for wildcards.

A subject with one message costs one ``int``; with more, one array (``SeqRun``). Ids are small
numbers so that rows can carry them in four bytes. An id that is given back is not used again
before ``generation`` has grown: whoever remembers answers by id (``views``) throws them away then.
Generations change at most once per as many given-back ids as there are subjects, so remembering
pays.

The tree is built when the first wildcard is listed; streams that never see one do not pay for it.
"""

from collections.abc import Iterator, Sequence

from ..subjects.subject import is_literal
from .runs import SeqRun

_RETIRED_MIN = 1024
_Node = dict[str, "int | _Node"]
_HERE = ""


class SubjectTree:
    """Subjects by token: a node is a dict, a leaf the id.

    A subject that is also a prefix of another has its id under the empty token, which no subject
    contains.
    """

    def __init__(self) -> None:
        self._root: _Node = {}

    def add(self, subject: str, subject_id: int) -> None:
        node = self._root
        *path, last = subject.split(".")
        for token in path:
            child = node.get(token)
            if child is None:
                child = node[token] = {}
            elif isinstance(child, int):
                child = node[token] = {_HERE: child}
            node = child
        present = node.get(last)
        if isinstance(present, dict):
            present[_HERE] = subject_id
        else:
            node[last] = subject_id

    def remove(self, subject: str) -> None:
        tokens = subject.split(".")
        path = [self._root]
        for token in tokens:
            child = path[-1].get(token)
            if not isinstance(child, dict):
                break
            path.append(child)
        if len(path) > len(tokens):
            del path[-1][_HERE]
        else:
            del path[-1][tokens[-1]]
        for depth in range(len(path) - 1, 0, -1):
            if path[depth]:
                break
            del path[depth - 1][tokens[depth - 1]]

    def matching(self, pattern: str) -> Iterator[int]:
        """The ids of the subjects that match, each once."""
        stack: list[tuple[int | _Node, Sequence[str]]] = [(self._root, pattern.split("."))]
        while stack:
            node, tokens = stack.pop()
            if not tokens:
                if isinstance(node, int):
                    yield node
                elif _HERE in node:
                    here = node[_HERE]
                    if isinstance(here, int):
                        yield here
                continue
            if isinstance(node, int):
                continue
            token, rest = tokens[0], tokens[1:]
            if token == ">" and not rest:
                for key, child in node.items():
                    if key != _HERE:
                        yield from _everything(child)
            elif token == "*":
                stack.extend((child, rest) for key, child in node.items() if key != _HERE)
            elif token in node:
                stack.append((node[token], rest))


def _everything(node: "int | _Node") -> Iterator[int]:
    stack = [node]
    while stack:
        top = stack.pop()
        if isinstance(top, int):
            yield top
        else:
            stack.extend(top.values())


class SubjectTable:
    """Ids and sequences by subject. Id 0 is nobody's."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.names: list[str] = [""]
        self.runs: list[int | SeqRun] = [0]
        self.generation = 0
        self._free: list[int] = []
        self._retired: list[int] = []
        self._tree: SubjectTree | None = None

    def add(self, subject: str, seq: int) -> int:
        """Count a message beyond all others of its subject; the subject's id."""
        subject_id = self.ids.get(subject)
        if subject_id is None:
            return self._create(subject, seq)
        run = self.runs[subject_id]
        if isinstance(run, int):
            self.runs[subject_id] = SeqRun((run, seq))
        else:
            run.seqs.append(seq)
        return subject_id

    def extend(self, subjects: Sequence[str], first_seq: int) -> list[int]:
        """Do the same for messages in a row."""
        ids, runs, add = self.ids, self.runs, self.add
        found: list[int] = []
        for seq, subject in enumerate(subjects, first_seq):
            subject_id = ids.get(subject)
            if subject_id is None or isinstance(run := runs[subject_id], int):
                subject_id = add(subject, seq)
            else:
                run.seqs.append(seq)
            found.append(subject_id)
        return found

    def _create(self, subject: str, seq: int) -> int:
        if self._free:
            subject_id = self._free.pop()
            self.names[subject_id] = subject
            self.runs[subject_id] = seq
        else:
            subject_id = len(self.names)
            self.names.append(subject)
            self.runs.append(seq)
        self.ids[subject] = subject_id
        if self._tree is not None:
            self._tree.add(subject, subject_id)
        return subject_id

    def put_back(self, subject: str, seq: int) -> int:
        """Count a message that was removed before, anywhere among its subject's."""
        subject_id = self.ids.get(subject)
        if subject_id is None:
            return self._create(subject, seq)
        run = self.runs[subject_id]
        if isinstance(run, int):
            self.runs[subject_id] = SeqRun(sorted((run, seq)))
        else:
            run.insert(seq)
        return subject_id

    def remove(self, subject_id: int, seq: int) -> str:
        """Forget one message of a subject; the subject."""
        name = self.names[subject_id]
        run = self.runs[subject_id]
        if isinstance(run, int):
            self._retire(name, subject_id)
            return name
        run.remove(seq)
        if len(run) == 1:
            self.runs[subject_id] = run.first
        return name

    def _retire(self, name: str, subject_id: int) -> None:
        del self.ids[name]
        self.names[subject_id] = ""
        self.runs[subject_id] = 0
        if self._tree is not None:
            self._tree.remove(name)
        self._retired.append(subject_id)
        if len(self._retired) >= max(_RETIRED_MIN, len(self.ids)):
            self.generation += 1
            self._free += self._retired
            self._retired = []

    def matching(self, patterns: Sequence[str]) -> Iterator[int]:
        """The ids of the subjects that match any of the patterns, each once."""
        if len(patterns) == 1:
            yield from self._matching(patterns[0])
            return
        seen: set[int] = set()
        for pattern in patterns:
            seen.update(self._matching(pattern))
        yield from seen

    def _matching(self, pattern: str) -> Iterator[int]:
        if pattern == ">":
            return iter(self.ids.values())
        if is_literal(pattern):
            subject_id = self.ids.get(pattern)
            return iter(() if subject_id is None else (subject_id,))
        if self._tree is None:
            self._tree = SubjectTree()
            for subject, subject_id in self.ids.items():
                self._tree.add(subject, subject_id)
        return self._tree.matching(pattern)

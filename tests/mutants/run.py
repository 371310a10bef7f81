"""Plant each bug of this folder in a copy of the tree and see its named test go red.

A mutant is a unified diff ``<name>.patch`` whose first lines say ``# test: <pytest node id>``. All
named tests must pass on the unpatched copy; under its patch at least one of a mutant's tests must
fail (a test that cannot even be collected is no catch). The work tree itself is never touched.

    python -m tests.mutants.run [NAME…]

Exit code 0 when every bug is caught, 1 when one escapes, 2 when a patch or a name does not fit.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
CODE = ("millstream", "broker", "coordinator", "bridge", "tests", "examples", "pyproject.toml")
JOBS = min(2, os.cpu_count() or 1)
"""So many bugs are judged at a time, each in a copy of its own."""
FAILED = 1
"""pytest's exit code for failed tests; the others mean that nothing was judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One planted bug and the tests of which one must see it."""

    name: str
    patch: Path
    tests: tuple[str, ...]

    @classmethod
    def load(cls, patch: Path) -> "Mutant":
        """Read the header; raises ValueError when it names no test."""
        lines = patch.read_text(encoding="utf-8").splitlines()
        tests = tuple(
            line[len("# test: ") :].strip() for line in lines if line.startswith("# test: ")
        )
        if not tests:
            raise ValueError(f"{patch.name}: no line `# test: <pytest node id>`")
        return cls(name=patch.stem, patch=patch, tests=tests)


class Copy:
    """A copy of the tree in which bugs may be planted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in CODE:
            source = ROOT / name
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(source, folder / name, ignore=ignore)
            else:
                shutil.copy2(source, folder / name)

    def apply(self, patch: Path, *, reverse: bool = False) -> bool:
        """Apply or take back one patch; whether it fitted."""
        command = ["patch", "-p1", "--forward", "--fuzz=0", "-s", "-i", str(patch)]
        if reverse:
            command = ["patch", "-p1", "-R", "-s", "-i", str(patch)]
        return subprocess.run(command, cwd=self.folder, check=False).returncode == 0

    def pytest(self, tests: tuple[str, ...]) -> tuple[int, str]:
        """Run the tests against this copy; pytest's exit code and output."""
        paths = [self.folder, *(self.folder / name for name in ("broker", "coordinator", "bridge"))]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "PYTHONDONTWRITEBYTECODE": "1",
                "HYPOTHESIS_PROFILE": "mutants",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout


def judge(copy: Copy, mutant: Mutant) -> str:
    """Plant one bug: "caught", or what went wrong."""
    if not copy.apply(mutant.patch):
        return "PATCH DOES NOT FIT"
    try:
        code, output = copy.pytest(mutant.tests)
    finally:
        copy.apply(mutant.patch, reverse=True)
    if code == FAILED:
        return "caught"
    if code == 0:
        return "ESCAPED"
    sys.stderr.write(output)
    return f"NOT JUDGED (pytest exit code {code})"


def judge_and_tell(free: list[Copy], mutant: Mutant) -> str:
    """Plant one bug in a copy that is free, print the verdict and return it."""
    copy = free.pop()
    started = time.monotonic()
    try:
        verdict = judge(copy, mutant)
    finally:
        free.append(copy)
    took = time.monotonic() - started
    tests = " ".join(mutant.tests)
    print(f"{verdict:<10} {took:5.1f} s  {mutant.name:<40} {tests}", flush=True)
    return verdict


def main() -> int:
    """Run the chosen mutants and print the table."""
    parser = argparse.ArgumentParser(description="plant bugs in a copy and see their tests go red")
    parser.add_argument("names", nargs="*", help="only these mutants (default: all)")
    names = set(parser.parse_args().names)
    mutants = [Mutant.load(patch) for patch in sorted(FOLDER.glob("*.patch"))]
    if unknown := names - {mutant.name for mutant in mutants}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    mutants = [mutant for mutant in mutants if not names or mutant.name in names]

    with tempfile.TemporaryDirectory(prefix="millstream-mutants-") as folder:
        copies = [Copy(Path(folder, str(number))) for number in range(JOBS)]
        code, output = copies[0].pytest(tuple(dict.fromkeys(t for m in mutants for t in m.tests)))
        if code != 0:
            sys.stderr.write(output)
            sys.stderr.write("the named tests do not pass on the code as it is\n")
            return 2
        with ThreadPoolExecutor(JOBS) as pool:
            verdicts = list(pool.map(partial(judge_and_tell, copies), mutants))
    caught = verdicts.count("caught")
    print(f"{caught} of {len(verdicts)} planted bugs caught")
    return 0 if caught == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())

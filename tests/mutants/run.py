"""Plant each bug of this folder in a copy of the tree and see its named test go red.

A mutant is a unified diff ``<name>.patch`` whose first lines say ``# test: <pytest node id>``. All
named tests must pass on the unpatched copy; under its patch at least one of a mutant's tests must
fail (a test that cannot even be collected is no catch, and where all are skipped nothing was
judged). The work tree itself is never touched.

    python -m tests.mutants.run [NAME…]

Exit code 0 when every bug is caught, 1 when one escapes, 2 when a patch or a name does not fit.

A few are judged at a time, each in a copy of its own. Most of what a short test takes is to load
pytest and the libraries, so that is done once here, and each run is forked from it; what is the
project's own it loads from its copy.
"""

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
PACKAGES = ("millstream", "broker", "coordinator", "bridge")
CODE = (*PACKAGES, "tests", "examples", "pyproject.toml")
LIBRARIES = ("confluent_kafka", "hypothesis", "msgspec", "nats", "prometheus_client", "pydantic",
             "pydantic_settings", "pytest_asyncio.plugin")  # fmt: skip
JOBS = min(2, os.cpu_count() or 1)
"""So many tests are run at a time."""
WAITING = 1
"""And so many bugs more: under some, a test only waits for what never comes."""
FAILED = 1
"""pytest's exit code for failed tests; the others mean that nothing was judged."""
CRASHED = 70
SKIPPED = 71
"""All was passed over, as by a test that needs what this machine does not have."""


class _Seen:
    """Whether any test was run to its end; a plugin of pytest's."""

    any_ran = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.any_ran |= report.when == "call" and not report.skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One planted bug and the tests of which one must see it; without a patch, no bug."""

    name: str
    patch: Path | None
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
    """A copy of the tree in which bugs may be planted; what its tests print is in ``log``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        folder.mkdir()
        for name in CODE:
            source = ROOT / name
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(source, folder / name, ignore=ignore)
            else:
                shutil.copy2(source, folder / name)

    def apply(self, patch: Path, *options: str) -> bool:
        """Apply one patch, or with ``-R`` take it back; whether it fitted."""
        command = ["patch", "-p1", "--forward", "--fuzz=0", "-s", *options, "-i", str(patch)]
        return subprocess.run(command, cwd=self.folder, check=False).returncode == 0

    def start(self, tests: Sequence[str]) -> int:
        """Fork a process that runs the tests against this copy and exits as pytest does."""
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            self._run(tests)
        return child

    def _run(self, tests: Sequence[str]) -> NoReturn:
        code = CRASHED
        try:
            with self.log.open("wb") as log, Path(os.devnull).open("rb") as nothing:
                os.dup2(nothing.fileno(), 0)
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            paths = [str(self.folder), *(str(self.folder / name) for name in PACKAGES)]
            os.chdir(self.folder)
            os.environ |= {
                "PYTHONPATH": os.pathsep.join(paths),
                "PYTHONDONTWRITEBYTECODE": "1",
                "HYPOTHESIS_PROFILE": "mutants",
            }
            sys.dont_write_bytecode = True
            sys.path[:0] = paths
            for name in [it for it in sys.modules if it.split(".")[0] == "tests"]:
                del sys.modules[name]  # the work tree's
            seen = _Seen()
            code = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests], [seen]))
            if code == 0 and not seen.any_ran:
                code = SKIPPED
        except BaseException:  # noqa: BLE001 - it must not go on as its parent
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def run_all(copies: Sequence[Copy], mutants: Sequence[Mutant]) -> Iterator["Judged"]:
    """Run each one's tests in a copy that is free, under its patch, which fits; as they end."""
    free, waiting = list(copies), deque(mutants)
    running: dict[int, tuple[Copy, Mutant, float]] = {}
    while waiting or running:
        while waiting and free:
            copy, mutant = free.pop(), waiting.popleft()
            if mutant.patch is not None:
                copy.apply(mutant.patch)
            running[copy.start(mutant.tests)] = (copy, mutant, time.monotonic())
        child, status = os.wait()
        copy, mutant, started = running.pop(child)
        if mutant.patch is not None:
            copy.apply(mutant.patch, "-R")
        free.append(copy)
        yield Judged(
            mutant=mutant,
            code=os.waitstatus_to_exitcode(status),
            seconds=time.monotonic() - started,
            output=copy.log.read_text(encoding="utf-8", errors="replace"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """How the tests of one mutant ended: pytest's exit code, and all that was printed."""

    mutant: Mutant
    code: int
    seconds: float
    output: str

    @property
    def verdict(self) -> str:
        """ "caught", or what went wrong."""
        if self.code == FAILED:
            return "caught"
        if self.code == SKIPPED:
            return "NOT JUDGED (skipped)"
        return "ESCAPED" if self.code == 0 else f"NOT JUDGED (exit code {self.code})"


def is_green(copies: Sequence[Copy], mutants: Sequence[Mutant]) -> bool:
    """Whether all named tests pass on the code as it is; prints what fails."""
    tests = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    parts = [tests[place :: len(copies)] for place in range(len(copies))]
    unharmed = [Mutant(name="none", patch=None, tests=part) for part in parts if part]
    failed = [it for it in run_all(copies, unharmed) if it.code not in (0, SKIPPED)]
    for done in failed:
        sys.stderr.write(done.output)
    return not failed


def main() -> int:
    """Run the chosen mutants and print the table."""
    parser = argparse.ArgumentParser(description="plant bugs in a copy and see their tests go red")
    parser.add_argument("names", nargs="*", help="only these mutants (default: all)")
    names = set(parser.parse_args().names)
    mutants = [Mutant.load(patch) for patch in sorted(FOLDER.glob("*.patch"))]
    if unknown := names - {mutant.name for mutant in mutants}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    mutants = [mutant for mutant in mutants if not names or mutant.name in names]
    for library in LIBRARIES:
        importlib.import_module(library)

    with tempfile.TemporaryDirectory(prefix="millstream-mutants-") as folder:
        copies = [Copy(Path(folder, str(number))) for number in range(JOBS + WAITING)]
        unfit = [
            it.name for it in mutants if it.patch and not copies[0].apply(it.patch, "--dry-run")
        ]
        if unfit:
            sys.stderr.write(f"these patches do not fit: {', '.join(unfit)}\n")
            return 2
        if not is_green(copies[:JOBS], mutants):
            sys.stderr.write("the named tests do not pass on the code as it is\n")
            return 2
        missed = []
        for done in run_all(copies, mutants):
            if done.code != FAILED:
                missed.append(done.mutant.name)
            if done.code not in (0, FAILED):
                sys.stderr.write(done.output)
            tests = " ".join(done.mutant.tests)
            print(
                f"{done.verdict:<10} {done.seconds:5.1f} s  {done.mutant.name:<40} {tests}",
                flush=True,
            )
    print(f"{len(mutants) - len(missed)} of {len(mutants)} planted bugs caught")
    if missed:
        print(f"not caught: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

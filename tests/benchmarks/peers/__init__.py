"""Other people's partitioned groups, built into ``.cache/peers`` to be measured beside ours.

Each returns None where it cannot be built here, and says why on standard error.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
CACHE = Path(__file__).parents[3] / ".cache" / "peers"
NATSIO = "natsio-pcgroups==0.1.1"


def pcgroups_moves(questions: Sequence[dict[str, object]]) -> list[list[int]] | None:
    """Moves of orbit.go's pcgroups for each step of each question (see ``pcgroups.go``)."""
    program = CACHE / "pcgroups"
    if not program.exists() and not _build("Go", ["go", "build", "-o", str(program), "."], FOLDER):
        return None
    done = subprocess.run(
        [str(program)], input=json.dumps(questions), capture_output=True, text=True, check=True
    )
    answers: list[list[int]] = json.loads(done.stdout)
    return answers


def natsio_python() -> Path | None:
    """A Python 3.13 that has natsio-pcgroups."""
    python = CACHE / "natsio" / "bin" / "python"
    if python.exists():
        return python
    base = os.environ.get("PYTHON_3_13") or shutil.which("python3.13")
    if base is None:
        _say(f"{NATSIO} needs Python 3.13 (PYTHON_3_13, or python3.13 on PATH)")
        return None
    folder = python.parents[1]
    is_made = _build("natsio", [base, "-m", "venv", str(folder)], FOLDER) and _build(
        "natsio", [str(python), "-m", "pip", "install", "-q", NATSIO], FOLDER
    )
    if not is_made:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return python


def _build(what: str, command: list[str], folder: Path) -> bool:
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _say(f"{what}: {error}")
        return False
    if done.returncode:
        _say(f"{what}: {done.stderr.strip()[-300:]}")
    return not done.returncode


def _say(text: str) -> None:
    sys.stderr.write(f"peers: {text}\n")

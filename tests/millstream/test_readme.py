"""The README's first example runs as pasted."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_first_example_handles_every_order_in_order_per_customer(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0]

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sorted(lines) == [f"customer{n % 3} order {n}" for n in (0, 3, 1, 4, 2, 5)]
    for customer in range(3):
        of_customer = [line for line in lines if line.startswith(f"customer{customer} ")]
        assert of_customer == sorted(of_customer)

"""`import polcommit` is cheap: what is heavy loads where it is used, not before."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("click", "numpy", "pymerkle", "rich", "sklearn", "torch", "web3")

# -I: neither the environment nor the working directory decides what is imported.
LOADED = "import json, sys, polcommit; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


def test_importing_polcommit_loads_nothing_heavy() -> None:
    result = subprocess.run([sys.executable, "-I", "-c", LOADED], capture_output=True, text=True, check=True)
    assert not set(json.loads(result.stdout)) & set(HEAVY)


def test_importing_polcommit_is_quiet() -> None:
    command = [sys.executable, "-I", "-W", "error", "-c", "import polcommit"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")

"""The command line as a user has it: processes, their output, and the shape that every error has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

TIMEOUT = 180
T = TypeVar("T")
#: What a command may say on standard error before it fails.
INFORMATIVE = re.compile(
    r"warning: |prover: |gave 0x[0-9a-f]{40} |goes on after step |drawing \d+ of \d+ steps"
    r"|challenge \d+ has no verdict yet: |nothing new to anchor|the verifier sent no receipt"
)


@dataclass(frozen=True)
class Result:
    """What became of a command."""

    args: tuple[str, ...]
    status: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"polcommit {' '.join(self.args)}\n-> {self.status}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def polcommit(
    *args: object,
    home: Path | None = None,
    cwd: Path | None = None,
    input: bytes | None = None,
    env: Mapping[str, str | None] | None = None,
    wrap: Sequence[str] = (),
) -> Result:
    """Run `polcommit ARGS` to its end. It has no terminal. `wrap` is a command in front, such as prlimit."""
    words = tuple(str(arg) for arg in args)
    process = subprocess.run(
        [*wrap, sys.executable, "-m", "polcommit.cli.main", *words],
        cwd=cwd,
        input=input if input is not None else b"",
        capture_output=True,
        env=environment(home, env),
        timeout=TIMEOUT,
        start_new_session=True,     # no controlling terminal that it could ask for a passphrase
        check=False,
    )
    return Result(words, process.returncode, process.stdout.decode(), process.stderr.decode())


def environment(home: Path | None, more: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """This process's environment without what would configure polcommit, and with what is given; None removes."""
    found: dict[str, str | None] = {k: v for k, v in os.environ.items() if not k.startswith("POLCOMMIT_")}
    anvil = os.environ.get("POLCOMMIT_ANVIL")
    # one thread: the models here are too small for two
    found |= {"POLCOMMIT_ANVIL": anvil, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    found["POLCOMMIT_HOME"] = str(home) if home is not None else None
    return {name: value for name, value in (found | dict(more or {})).items() if value is not None}


def ok(result: Result) -> Result:
    """The result, which is a success."""
    assert result.status == 0, str(result)
    assert "Traceback" not in result.err, str(result)
    return result


def assert_one_line(result: Result, status: int | Iterable[int], contains: str = "") -> None:
    """One 'polcommit:' line that names what failed, perhaps one hint, and nothing on standard output."""
    statuses = {status} if isinstance(status, int) else set(status)
    assert result.status in statuses, f"status is not of {statuses}\n{result}"
    assert "Traceback" not in result.err and "internal error" not in result.err, str(result)
    assert result.out == "", f"something on standard output\n{result}"
    lines = result.err.splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith("polcommit: ")]
    assert len(errors) == 1, f"{len(errors)} error lines\n{result}"
    hints = lines[errors[0] + 1 :]
    assert len(hints) <= 1 and all(line.startswith("hint: ") for line in hints), f"more than a hint\n{result}"
    for line in lines[: errors[0]]:
        assert INFORMATIVE.match(line), f"{line!r} before the error\n{result}"
    assert_sentence(lines[errors[0]].removeprefix("polcommit: "), result)
    if hints:
        assert_sentence(hints[0].removeprefix("hint: "), result)
    assert contains in lines[errors[0]], f"{contains!r} is not named\n{result}"


def assert_sentence(text: str, result: Result) -> None:
    """Lower case (but for names of steps and the like), no full stop, no wrapped exception."""
    first = text.split()[0]
    assert not text[0].isupper() or first.isupper() or re.match(r"V\d+", first), f"begins with a capital\n{result}"
    assert not text.endswith((".", ":", " ")), f"ends badly\n{result}"
    for ugly in ("[Errno", "Error(", "Error:", "Exception", "<class", "object at 0x"):
        assert ugly not in text, f"{ugly!r} in it\n{result}"


def all_of(cases: Mapping[str, T], check: Callable[[T], None]) -> None:
    """Check each case, several at a time, and report all that fail by their names."""

    def one(name: str) -> str | None:
        try:
            check(cases[name])
        except AssertionError as error:
            return f"[{name}] {error}"
        return None

    with ThreadPoolExecutor(3) as pool:
        failures = [failure for failure in pool.map(one, cases) if failure is not None]
    assert not failures, "\n\n".join(failures)

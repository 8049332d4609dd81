"""Finding anvil, starting it in the background, and knowing whether a process is the one that was started.

Knows nothing of contracts or dumps; see `devnet`. POSIX only.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from polcommit.errors import StorageError, Unavailable

VERSION = "1.7.1"
STOP_TIMEOUT = 10   # seconds before a process that was asked to end is killed


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine. A process id alone is used again after a while; with the start it is unique."""

    pid: int
    start: str      # the kernel's start time of the process, in clock ticks since boot; '' where that is not to be had

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The live process with this id, None where there is none."""
        try:
            # After the name in parentheses: field 3 is the state, field 22 the start (proc_pid_stat(5)).
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            if Path("/proc/self/stat").exists():
                return None
            return cls(pid, "") if _exists(pid) else None
        return None if fields[0] in ("Z", "X") else cls(pid, fields[19])

    @property
    def alive(self) -> bool:
        return Process.of(self.pid) == self

    def stop(self) -> None:
        """End it, by force where it does not end when asked."""
        for number, patience in ((signal.SIGTERM, STOP_TIMEOUT), (signal.SIGKILL, STOP_TIMEOUT)):
            deadline = time.monotonic() + patience
            while self.alive and time.monotonic() < deadline:
                try:
                    os.kill(self.pid, number)
                except ProcessLookupError:
                    return
                time.sleep(0.05)
        if self.alive:
            raise Unavailable(f"process {self.pid} does not end", hint=f"end it with 'kill -9 {self.pid}'")


def find_anvil(folder: Path) -> list[str]:
    """The command that runs anvil: $POLCOMMIT_ANVIL, this source tree's node_modules, PATH, or `folder`/npm.

    Where there is none, installs it from npm into `folder`/npm.

    Raises:
        Unavailable: there is none, and npm is missing or failed.
    """
    named = os.environ.get("POLCOMMIT_ANVIL")
    if named:
        if shutil.which(named) is None:
            raise Unavailable(f"POLCOMMIT_ANVIL names {named}, which cannot be run", hint="correct it, or unset it")
        return [named]
    tree = Path(__file__).resolve().parents[2] / "contracts" / "node_modules"
    found = npm_binary(tree) or shutil.which("anvil") or npm_binary(folder / "npm" / "node_modules")
    if found is None:
        _install(folder / "npm")
        found = npm_binary(folder / "npm" / "node_modules")
    if found is None:
        raise Unavailable(
            f"npm has no anvil for this platform ({platform.system()} {platform.machine()})",
            hint="install Foundry, and name its anvil in POLCOMMIT_ANVIL",
        )
    return [str(found)]


def npm_binary(modules: Path) -> Path | None:
    """npm keeps one package per platform next to the launcher."""
    system = {"Linux": "linux", "Darwin": "darwin"}.get(platform.system(), "")
    machine = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), "")
    path = modules / "@foundry-rs" / f"anvil-{system}-{machine}" / "bin" / "anvil"
    return path if os.access(path, os.X_OK) else None


def _install(prefix: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable(
            "the devnet needs anvil, and neither it nor npm is installed",
            hint="install Node with npm (Debian: apt install nodejs npm), or name an anvil in POLCOMMIT_ANVIL",
        )
    prefix.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--loglevel=error"]
    result = subprocess.run(
        [*command, "--prefix", str(prefix), f"@foundry-rs/anvil@{VERSION}"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[0]
        raise Unavailable(f"npm could not install anvil ({reason})", hint="see that npm works on this machine")


def require_free(port: int) -> None:
    """Raises Unavailable where something listens on the port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Unavailable(
                f"port {port} cannot be used ({(error.strerror or str(error)).lower()})",
                hint="give another with --port, or stop what uses it",
            ) from error


def spawn(command: list[str], log: Path) -> Process:
    """Start a program that outlives this one: own session, no terminal, output appended to `log`."""
    try:
        with log.open("ab") as output:
            # The shell ends at once, so that nobody is left who would have to wait for the program.
            shell = subprocess.run(
                ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
                check=True,
                close_fds=True,
            )
    except OSError as error:
        raise StorageError(f"cannot start the devnet with log {log} ({error.strerror})") from error
    pid = int(shell.stdout)
    return Process.of(pid) or Process(pid, "ended")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

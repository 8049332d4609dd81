"""Environments to re-execute in, as text: 'threads=1,onednn=off,capability=avx2,precision=high,device=cpu'.

What is not named stays as it is on this machine. The fingerprint of the process that results is what counts: nothing
here says that two processes with equal settings compute equal bits.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, fields, replace
from pathlib import Path

from polcommit.errors import UsageError
from polcommit.records import Fingerprint

_X86 = frozenset({"x86_64", "amd64"})

#: Instruction sets that torch's own kernels can be held to ($ATEN_CPU_CAPABILITY). Of each: the machines that can
#: have it (empty: all), and the processor's flags that tell.
CAPABILITIES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "default": (frozenset(), frozenset()),
    "avx2": (_X86, frozenset({"avx2", "fma"})),
    "avx512": (_X86, frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"})),
    "sve": (frozenset({"aarch64"}), frozenset({"sve"})),
    "sve256": (frozenset({"aarch64"}), frozenset({"sve"})),
    "vsx": (frozenset({"ppc64le"}), frozenset()),
    "zvector": (frozenset({"s390x"}), frozenset({"vx"})),
}
PRECISIONS = ("highest", "high", "medium")      # of torch.set_float32_matmul_precision
MAX_THREADS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSettings:
    """Settings of a process that computes; None is whatever this machine has."""

    threads: int | None = None
    onednn: bool | None = None
    capability: str | None = None       # 'default', 'avx2', …: for torch's own kernels; oneDNN and MKL choose theirs
    precision: str | None = None        # of float32 matrix products
    device: str | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(f"{self.threads} threads", hint=f"1 to {MAX_THREADS}")
        for name, values in (("capability", tuple(CAPABILITIES)), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if value is not None and value not in values:
                raise UsageError(f"{name} {value[:50]!r} is not known", hint=f"one of {', '.join(values)}")
        if self.device == "":
            raise UsageError("no device is named", hint="'cpu', or 'cuda' with a GPU")

    @classmethod
    def parse(cls, text: str) -> EnvironmentSettings:
        """Settings from their text; '' names none.

        Raises:
            UsageError: an unknown setting or value, or one that is named twice.
        """
        found: dict[str, object] = {}
        for part in text.split(",") if text else []:
            name, given, value = (piece.strip() for piece in part.partition("="))
            if name not in _NAMES or not given:
                hint = f"settings are written like threads=1,onednn=off; there are {', '.join(_NAMES)}"
                raise UsageError(f"{part[:50]!r} is no setting of an environment", hint=hint)
            if name in found:
                raise UsageError(f"{name} is named twice in {text[:100]!r}")
            found[name] = _value(name, value)
        return cls(**found)     # type: ignore[arg-type]

    def __str__(self) -> str:
        named = {name: value for name in _NAMES if (value := getattr(self, name)) is not None}
        if self.onednn is not None:
            named["onednn"] = "on" if self.onednn else "off"
        return ",".join(f"{name}={value}" for name, value in named.items())

    def combined(self, threads: int | None, device: str | None) -> EnvironmentSettings:
        """These settings with the number of threads and the device that were given beside them.

        Raises:
            UsageError: both name one, and they differ.
        """
        for name, beside in (("threads", threads), ("device", device)):
            own = getattr(self, name)
            if own is not None and beside is not None and own != beside:
                raise UsageError(f"{name} {own!r} in the environment, and {beside!r} beside it", hint="say it once")
        return self.over(EnvironmentSettings(threads=threads, device=device))

    def over(self, others: EnvironmentSettings) -> EnvironmentSettings:
        """These settings, and where they name none, the others'."""
        return replace(others, **{name: value for name in _NAMES if (value := getattr(self, name)) is not None})


_NAMES = tuple(field.name for field in fields(EnvironmentSettings))

#: No settings of one's own: those that the steps claim, as far as they can be had.
AS_CLAIMED = EnvironmentSettings()


def claimed_settings(claimed: Fingerprint) -> EnvironmentSettings:
    """What a re-execution takes over from the environment that steps claim: threads, oneDNN and instruction set.

    Not the precision: a verifier who wants less of it than all says so. What makes no sense is left out: the
    fingerprint comes from the prover, and the environments will be found to differ.
    """
    items = dict(claimed.items)
    threads, capability = claimed.threads, items.get("variable ATEN_CPU_CAPABILITY")
    return EnvironmentSettings(
        threads=threads,
        onednn={"yes": True, "no": False}.get(items.get("onednn", "")),
        capability=capability if capability in CAPABILITIES and has_capability(capability) else None,
    )


def require_capability(settings: EnvironmentSettings) -> None:
    """Raises UsageError unless this processor has the instruction set: torch takes it on trust, and crashes."""
    if settings.capability is not None and not has_capability(settings.capability):
        raise UsageError(
            f"this processor has no instruction set {settings.capability!r}", hint="leave it out, or use 'default'"
        )


def has_capability(name: str) -> bool:
    """Whether this processor has an instruction set that torch's kernels can be held to."""
    machines, needed = CAPABILITIES[name]
    if machines and platform.machine().lower() not in machines:
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return not needed
    flags = next((line for line in lines if line.partition(":")[0].strip() in ("flags", "Features")), "")
    return needed <= set(flags.partition(":")[2].split())


def _value(name: str, text: str) -> object:
    if name == "threads":
        if not (text.isascii() and text.isdigit() and len(text) < 6):
            raise UsageError(f"threads {text[:50]!r} is no number", hint="write threads=1")
        return int(text)
    if name == "onednn":
        if text not in ("on", "off"):
            raise UsageError(f"onednn {text[:50]!r}", hint="write onednn=on or onednn=off")
        return text == "on"
    return text

"""What the bits of a step depend on besides recipe, data and seed; and the settings that make them repeat.

Two processes with equal fingerprints are expected to compute equal bits: that is what re-execution in the same
environment rests on. It was measured, not proved: libraries choose kernels by more than they tell, so a
difference is a reason to look, and equal fingerprints are the prover's word.
"""

from __future__ import annotations

import os
import platform
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from polcommit import __version__
from polcommit.errors import UsageError
from polcommit.records import Fingerprint

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")

#: Environment variables that change which kernels run, or how.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA", "KMP_DETERMINISTIC_REDUCTION", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip


def set_determinism(threads: int | None = None, *, onednn: bool | None = None, precision: str | None = None) -> None:
    """Choose kernels that repeat, in full precision; call before the first kernel, on `threads` threads if given.

    `onednn` says whether its kernels are used on the CPU (None: as torch has it); `precision` is that of float32
    matrix products where it is not to be the highest: 'high' or 'medium'.

    Raises:
        UsageError: CUDA is running already, without the workspace setting that its determinism needs.
    """
    if torch.cuda.is_initialized() and os.environ.get(_WORKSPACE) not in _WORKSPACES:
        raise UsageError(
            f"CUDA was initialised without {_WORKSPACE}", hint=f"set {_WORKSPACE}=:4096:8 before starting python"
        )
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision(precision or "highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if threads is not None:
        if threads < 1:
            raise UsageError(f"{threads} threads: at least one is needed")
        torch.set_num_threads(threads)
    if onednn is not None:
        torch._C._set_mkldnn_enabled(onednn)    # what torch.backends.mkldnn.flags sets, for good


def require_device(device: str) -> None:
    """Raises UsageError unless torch knows this device and it is here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UsageError(f"there is no device {device!r} here: {reason}", hint="'cpu', or 'cuda' with a GPU") from error


def fingerprint(device: str | torch.device = "cpu") -> Fingerprint:
    """The fingerprint of this process for training on `device`. Settings count as they are now."""
    kind = torch.device(device)
    items = _software() | _processor() | _settings() | _numerics()
    items |= {f"variable {name}": os.environ[name] for name in _VARIABLES if name in os.environ}
    items |= _cuda(kind) if kind.type == "cuda" else {"device": kind.type}
    return Fingerprint(items=tuple(sorted(items.items())))


def _own_code() -> str:
    """Digest of the package that owns the step: its own arithmetic decides about bits as a library's does."""
    hasher = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        hasher.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return hasher.hexdigest()


def _software() -> dict[str, str]:
    return {
        "polcommit": __version__,
        "polcommit training": _own_code(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "torch git": str(torch.version.git_version),
        # compiler, its flags, and the versions of BLAS and oneDNN; some kB of text
        "torch build": sha256(torch.__config__.show().encode()).hexdigest(),
        "system": platform.system(),
        "libc": " ".join(platform.libc_ver()).strip(),
    }


def _processor() -> dict[str, str]:
    return {
        "machine": platform.machine(),
        "processor": _cpu_model(),
        "aten instruction set": torch.backends.cpu.get_cpu_capability(),
        # oneDNN picks its kernels by these
        "processor features": sha256(_cpu_flags().encode()).hexdigest(),
        "blas": _blas(),
        "threads": str(torch.get_num_threads()),
        "threads between operations": str(torch.get_num_interop_threads()),
    }


def _settings() -> dict[str, str]:
    return {
        "deterministic algorithms": _flag(torch.are_deterministic_algorithms_enabled()),
        "deterministic warn only": _flag(torch.is_deterministic_algorithms_warn_only_enabled()),
        "onednn": _flag(torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()),
        "nnpack": _flag(torch.backends.nnpack.is_available()),
    }


def _numerics() -> dict[str, str]:
    tiny = torch.tensor(1e-310, dtype=torch.float64)      # a subnormal: zero where the processor flushes them
    return {
        "default dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "flush subnormals": _flag(float((tiny * 1.0).item()) == 0.0),
    }


def _cuda(device: torch.device) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(device)
    matmul = torch.backends.cuda.matmul
    return {
        "device": properties.name,
        "device capability": f"{properties.major}.{properties.minor}",
        "device processors": str(properties.multi_processor_count),
        "cuda": str(torch.version.cuda),
        "cuda driver": _driver(),
        "cublas workspace": os.environ.get(_WORKSPACE, "not set"),
        "cudnn": str(torch.backends.cudnn.version()),
        "cudnn enabled": _flag(torch.backends.cudnn.enabled),
        "cudnn deterministic": _flag(torch.backends.cudnn.deterministic),
        "cudnn benchmark": _flag(torch.backends.cudnn.benchmark),
        "cudnn tf32": _flag(torch.backends.cudnn.allow_tf32),
        "cuda matmul fp16 reduction": str(matmul.allow_fp16_reduced_precision_reduction),
        "cuda matmul bf16 reduction": str(matmul.allow_bf16_reduced_precision_reduction),
        "attention flash": _flag(torch.backends.cuda.flash_sdp_enabled()),
        "attention memory efficient": _flag(torch.backends.cuda.mem_efficient_sdp_enabled()),
        "attention cudnn": _flag(torch.backends.cuda.cudnn_sdp_enabled()),
        "attention math": _flag(torch.backends.cuda.math_sdp_enabled()),
    }


def _driver() -> str:
    try:
        lines = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return lines[0].strip() if lines else "unknown"


def _cpu_info(*names: str) -> str:
    """The value of the first of these fields in /proc/cpuinfo, '' where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""


def _cpu_model() -> str:
    return _cpu_info("model name", "Model") or platform.processor() or "unknown"


def _cpu_flags() -> str:
    return " ".join(sorted(_cpu_info("flags", "Features").split())) or sys.platform


def _blas() -> str:
    if torch.backends.mkl.is_available():
        return "mkl"
    return "openblas" if "openblas" in torch.__config__.show().lower() else "other"


def _flag(value: bool) -> str:
    return "yes" if value else "no"

"""The native kernels: plain C, built once per machine by the C compiler, reached through ctypes.

No build step at install and no Python headers: the sources beside this file become one shared library, named by
the hash of sources, flags and CPU, the first time that a process wants it. Without a compiler the torch references
run instead, which is correct and slow, and one warning says so.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import platform
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_log = logging.getLogger(__name__)

SOURCES = Path(__file__).resolve().parent
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-pthread", "-shared", "-fPIC", "-std=gnu11")
CHOICES = ("auto", "native", "torch", "triton")
_BUILD_TIMEOUT_S = 300
_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}


class BuildError(RuntimeError):
    """The native library cannot be built or loaded; the message holds the compiler's words."""


@dataclass(slots=True)
class _State:
    """What this process uses. One library serves all engines of a process, hence the one global of this room."""

    choice: str = "auto"
    use_amx: bool = True
    batch_invariant: bool = False
    is_decided: bool = False
    library: ctypes.CDLL | None = None


_state = _State()


def use(choice: str, *, amx: bool = True, num_threads: int | None = None, batch_invariant: bool = False) -> None:
    """Choose the kernels of this process: "native", "torch", "triton", or "auto".

    "auto" is Triton for tensors on a GPU, and native on the CPU where it can be built. "triton" sends tensors on the
    CPU through Triton's interpreter, too, which is for tests: it runs some thousand times slower.
    `amx=False` does without the CPU's matrix tiles. `num_threads` (default: torch's number) is how many threads the
    native kernels use; torch keeps its own.

    `batch_invariant` promises the same bits of a row whatever runs beside it: tiles and splits are chosen by the shapes
    of weights and by positions alone, and the CPU's matrix tiles stay off. See `demand_batch_invariance`, too.
    Raises BuildError for "native" where it cannot be built, and ValueError for another word, and for "triton" where
    neither a GPU nor the interpreter can run it.
    """
    if choice not in CHOICES:
        raise ValueError(f"kernels: {choice!r} is not one of {', '.join(CHOICES)}")
    if choice == "triton":
        _demand_triton()
    _state.choice, _state.use_amx, _state.batch_invariant = choice, amx and not batch_invariant, batch_invariant
    _state.library = None if choice in ("torch", "triton") else _load(is_required=choice == "native")
    _state.is_decided = True
    if _state.library is not None:
        _state.library.sigmoe_use_amx(int(_state.use_amx))
        _state.library.sigmoe_use_threads(num_threads or torch.get_num_threads())


def library() -> ctypes.CDLL | None:
    """The native library, or None where the torch references run."""
    if not _state.is_decided:
        use(_state.choice, amx=_state.use_amx, batch_invariant=_state.batch_invariant)
    return _state.library


def runs_triton(tensor: torch.Tensor) -> bool:
    """Whether the Triton kernels take this tensor: one on a GPU unless torch was chosen, any once Triton was."""
    return _state.choice == "triton" or (tensor.is_cuda and _state.choice != "torch")


def is_batch_invariant() -> bool:
    """Whether the Triton kernels must choose nothing by how many rows or sequences there are."""
    return _state.batch_invariant


def demand_batch_invariance(device: torch.device) -> None:
    """Raise ValueError where the kernels chosen for a device do not promise it: on the CPU the torch references."""
    if library() is None and not runs_triton(torch.empty(0, device=device)):
        raise ValueError(
            "engine.batch_invariant: the torch kernels sum in an order that depends on the batch; it takes the native "
            "kernels, which a C compiler builds, or a GPU"
        )


def _demand_triton() -> None:
    try:
        import triton  # not at the top: it takes a second, and a process without a GPU has no use for it
    except ImportError as error:
        raise ValueError(f"kernels: 'triton' needs the package triton: {error}") from error
    if triton.knobs.runtime.interpret:
        return
    try:
        triton.runtime.driver.active  # noqa: B018  # a device's, or what kernels/ahead.py puts in its place
    except RuntimeError as error:
        needed = "a CUDA device, or a process started with TRITON_INTERPRET=1"
        raise ValueError(f"kernels: 'triton' needs {needed}: {error}") from error


def backend() -> str:
    """What runs on the CPU, for people: "torch", "triton", or the instruction sets of the native library."""
    native = library()
    if _state.choice == "triton":
        return "triton"
    if native is None:
        return "torch"
    native.sigmoe_backend.restype = ctypes.c_char_p
    return str(native.sigmoe_backend().decode())


def bind(name: str, *arguments: type, returns: type | None = None) -> Callable[..., Any]:
    """A function of the library, looked up when it is first called. Callers make sure that there is a library."""
    bound: list[Callable[..., Any]] = []

    def call(*values: Any) -> Any:
        if not bound:
            native = library()
            assert native is not None, f"{name} was called where the torch references run"
            function = getattr(native, name)
            function.argtypes, function.restype = arguments, returns
            bound.append(function)
        return bound[0](*values)

    return call


def dtype_code(dtype: torch.dtype) -> int:
    """A dtype as common.h counts them."""
    assert dtype in _DTYPE_CODES, f"{dtype} is neither float32 nor bfloat16"
    return _DTYPE_CODES[dtype]


def _load(*, is_required: bool) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(build()))
    except (BuildError, OSError) as error:
        if is_required:
            raise BuildError(str(error)) from error
        _log.warning("event=no_native_kernels fallback=torch reason=%s", error)
        return None


def build(compiler: str = "gcc") -> Path:
    """Build the library unless it is there; returns its path. Safe while other processes do the same."""
    sources = sorted(SOURCES.glob("*.c"))
    digest = hashlib.sha256(" ".join((compiler, *FLAGS, _cpu())).encode())
    for source in [*sources, *sorted(SOURCES.glob("*.h"))]:
        digest.update(source.read_bytes())
    folder = _writable_folder()
    target = folder / f"kernels-{digest.hexdigest()[:16]}.so"
    if target.exists():
        return target
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _compile(compiler, sources, target)
    return target


def _compile(compiler: str, sources: list[Path], target: Path) -> None:
    unfinished = target.with_suffix(".part")
    command = [compiler, *FLAGS, *map(str, sources), "-o", str(unfinished), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler}: {error}") from error
    if done.returncode:
        raise BuildError(f"{compiler} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    unfinished.replace(target)


def _writable_folder() -> Path:
    folder = SOURCES / "_build"
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        shared = Path(tempfile.gettempdir()) / f"sigmoe-kernels-{Path.home().name}"
        shared.mkdir(mode=0o700, exist_ok=True)
        return shared


def _cpu() -> str:
    """What -march=native depends on: a library must not travel to another kind of CPU on a shared disk."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.machine())

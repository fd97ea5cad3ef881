"""Ray itself: one of our own on this machine, or a cluster that runs already."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import tempfile
import warnings
from pathlib import Path

import psutil
import ray

from cluster.config import ray_job
from cluster.executor import GroupStartError

_log = logging.getLogger(__name__)

LOCAL = "local"
_ROOT = Path(__file__).resolve().parent.parent  # the rooms, which workers import
_OBJECT_STORE_BYTES = 128 * 2**20  # nothing large travels through it; Ray's least is 75 MiB
_SLOW_START = "timed out during startup"  # what Ray says where its node did not come up within 30 s
_PREFIX = "sigmoe-ray-"  # of the folder of a Ray that was started here; the process id comes next


class RaySession:
    """A connection to Ray, and the Ray behind it where this made one. Use from the main thread."""

    def __init__(self, address: str, namespace: str = "sigmoe") -> None:
        self._address = address
        self._namespace = namespace
        self._folder: Path | None = None

    def start(self, num_cpus: int) -> None:
        """Connect, starting Ray first where the address is "local", with room for `num_cpus`.

        Raises GroupStartError when the cluster cannot be reached.
        """
        logging.getLogger("ray").setLevel(logging.ERROR)  # it would announce its own settings
        on_term = signal.getsignal(signal.SIGTERM)
        try:
            if self._address == LOCAL:
                self._start_own(num_cpus)
            else:
                self._connect()
        except (ConnectionError, RuntimeError, ValueError) as error:
            self.stop()
            raise GroupStartError(f"cluster.address: {self._address!r}: {error}") from None
        finally:
            signal.signal(signal.SIGTERM, on_term)  # Ray puts its own there

    def stop(self) -> None:
        """Disconnect; a Ray that was started here ends, and its files go. Safe to call twice."""
        ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _start_own(self, num_cpus: int) -> None:
        _remove_leftovers()
        error = self._init_own(num_cpus)
        if error and _SLOW_START in error:
            # On a cold disk the first start of Ray's daemons can outlast Ray's patience; the second finds them read.
            _log.warning("event=ray_started_again reason=%s", error)
            error = self._init_own(num_cpus)
        if error:
            raise RuntimeError(error)

    def _init_own(self, num_cpus: int) -> str:
        """Start a Ray; returns why it did not come up, and leaves nothing of it then."""
        # A folder of our own: two servers never meet, and the end of one takes nothing from the other. Its path must
        # be short, since it holds Unix sockets.
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of daemons that Ray started and did not wait for
            reason = self._try_init(num_cpus, self._folder)
            if reason:
                gc.collect()
        if reason:
            _end_daemons(self._folder)
            self.stop()
        return reason

    def _try_init(self, num_cpus: int, folder: Path) -> str:
        try:
            ray.init(
                address=LOCAL,
                namespace=self._namespace,
                num_cpus=max(num_cpus, os.cpu_count() or 1),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
            )
        except Exception as error:  # Ray raises no narrower one where its node does not come up
            return str(error) or repr(error)
        return ""

    def _connect(self) -> None:
        # A job that was submitted with a working_dir has the rooms already, and must not name another.
        has_code = "working_dir" in ((ray_job() or {}).get("runtime_env") or {})
        ray.init(
            address=self._address,
            namespace=self._namespace,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
            runtime_env={} if has_code else {"working_dir": str(_ROOT)},
        )


def _end_daemons(folder: Path) -> None:
    """Kill the daemons of a Ray that did not come up: Ray itself leaves them until this process exits."""
    for child in psutil.Process().children(recursive=True):
        try:
            if any(str(folder) in word for word in child.cmdline()):
                child.kill()
                child.wait(10.0)
        except psutil.NoSuchProcess:
            continue


def _remove_leftovers() -> None:
    """Delete the folders of servers that were killed before they could do it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)

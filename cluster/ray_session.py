"""Ray itself: one of our own on this machine, or a cluster that runs already."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from pathlib import Path

import psutil
import ray

from cluster.executor import GroupStartError

LOCAL = "local"
_ROOT = Path(__file__).resolve().parent.parent  # the rooms, which workers import
_OBJECT_STORE_BYTES = 128 * 2**20  # nothing large travels through it; Ray's least is 75 MiB
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
        # A folder of our own: two servers never meet, and the end of one takes nothing from the other. Its path must
        # be short, since it holds Unix sockets.
        _remove_leftovers()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        ray.init(
            address=LOCAL,
            namespace=self._namespace,
            num_cpus=max(num_cpus, os.cpu_count() or 1),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
            _temp_dir=str(self._folder),
        )

    def _connect(self) -> None:
        ray.init(
            address=self._address,
            namespace=self._namespace,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
            runtime_env={"working_dir": str(_ROOT)},
        )


def _remove_leftovers() -> None:
    """Delete the folders of servers that were killed before they could do it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)

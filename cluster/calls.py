"""What every call passes: a request id, admission, and one way out for errors."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from cluster.admission import Admission
from cluster.status import CODES, known_error, status_of
from sigmoe.errors import ServerFailure, SigmoeError

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Calls:
    """Runs the calls of all services; `ended` counts the admitted ones by canonical status name."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.ended: Counter[str] = Counter()

    async def run(
        self, context: Any, work: Callable[[str], Awaitable[Answer]], *, is_background: bool = False
    ) -> Answer:
        """Admit a call and do its work under a new request id. What that raises becomes this call's status."""
        request_id, started_s = secrets.token_hex(8), time.monotonic()
        status = "OK"
        try:
            with self.admission.admit(is_background=is_background):
                return await work(request_id)
        except asyncio.CancelledError:  # the client is gone, or its deadline passed
            status = "CANCELLED"
            raise
        except Exception as cause:  # a call that fails must not take the gateway with it
            error = self._known(cause, request_id)
            status = CODES[type(error)].name
        finally:
            self.ended[status] += 1
            seconds = time.monotonic() - started_s
            _log.info("event=call_ended id=%s status=%s seconds=%.3f", request_id, status, seconds)
        await _abort(context, error)

    async def look(self, context: Any, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Do the work of a call that only looks: it is neither counted nor ever refused for want of a place."""
        try:
            return await work()
        except Exception as cause:  # as above
            error = self._known(cause, secrets.token_hex(8))
        await _abort(context, error)

    def _known(self, cause: Exception, request_id: str) -> SigmoeError:
        error = known_error(cause, request_id)
        if isinstance(error, ServerFailure):
            _log.error("event=call_failed id=%s", request_id, exc_info=cause)
        return error


async def _abort(context: Any, error: SigmoeError) -> NoReturn:
    await context.abort_with_status(status_of(error))
    raise AssertionError("abort_with_status raises") from error

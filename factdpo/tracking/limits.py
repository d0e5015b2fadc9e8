"""A time limit for what another program may never answer: the services of W&B and trackio."""

import contextvars
import threading
from collections.abc import Callable
from typing import Any


class NoAnswer(TimeoutError):
    """A call took longer than its limit, and is left to itself."""


def within(seconds: float, call: Callable[..., Any], *args: Any) -> Any:
    """The result of a call, or what it raises; NoAnswer if it takes longer than `seconds`.

    The call is made in a thread, with this one's context variables. Past its limit it goes on there, and does not keep
    the process from ending.
    """
    ended: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            ended.append((context.run(call, *args), None))
        except BaseException as error:
            ended.append((None, error))

    context = contextvars.copy_context()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        raise NoAnswer(f"no answer within {seconds:.0f} s")
    result, error = ended[0]
    if error is not None:
        raise error
    return result

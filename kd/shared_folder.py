"""A folder that all machines of a run share: what one has written, another may see only later."""

import socket
import time
from collections.abc import Callable
from typing import TypeVar

from kd.errors import StoreError

PATIENCE_S = 120.0
Seen = TypeVar("Seen")


def seen_here(look: Callable[[], Seen], is_right: Callable[[Seen], bool], what: str) -> Seen:
    """Wait until this machine sees what the leading process, perhaps on another one, has written. Or `StoreError`."""
    waited_until = time.monotonic() + PATIENCE_S
    while not is_right(found := look()):
        if time.monotonic() > waited_until:
            raise StoreError(
                f"On {socket.gethostname()} {what} must be a folder that all machines share, and the first process of "
                "this run sees it otherwise."
            )
        time.sleep(0.5)
    return found

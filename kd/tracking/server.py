"""Is there a W&B login, and does its server answer? Found out within seconds, without W&B and without a prompt."""

import importlib.util
import netrc
import os
import socket
import threading
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import urlparse

from kd.schema import LoggerConfig

Mode = Literal["off", "offline", "online"]
REACH_TIMEOUT_S = 3.0
PUBLIC_SERVER = "https://api.wandb.ai"


def mode(config: LoggerConfig) -> tuple[Mode, str]:
    """Decide where W&B logs: "off", "offline" or "online", and one line for the user (or "").

    Never a prompt and never a hang: a server that cannot be reached, which costs the library minutes, is found within
    seconds.
    """
    asked = config.kind == "wandb"
    if os.environ.get("WANDB_MODE", "").lower() == "disabled":
        return "off", ""
    if importlib.util.find_spec("wandb") is None:
        return "off", "W&B: pip install wandb and `wandb login`, and runs are logged there too"
    if not has_key():
        if asked:
            return "offline", "W&B: no login found, logging offline"
        return "off", "W&B: `wandb login` to log there too, or logger=wandb to log offline"
    if os.environ.get("WANDB_MODE", "").lower() in ("offline", "dryrun"):
        return "offline", ""
    if not reachable():
        return "offline", f"W&B: {host()} cannot be reached, logging offline"
    return "online", ""


def host() -> str:
    """The server's name: that of WANDB_BASE_URL, else the public one's."""
    return _server().hostname or ""


def has_key() -> bool:
    """Whether `wandb login` has been done, or WANDB_API_KEY is set."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host()) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def reachable(seconds: float | None = None) -> bool:
    """Whether the server accepts a connection within `REACH_TIMEOUT_S`, or so many seconds.

    Asked in a thread that is not waited for longer: to look up a host's name has no timeout, and a host may have many
    addresses to try.
    """
    seconds = seconds or REACH_TIMEOUT_S
    server = _server()
    port = server.port or (80 if server.scheme == "http" else 443)
    connected = threading.Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection((server.hostname, port), timeout=seconds):
            connected.set()

    asking = threading.Thread(target=connect, daemon=True)
    asking.start()
    asking.join(seconds)
    return connected.is_set()


def _server() -> Any:
    return urlparse(os.environ.get("WANDB_BASE_URL", PUBLIC_SERVER))

"""Keys that open accounts stay out of what is written down: config.yaml, result.json, sweep.json, pages, dashboards.

Whatever a run writes comes from its command line and its configuration; neither may hold a secret.
"""

import netrc
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd.errors import ConfigError

SHORTEST = 8  # characters of a value that can be a secret
#: environment variables that hold one
VARIABLE = re.compile(r"(^|_)(KEY|APIKEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
#: keys that tell by themselves what they are: of Hugging Face, GitHub, W&B, OpenAI and others, Amazon, Slack
KNOWN = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|wandb_v\d+_\w{20,}|sk-[\w-]{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,})"
)


def refuse_in_arguments(given: Sequence[str]) -> None:
    """Raise `ConfigError`, which does not repeat it, for a secret on the command line."""
    secrets = dict(_secrets())
    for number, argument in enumerate(given, 1):
        if what := _found(argument, secrets):
            key, _, value = argument.partition("=")
            raise ConfigError(_message(f"`{key}`" if value and not _found(key, secrets) else f"Word {number}", what))


def refuse_in_configuration(content: Any) -> None:
    """Raise `ConfigError` for a secret in a resolved configuration, where `${oc.env:...}` may have put it."""
    secrets = dict(_secrets())
    for place, text in _texts(content, ""):
        if what := _found(text, secrets):
            raise ConfigError(_message(f"`{place}`" if not _found(place, secrets) else "A key", what))


def _message(where: str, what: str) -> str:
    return (
        f"{where} holds {what}, which config.yaml, the report and dashboards would show to everybody who reads them. "
        "Leave it out: W&B finds its login by itself (`wandb login`, or WANDB_API_KEY in the environment)."
    )


def _found(text: str, secrets: Mapping[str, str]) -> str:
    """What secret a text holds, in words; "" if none."""
    for where, value in secrets.items():
        if value in text:
            return where
    return "what looks like an API key" if KNOWN.search(text) else ""


def _secrets() -> Iterator[tuple[str, str]]:
    for name, value in os.environ.items():
        if VARIABLE.search(name) and len(value) >= SHORTEST and not value.isalpha():
            yield f"the value of the environment variable {name}", value
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return
    for host, (_, _, password) in hosts.items():
        if password and len(password) >= SHORTEST:
            yield f"the password that netrc has for {host}", password


def _texts(content: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every text in plain containers, keys too, with its dotted place."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield place, str(key)
            yield from _texts(value, f"{place}.{key}".lstrip("."))
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _texts(value, place)
    elif isinstance(content, str):
        yield place, content

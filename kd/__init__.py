"""Knowledge-distillation experiments that can be trusted."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd.api import Distilled as Distilled
    from kd.api import distill as distill
    from kd.api import method_config as method_config

__version__ = "0.1.0"
__all__ = ["Distilled", "distill", "method_config"]


def __getattr__(name: str) -> Any:
    """Import torch and Lightning, which takes seconds, only for those who use the Python interface."""
    if name not in __all__:
        raise AttributeError(f"module 'kd' has no attribute {name!r}")
    from kd import api

    return getattr(api, name)

"""Spiking layers for Flax Linen that compute with events and have exact gradients."""

from typing import TYPE_CHECKING, Any

from jaxsnn.spikes import Spikes as Spikes
from jaxsnn.spikes import concatenate as concatenate

if TYPE_CHECKING:
    from jaxsnn.activity import summary as summary
    from jaxsnn.activity import tabulate as tabulate
    from jaxsnn.capacity import require_no_overflow as require_no_overflow
    from jaxsnn.capacity import suggest_capacity as suggest_capacity
    from jaxsnn.certificate import check_gradients as check_gradients
    from jaxsnn.silence import why_silent as why_silent
    from jaxsnn.training.saved import load as load
    from jaxsnn.training.saved import save as save

__version__ = "0.1.0"

_LAZY = {
    "check_gradients": "jaxsnn.certificate",
    "summary": "jaxsnn.activity",
    "tabulate": "jaxsnn.activity",
    "require_no_overflow": "jaxsnn.capacity",
    "suggest_capacity": "jaxsnn.capacity",
    "why_silent": "jaxsnn.silence",
    "load": "jaxsnn.training.saved",
    "save": "jaxsnn.training.saved",
}


def __getattr__(name: str) -> Any:
    """Imports what needs Flax when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'jaxsnn' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)

"""Real-time instance segmentation for robots: YOLACT and YOLACT++ in ROS 2 and Python."""

from __future__ import annotations

from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolact_ros.engine import Segmenter

# In the source folder Python imports this package from there; the built messages are elsewhere.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
__all__ = ["Segmenter"]


def __getattr__(name: str) -> Any:
    # Programs that only read the messages should not have to load PyTorch.
    if name == "Segmenter":
        from yolact_ros.engine import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

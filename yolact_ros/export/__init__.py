"""Networks as files for other runtimes, checked against PyTorch before they are called done."""

from yolact_ros.export.check import check
from yolact_ros.export.write import PRECISIONS, ExportError, export

__all__ = ["PRECISIONS", "ExportError", "check", "export"]

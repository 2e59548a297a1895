"""Export of networks to files for other runtimes, checked against PyTorch."""

from yolact_ros.export.check import check
from yolact_ros.export.write import PRECISIONS, ExportError, export

__all__ = ["PRECISIONS", "ExportError", "check", "export"]

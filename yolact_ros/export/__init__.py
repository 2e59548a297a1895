"""Networks as files for other runtimes, checked against PyTorch before they are called done."""

from yolact_ros.export.check import Checked, PictureCheck, check
from yolact_ros.export.write import PRECISIONS, ExportError, export

__all__ = ["PRECISIONS", "Checked", "ExportError", "PictureCheck", "check", "export"]

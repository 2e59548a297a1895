"""Mend the CMake exports of the ROS 2 wheels in the environment of the Python that runs this.

They name folders of the machine that built the wheels: Python's headers and NumPy's. CMake stops at
folders that do not exist.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

import numpy

FOLDERS = {
    r"/opt/python/cp\d+-cp\d+/include/python3\.\d+": sysconfig.get_path("include"),
    r"/opt/python/cp\d+-cp\d+/lib/python3\.\d+/site-packages/numpy/_?core/include": (
        numpy.get_include()
    ),
}


def main() -> None:
    for path in Path(sys.prefix, "share").rglob("*.cmake"):
        before = after = path.read_text()
        for wrong, right in FOLDERS.items():
            after = re.sub(wrong, right.replace("\\", r"\\"), after)
        if after != before:
            # uv links files from its cache: write a new file, leave the cached one alone.
            path.unlink()
            path.write_text(after)


if __name__ == "__main__":
    main()

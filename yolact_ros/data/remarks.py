"""What a user should know of a data set that is not wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from yolact_ros.data.entries import CocoFile

_NAMED = 8


def crowd_remark(content: CocoFile) -> str:
    """Return a remark if crowd regions are at least a tenth of a file's annotations, else ""."""
    total = len(content["annotations"])
    crowds = sum(bool(a.get("iscrowd")) for a in content["annotations"])
    if crowds * 10 < max(total, 1):
        return ""
    return (
        f"{crowds} of {total} annotations are crowd regions (iscrowd 1, as CVAT writes what was "
        "drawn with a brush): of these nothing is learned or measured; if they are objects, set "
        "iscrowd to 0 in the file"
    )


def other_classes(content: CocoFile, classes: Collection[str]) -> str:
    """Return the names of classes not in `classes` with the numbers of their annotations, the most
    frequent first; "" if there are none."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    labels = (names[annotation["category_id"]] for annotation in content["annotations"])
    counts = Counter(name for name in labels if name not in classes)
    found = ", ".join(f"{name} {count}" for name, count in counts.most_common(_NAMED))
    others = len(counts) - _NAMED
    return f"{found} and {others} more" if others > 0 else found

"""Text from files."""

from __future__ import annotations


def is_valid_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON allows half an emoji, which ROS messages and OpenCV, when
    it draws, do not survive."""
    return text == text.encode("utf-8", "replace").decode()

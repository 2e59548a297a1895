"""Which cameras a node serves, and their names in its topics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Camera:
    """One image topic of the node."""

    topic: str
    """As the user gave it: the raw image topic, or the base topic of the compressed one."""
    name: str
    """Namespace of its outputs (`~/NAME/instances`); empty for a node's only camera."""

    def output(self, topic: str) -> str:
        """The full private name of one of the node's outputs for this camera."""
        return f"~/{self.name}/{topic}" if self.name else f"~/{topic}"


def cameras_of(image_topic: str | Sequence[str]) -> tuple[Camera, ...]:
    """Return the cameras of the parameter `image_topic`: one topic, a comma-separated list or a
    list of strings.

    Cameras are named after the namespaces of their topics (`front` for `/front/image_raw`), or
    after the whole topics if a namespace is empty or two are equal.

    Raises ValueError if no topic is given, a topic is repeated, or two names would be equal.
    """
    parts = image_topic.split(",") if isinstance(image_topic, str) else image_topic
    topics = [part.strip() for part in parts]
    if not topics or (len(topics) > 1 and not all(topics)):
        raise ValueError(f"image_topic={image_topic!r} names no topic, or an empty one")
    repeated = [topic for topic, count in Counter(topics).items() if count > 1]
    if repeated:
        raise ValueError(f"image_topic names {', '.join(repeated)} more than once")
    if len(topics) == 1:
        return (Camera(topics[0], ""),)
    whole = [topic.lstrip("~/").removesuffix("/compressed") for topic in topics]
    spaces = [topic.rpartition("/")[0] for topic in whole]
    unique = all(spaces) and len(set(spaces)) == len(spaces)
    names = spaces if unique else whole
    alike = [name for name, count in Counter(names).items() if count > 1]
    if alike:
        raise ValueError(f"image_topic={image_topic!r}: two of these would be {alike[0]!r}")
    return tuple(map(Camera, topics, names))

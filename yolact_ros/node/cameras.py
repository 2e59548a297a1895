"""Which cameras a node serves, and what they are called in its topics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Camera:
    """One image topic of the node."""

    topic: str
    """As the user named it: the raw images, or those beside which the compressed ones are."""
    name: str
    """What its outputs are grouped under: `~/NAME/instances`; empty for a node's only camera."""

    def output(self, topic: str) -> str:
        """The full private name of one of the node's outputs for this camera."""
        return f"~/{self.name}/{topic}" if self.name else f"~/{topic}"


def cameras_of(image_topic: str | Sequence[str]) -> tuple[Camera, ...]:
    """The cameras of a parameter `image_topic`: one topic, several with commas, or a list.

    A camera is called as the namespace of its topic, `front` for `/front/image_raw`; as the whole
    topic where that is empty or two would be called alike.

    Raises ValueError when there is no topic, or one twice, or two that would be called alike.
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

"""Description of a node parameter: its meaning, its allowed values, when it takes effect."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

Change = Literal["at once", "configure", "start"]


@dataclass(frozen=True)
class ParameterInfo:
    """What a user is told about a parameter, and the constraints on its value."""

    name: str
    field: str
    """Name of the field of `Parameters`."""
    default: Any
    description: str
    change: Change
    """When a new value takes effect: at once, when the node is next configured, or only when the
    node starts."""
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    many: bool = False
    """Whether a list of strings is allowed as well as a single string."""

    def allowed(self) -> str:
        """Return the allowed values as text; empty if the type is the only constraint."""
        if self.choices:
            return "one of " + ", ".join(choice or "(empty)" for choice in self.choices)
        return "" if self.low is None else f"{self.low} to {self.high}"

    def check(self, value: Any) -> None:
        """Raise ValueError, naming the allowed values, for a value that is not allowed."""
        good, allowed = True, self.allowed()
        if self.choices:
            good = value in self.choices
        elif self.low is not None and self.high is not None:
            good = self.low <= value <= self.high
        elif self.many:
            values = [value] if isinstance(value, str) else value
            good = isinstance(values, list | tuple) and all(
                isinstance(each, str) for each in values
            )
            allowed = "a string or a list of strings"
        if not good:
            raise ValueError(f"{self.name}={value!r} is not allowed: it must be {allowed}")

    def descriptor(self) -> ParameterDescriptor:
        """Return the description as a ROS message."""
        descriptor = ParameterDescriptor(
            name=self.name,
            description=self.description,
            additional_constraints=self.allowed() if self.choices else "",
            read_only=self.change == "start",
            dynamic_typing=self.many,
        )
        if self.low is not None and self.high is not None:
            if isinstance(self.default, float):
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=float(self.low), to_value=float(self.high))
                ]
            else:
                descriptor.integer_range = [
                    IntegerRange(from_value=int(self.low), to_value=int(self.high), step=1)
                ]
        return descriptor


def parameter(default: Any, description: str, change: Change, **others: Any) -> Any:
    """Make a field of a data class of parameters.

    The parameter has the name of the field unless `name` is given; `others` are further fields of
    `ParameterInfo`.
    """
    metadata = {"description": description, "change": change, **others}
    return dataclasses.field(default=default, metadata=metadata)


def infos(parameters: type) -> dict[str, ParameterInfo]:
    """Return all fields of a data class made by `parameter`, by parameter name."""
    found = (
        ParameterInfo(**{"name": each.name, **each.metadata}, field=each.name, default=each.default)
        for each in dataclasses.fields(parameters)
    )
    return {info.name: info for info in found}

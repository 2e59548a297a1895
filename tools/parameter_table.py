"""Write the table of the node's parameters into README.md: `make shell`, then

python tools/parameter_table.py
"""

from __future__ import annotations

from pathlib import Path

from yolact_ros.node.parameters import PARAMETERS

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN = "<!-- parameters: written by tools/parameter_table.py -->\n"
END = "<!-- end of parameters -->\n"


def rows() -> str:
    """The parameters as a Markdown table."""
    lines = ["| parameter | default | takes effect | what |", "|---|---|---|---|"]
    for name, info in PARAMETERS.items():
        default = info.default
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        allowed = info.allowed()
        lines.append(
            f"| `{name}` | {shown and f'`{shown}`'} | {info.change} | {info.description}"
            + (f" {allowed[0].upper()}{allowed[1:]}. |" if allowed else " |")
        )
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """The README's text with the table as it is now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + rows() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))

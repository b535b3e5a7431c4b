"""Reads README.md and docs/*.md: code blocks, links and headings."""

import dataclasses
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
_MARKER = re.compile(r"<!-- (not run|run by|file):? (.+) -->")
_COMMAND = re.compile(r"(?:python -m simmatch_tf\.|simmatch )(\w+)(.*)")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        page: Path of its page from the root.
        line: Number of the line of its opening fence.
        language: Word behind the opening fence, or "".
        not_run: Why no test runs it; None if it must be run.
        run_by: The test file that runs it, or None.
        file: Name of the file that it is the content of, or None.
        text: Its lines.
    """

    page: str
    line: int
    language: str
    not_run: str | None
    run_by: str | None
    file: str | None
    text: str

    def commands(self) -> list[str]:
        """Returns the shell commands, one a line."""
        text = self.text.replace("\\\n", " ")
        return [x for x in text.splitlines() if x and not x.startswith("#")]


def blocks(path: pathlib.Path) -> list[Block]:
    """Returns the fenced code blocks of a page."""
    page_blocks, lines, before = [], [], ""
    start = None
    page = path.relative_to(ROOT).as_posix()
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if start is not None and line == "```":
            marker = _MARKER.fullmatch(before)
            said = {marker[1]: marker[2]} if marker else {}
            page_blocks.append(
                Block(
                    page,
                    *start,
                    not_run=said.get("not run"),
                    run_by=said.get("run by"),
                    file=said.get("file"),
                    text="\n".join(lines) + "\n",
                )
            )
            start, lines, before = None, [], ""
        elif start is not None:
            lines.append(line)
        elif line.startswith("```"):
            start = (number, line[3:])
        elif line.strip():
            before = line
    assert start is None, f"{page}:{start[0]}: the code block does not end"
    return page_blocks


ALL_BLOCKS = [block for path in PAGES for block in blocks(path)]


def simmatch_commands(text: str) -> list[tuple[str, list[str]]]:
    """Returns each command of the package in a shell text, and its words."""
    return [
        (name, words.split())
        for line in text.splitlines()
        for name, words in _COMMAND.findall(line)
    ]


def prose(path: pathlib.Path) -> str:
    """Returns a page without its code blocks."""
    return re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.S)


def anchors(path: pathlib.Path) -> set[str]:
    """Returns the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }

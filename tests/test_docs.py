"""What the documentation tells people to type exists: every command, and every option of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from echoir.cli import COMMANDS, cli

CLONE = Path(__file__).parent.parent
PAGES = [CLONE / "README.md", *sorted((CLONE / "docs").glob("*.md")), CLONE / "echoir" / "weights" / "README.md"]
MISSING = {"..."}  # stands for the rest of a command


def commands(page: Path) -> Iterator[list[str]]:
    """Indented command lines of ours, continued lines joined, without comments, pipes and redirections."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    for line in re.findall(r"^ {4,}(.*\becho(?:ir|ir-export) .*)$", text, re.MULTILINE):
        for part in re.split(r"\s\|\s|&&|;", line.split("  #")[0].split(" # ")[0]):
            if re.match(r"\s*echoir(-export)? ", part):
                yield shlex.split(re.split(r"\s2?>", part)[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_their_options_exist(page: Path) -> None:
    for program, *words in commands(page):
        words = [word for word in words if word not in MISSING]
        name, *arguments = ["export", *words] if program == "echoir-export" else words
        if name.startswith("-"):
            continue
        assert name in COMMANDS, f"{page.name}: echoir {name}"
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        parser = command.make_parser(click.Context(command))
        try:
            parser.parse_args(list(arguments))
        except click.UsageError as error:
            pytest.fail(f"{page.name}: echoir {name} {shlex.join(arguments)}: {error.message}")


def test_the_pages_hold_commands_at_all() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) >= 50


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_an_option_that_is_gone_would_be_noticed() -> None:
    command = cli.get_command(click.Context(cli), "restore")
    assert command is not None
    with pytest.raises(click.UsageError):
        command.make_parser(click.Context(command)).parse_args(["--no-such-option"])

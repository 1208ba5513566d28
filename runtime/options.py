"""One name for one thing: options that several commands share, and the names they had before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

ARTIFACT = "A model file, its .json, a folder with one artifact, or http://HOST:PORT/MODEL."
THREADS = "Threads. [default: one per physical core]"


class Option(click.Option):
    """An option that is still understood by the names it had before; help and messages know the new ones alone.

    Args:
        old: former names, such as ``("--overwrite",)``.
    """

    def __init__(self, *arguments: Any, old: Sequence[str] = (), **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._old = list(old)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        names = self.opts
        self.opts = [*names, *self._old]
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts = names


def artifact(function: F) -> F:
    """The artifact that a command is about, as ``ARTIFACT`` or ``-m ARTIFACT``: the keyword ``model``."""

    @wraps(function)
    def command(*arguments: Any, positional: str | None, model: str | None, **keywords: Any) -> Any:
        if (positional is None) == (model is None):
            said = "which artifact? Name one" if model is None else "name one artifact, as ARTIFACT or with -m"
            raise click.UsageError(f"{said}: {ARTIFACT[:1].lower()}{ARTIFACT[1:-1]}")
        return function(*arguments, model=model or positional, **keywords)

    named = click.option("-m", "--model", metavar="ARTIFACT", help=f"{ARTIFACT} As good as ARTIFACT.")
    return click.argument("positional", metavar="ARTIFACT", required=False)(named(command))  # type: ignore[return-value]


def pictures(help: str, **keywords: Any) -> Callable[[F], F]:
    """``--data DIR``: the keyword ``data``; it was ``--images`` where something is measured."""
    return click.option("--data", cls=Option, old=("--images",), metavar="DIR", help=help, **keywords)


def weights(help: str, name: str = "weights") -> Callable[[F], F]:
    """``--weights NAME|FILE``; it was ``--reference`` beside an artifact."""
    return click.option("--weights", name, cls=Option, old=("--reference",), metavar="NAME|FILE", help=help)


def force(help: str, name: str = "force") -> Callable[[F], F]:
    """``--force``: replace what is there; it was ``--overwrite`` in ``stream``."""
    return click.option("--force", name, cls=Option, old=("--overwrite",), is_flag=True, help=help)


def figures(function: F) -> F:
    """``--json FILE``: the keyword ``json_file``."""
    help = "Write all figures there; - is standard output, alone."
    return click.option("--json", "json_file", metavar="FILE", help=help)(function)


def write_figures(json_file: str | None, figures: Any) -> bool:
    """Write figures where ``--json`` says.

    Returns:
        Whether standard output is theirs, and nothing else may go there.

    Raises:
        ImageError: the file cannot be written.
    """
    import json

    from echoir.runtime.files import atomic_write

    if json_file is None:
        return False
    text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
    if json_file == "-":
        click.echo(text, nl=False)
        return True
    with atomic_write(json_file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return False


def progress(function: F) -> F:
    """``--quiet`` and ``--log-json``."""
    function = click.option("--quiet", is_flag=True, help="Report failures and the result only.")(function)
    return click.option("--log-json", is_flag=True, help="Report progress as JSON lines.")(function)

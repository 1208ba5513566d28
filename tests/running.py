"""Run commands inside this process, as ``echoir`` would, and catch what they say."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from echoir.cli import cli, run


@dataclass(frozen=True)
class Result:
    """Exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """Standard error as JSON lines."""
        return [json.loads(line) for line in self.err.splitlines()]


def echoir(*arguments: object) -> Result:
    """Run ``echoir ARGUMENTS...``; an exception that is not an exit comes through and fails the test."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            run(cli, [str(argument) for argument in arguments], name="echoir")
        except SystemExit as exit:
            code = exit.code
    assert isinstance(code, int), "a command always exits with a code"
    print(err.getvalue(), file=sys.stderr)  # shown when the test fails
    return Result(code, out.getvalue(), err.getvalue())

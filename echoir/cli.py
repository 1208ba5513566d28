"""The command line: one lazy click group, and ``echoir-export`` for its ``export``.

A command's module is imported only when that command runs or shows its help, and such modules
import click alone at the top, so every ``--help`` is instant. Errors of the project's own tree
(``echoir.runtime.errors``) become one line on standard error and their documented exit code.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from echoir import __version__
from echoir.runtime.errors import BackendError, EchoIRError, ImageError
from echoir.runtime.output import Output, displayable, displayable_lines, guard_streams

# name -> (module, short help); the command object has the name of the command.
COMMANDS = {
    "export": ("echoir.export.commands", "Make a deployable artifact from a checkpoint, with its proof."),
    "build": ("echoir.export.engine_commands", "Build engines from an exported ONNX, without PyTorch."),
    "restore": ("echoir.runtime.commands", "Restore images and folders."),
    "stream": ("echoir.runtime.streams.command", "Restore video: files, cameras, pipes."),
    "parity": ("echoir.export.commands", "Measure an artifact against PyTorch."),
    "golden": ("echoir.export.engine_commands", "The tiles that prove an artifact, for other tools."),
    "bench": ("echoir.runtime.commands", "Measure latency, throughput and memory."),
    "inspect": ("echoir.runtime.describe", "Show what an artifact is."),
    "triton": ("echoir.runtime.serving.command", "Write a model repository for Triton Inference Server."),
    "train": ("echoir.commands", "Train a network."),
    "pack": ("echoir.commands", "Training pictures as one file that travels."),
    "evaluate": ("echoir.commands", "PSNR and SSIM of a checkpoint or an artifact."),
}


class LazyGroup(click.Group):
    """Knows its commands' names and short helps without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = getattr(import_module(COMMANDS[name][0]), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="echoir")
def cli() -> None:
    """Train EchoIR, export it once, restore on the edge, and prove the engine is faithful.

    \b
    Exit codes: 0 done, 2 usage, 3 an input could not be read or restored,
    4 a broken or mismatched artifact, 5 a failed parity gate,
    6 a missing backend or device.
    """


def run(command: click.Command, arguments: list[str] | None = None, name: str | None = None) -> None:
    """Run a command as a process would: report the project's errors and exit with their code."""
    try:
        # Outside standalone mode, ctx.exit(n) comes back as the return value.
        code: Any = command.main(arguments, prog_name=name, standalone_mode=False)
    except EchoIRError as error:
        shown = displayable_lines if isinstance(error, BackendError) else displayable  # those quote other programs
        click.echo(f"error: {shown(str(error))}", err=True)
        code = error.exit_code
    except MemoryError as error:
        click.echo(f"error: out of memory: {displayable(error) or 'the machine has no more'}", err=True)
        code = BackendError.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    code = code if isinstance(code, int) else 0
    if code == 0 and isinstance(sys.stdout, Output) and (cause := sys.stdout.lost):
        click.echo(f"error: cannot write to standard output: {cause}", err=True)
        code = ImageError.exit_code
    sys.exit(code)


def main() -> None:
    """Entry point of ``echoir``."""
    guard_streams()
    run(cli, name="echoir")


def export_main() -> None:
    """Entry point of ``echoir-export``: ``echoir export`` under its own name."""
    guard_streams()
    arguments = sys.argv[1:]
    run(cli, arguments if arguments == ["--version"] else ["export", *arguments], name="echoir")

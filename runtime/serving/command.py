"""``echoir triton``: an artifact as Triton Inference Server takes it."""

from __future__ import annotations

from pathlib import Path

import click

from echoir.runtime import options


@click.command()
@options.artifact
@click.option("-o", "--output", metavar="DIR", required=True, type=click.Path(path_type=Path), help="The repository.")
@click.option("--name", help="The model's name on the server. [default: the artifact's]")
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="Tiles that run together; engines made by echoir-export take up to 8.",
)
@click.option(
    "--queue", type=click.IntRange(min=1), default=64, show_default=True, help="Requests that may wait; others get 503."
)
@click.option(
    "--instances", type=click.IntRange(1, 64), default=1, show_default=True, help="Copies of the model, per GPU."
)
@options.force("Replace the model of that name.")
def triton(model: str, output: Path, name: str | None, max_batch: int, queue: int, instances: int, force: bool) -> None:
    """Write a model repository for Triton Inference Server.

    Triton's own ONNX Runtime or TensorRT backend serves it; the manifest travels in its configuration, so that

    \b
        echoir restore photos/ -m http://HOST:8000/NAME -o restored/

    works as with the artifact itself. Tiles of different clients share a batch, if the artifact's batch is
    open (echoir-export --batch dynamic).
    """
    from echoir.runtime.artifact import Artifact
    from echoir.runtime.serving.repository import NAME, write_repository

    if name is not None and not NAME.fullmatch(name):
        raise click.BadParameter("a name has letters, digits, and _ . - after the first", param_hint="--name")
    artifact = Artifact.open(model)
    name = name or artifact.manifest.name
    if (output / name).exists() and not force:
        raise click.UsageError(f"{output / name} is there; replace it with --force, or give another --name")
    folder = write_repository(artifact, output, name=name, max_batch=max_batch, queue=queue, instances=instances)
    batch = artifact.manifest.tile.batch
    if batch is None:
        click.echo(f"{folder}: batches of up to {max_batch} tiles, {queue} requests may wait")
    else:
        click.echo(
            f"{folder}: the artifact's batch is fixed at {batch}, so requests run one by one, {queue} may wait; "
            "for tiles of different clients to share a batch, export with --batch dynamic"
        )
    click.echo(f"serve it: tritonserver --model-repository {output} --http-address 127.0.0.1")

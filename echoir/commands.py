"""The commands of the training side: ``train`` and ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.option(
    "--task",
    type=click.Choice(["denoise", "realnoise", "derain", "deblur"]),
    required=True,
    help="What to learn to undo.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="DIR",
    help="Folder of clean pictures, searched below too, or of pairs in input/ and target/; may be repeated. "
    "[default: ECHOIR_DATA]",
)
@click.option(
    "--recipe", default="tiny", show_default=True, metavar="NAME|FILE", help="A shipped recipe or a TOML file."
)
@click.option("--preset", metavar="NAME", help="Another network than the recipe's.")
@click.option("--strategy", metavar="single-level|as-blo", help="Another strategy than the recipe's.")
@click.option("--start", metavar="NAME|FILE", help="Weights to start from, such as a single-level warm-up.")
@click.option("--learning-rate", type=float, help="Another peak learning rate.")
@click.option("--seed", type=int, help="Fixes initial weights, split, crops and noise.")
@click.option("--autocast/--no-autocast", default=None, help="bfloat16 where PyTorch deems it safe.")
@click.option("--compile/--no-compile", "compile_", default=None, help="Use torch.compile.")
@click.option("--device", default="cpu", show_default=True, help="A torch device, such as cuda.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes that prepare crops."
)
@click.option("-o", "--output", metavar="DIR", help="The run's folder. [default: runs/TASK-PRESET]")
@click.option("--resume", is_flag=True, help="Go on from the folder's last state.")
@click.option("--log-json", is_flag=True, help="Report progress as JSON lines.")
def train(
    task: str,
    data: tuple[str, ...],
    recipe: str,
    start: str | None,
    compile_: bool | None,
    device: str,
    threads: int | None,
    workers: int,
    output: str | None,
    resume: bool,
    log_json: bool,
    **overrides: Any,
) -> None:
    """Train a network on folders of clean pictures, or of pairs.

    The run's folder receives state.safetensors (to --resume from, after a kill too), log.csv,
    validation.csv, TensorBoard's events and, at the end, TASK.safetensors: the averaged weights.

    Several GPUs: torchrun --nproc-per-node N -m echoir train ... --device cuda
    """
    from echoir.runtime.errors import needs_extra
    from echoir.runtime.progress import Progress

    with needs_extra("train"):
        import torch

        from echoir.checkpoint import load_checkpoint
        from echoir.data import data_folders, list_pictures
        from echoir.distributed import join, leave
        from echoir.recipe import Recipe
        from echoir.train import Trainer

    folders = data_folders(data)
    if not folders:
        raise click.UsageError("no pictures to train on: give --data DIR, or set ECHOIR_DATA")
    if threads:
        torch.set_num_threads(threads)
    resolved = Recipe.load(recipe, compile=compile_, **overrides)
    folder = Path(output or f"runs/{task}-{resolved.preset}")
    if (folder / "state.safetensors").exists() and not resume:
        raise click.UsageError(f"{folder} holds a run already: add --resume to go on with it, or choose another -o")
    network = load_checkpoint(start).network if start else None
    world = join(device)
    trainer = Trainer(task, resolved, list_pictures(folders), folder, world, workers, start=network)
    if resume:
        trainer.resume()
    first = world.rank == 0
    with Progress("train", resolved.steps, "steps", done=trainer.step, log_json=log_json, quiet=not first) as progress:

        def report(step: int, **figures: float) -> None:
            if "loss" in figures:
                progress.advance(1, **figures)
            else:
                progress.note(f"step {step}: " + ", ".join(f"{name} {value:.2f} dB" for name, value in figures.items()))

        trainer.report = report
        path = trainer.run()
    leave()
    if first:
        click.echo(path)


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--data", required=True, metavar="DIR", help="Clean pictures, or a folder with input/ and target/.")
@click.option(
    "--sigma", type=float, multiple=True, help="Noise level in 8-bit codes, for clean pictures; may be repeated."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise.")
@click.option("--limit", type=click.IntRange(min=1), help="Take the first so many pictures.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
@click.option("--csv", "csv_path", metavar="FILE", help="Write the figures of every picture here.")
@click.option("--log-json", is_flag=True, help="Report progress as JSON lines.")
def evaluate(
    model: str,
    data: str,
    sigma: tuple[float, ...],
    seed: int,
    limit: int | None,
    threads: int | None,
    csv_path: str | None,
    log_json: bool,
) -> None:
    """PSNR and SSIM of a checkpoint or an artifact, beside those of the degraded input.

    MODEL is a shipped checkpoint's name, a .safetensors file (run by PyTorch on whole images), or
    an artifact (run as deployed, in tiles). Figures are means over pictures of 8-bit images: on
    RGB, for deraining on the Y channel.
    """
    from dataclasses import replace
    from functools import partial

    from echoir.runtime.errors import needs_extra

    with needs_extra("train"):
        import torch

        from echoir.checkpoint import SHIPPED, load_checkpoint
        from echoir.data import to_float
        from echoir.evaluate import Restore, Score, mean, restore_whole, to_csv
        from echoir.evaluate import evaluate as score
        from echoir.metrics import to_8bit
        from echoir.samples import open_samples
    from echoir.runtime import Restorer
    from echoir.runtime.files import atomic_write
    from echoir.runtime.progress import Progress

    if threads:
        torch.set_num_threads(threads)
    if model.endswith(".safetensors") or (SHIPPED / f"{model}.safetensors").is_file():
        checkpoint = load_checkpoint(model)
        task = checkpoint.task
        restore: Restore = partial(restore_whole, checkpoint.network)
    else:
        restorer = Restorer.open(model, threads=threads)
        task, restore = restorer.manifest.task, restorer
        if restorer.manifest.input.dtype == "uint8":  # a camera's model sees what a camera gives: clipped codes
            restore = lambda image: to_float(restorer(to_8bit(image)))  # noqa: E731 - one branch of three
    scores: list[Score] = []
    click.echo(f"{'':>18} {'input PSNR':>11} {'PSNR':>7} {'input SSIM':>11} {'SSIM':>7}")
    for level in sigma or (None,):
        samples = open_samples(Path(data), task, sigma=level, seed=seed, limit=limit)
        label = samples.kind if samples.sigma is None else f"sigma {samples.sigma:g}"
        with Progress("evaluate", len(samples), "pictures", log_json=log_json) as progress:
            these = []
            for one in score(restore, samples, task):
                these.append(one)
                progress.advance(picture=one.picture)
        average = mean(these)
        click.echo(
            f"{label:>18} {average.input_psnr:>11.2f} {average.psnr:>7.2f}"
            f" {average.input_ssim:>11.4f} {average.ssim:>7.4f}"
        )
        scores += [replace(one, picture=f"{label}/{one.picture}") for one in (*these, average)]
    if csv_path:
        with atomic_write(csv_path) as temporary:
            temporary.write_text(to_csv(scores))

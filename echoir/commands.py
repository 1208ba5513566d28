"""The commands of the training side: ``train`` and ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from echoir.runtime import options
from echoir.runtime.commands import ThreadsType, device_option

if TYPE_CHECKING:
    from echoir.runtime.contract import Device
    from echoir.runtime.descriptor import Descriptor


def _prepare_threads() -> None:
    """Before torch is imported: waiting threads sleep, and products do not depend on which thread came first.

    OpenMP's threads spin for a while at the end of every operator. Where other programs use the cores, a thread then
    spins through the time slice in which the one it waits for could have run: on two cores with a dozen programs two
    threads did not finish three steps in 100 s, where one took 9.6 s a step, and two that sleep 11.6 s
    (docs/training.md).

    MKL's products differ in their last bit from call to call where several threads share a busy processor, so
    a resumed run would not repeat the uninterrupted one. Intel's "conditional numerical reproducibility" ends that,
    for a number of threads that does not change.
    Whoever sets these variables knows better.
    """
    import os

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MKL_CBWR", "AUTO")
    os.environ.setdefault("MKL_DYNAMIC", "FALSE")


@click.command()
@click.option(
    "--task",
    metavar="NAME|MODULE:ATTRIBUTE",
    help="What to learn to undo: denoise, realnoise, derain, deblur, one's own, or several as A+B. "
    "[default: the recipe's]",
)
@click.option(
    "--data",
    multiple=True,
    metavar="DIR",
    help="Folder of clean pictures, searched below too, or of pairs in subfolders such as input/ and target/, "
    "blur/ and sharp/, lq/ and gt/, noisy/ and clean/, rain/ and norain/; may be repeated. [default: ECHOIR_DATA]",
)
@click.option(
    "--recipe", default="tiny", show_default=True, metavar="NAME|FILE", help="A shipped recipe or a TOML file."
)
@click.option("--validation", multiple=True, metavar="DIR", help="Watch these pictures, and hold none out of --data.")
@click.option("--preset", metavar="NAME|MODULE:ATTRIBUTE", help="Another network than the recipe's.")
@click.option("--loss", metavar="NAME|MODULE:ATTRIBUTE", help="Another loss than the recipe's.")
@click.option("--strategy", metavar="single-level|as-blo", help="Another strategy than the recipe's.")
@click.option("--start", metavar="NAME|FILE", help="Weights to start from, of this network or a smaller one.")
@click.option("--learning-rate", type=float, help="Another peak learning rate.")
@click.option("--seed", type=int, help="Fixes initial weights, split, crops and noise.")
@click.option("--best", metavar="FIGURE", help="Keep the weights where this figure of validation.csv was best, too.")
@click.option("--lpips/--no-lpips", default=None, help="Measure LPIPS in validations, too.")
@click.option("--deterministic/--no-deterministic", default=None, help="Use deterministic algorithms alone.")
@click.option("--autocast/--no-autocast", default=None, help="bfloat16 where PyTorch deems it safe.")
@click.option("--compile/--no-compile", "compile_", default=None, help="Use torch.compile.")
@click.option("--device", default="cpu", show_default=True, help="A torch device, such as cuda.")
@click.option("--threads", type=ThreadsType(), help=options.THREADS)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Train for so long; the schedule follows.")
@click.option("-o", "--output", metavar="DIR", help="The run's folder. [default: runs/TASK-PRESET]")
@click.option("--resume", is_flag=True, help="Go on from the folder's last state.")
@options.progress
def train(
    data: tuple[str, ...],
    validation: tuple[str, ...],
    recipe: str,
    start: str | None,
    compile_: bool | None,
    device: str,
    threads: int | None,
    output: str | None,
    resume: bool,
    log_json: bool,
    quiet: bool,
    **overrides: Any,
) -> None:
    """Train a network on folders of clean pictures, or of pairs.

    The run's folder receives recipe.toml and run.json (where it comes from), state.safetensors (to
    --resume from, after a kill too), log.csv, validation.csv, TensorBoard's events and, at the end,
    TASK.safetensors: the averaged weights. Ctrl-C and SIGTERM save the state first.

    Several GPUs: torchrun --nproc-per-node N -m echoir train ... --device cuda
    """
    from echoir.runtime.errors import needs_extra
    from echoir.runtime.progress import Progress

    _prepare_threads()
    with needs_extra("train"):
        import torch

        from echoir.checkpoint import load_checkpoint
        from echoir.data import check_pictures, list_pictures
        from echoir.degradations import find_task
        from echoir.distributed import join, leave
        from echoir.pack import data_folders
        from echoir.recipe import Recipe
        from echoir.train import Trainer
        from echoir.validation import LPIPS

    folders = data_folders(data)
    if not folders:
        raise click.UsageError("no pictures to train on: give --data DIR, or set ECHOIR_DATA")
    if threads:
        torch.set_num_threads(threads)
    resolved = Recipe.load(recipe, compile=compile_, **overrides)
    if resolved.task is None:
        raise click.UsageError("nothing to learn to undo: give --task, or name a task in the recipe")
    task = find_task(resolved.task)
    folder = Path(output or f"runs/{task.name}-{resolved.preset.replace(':', '-')}")
    if (folder / "state.safetensors").exists() and not resume:
        raise click.UsageError(f"{folder} holds a run already: add --resume to go on with it, or choose another -o")
    network = load_checkpoint(start).network if start else None
    said: list[str] = []
    pictures = list_pictures(folders, said.append)
    watched = list_pictures(data_folders(validation), said.append) if validation else None
    check_pictures([*pictures, *(watched or ())])
    world = join(device)
    trainer = Trainer(
        resolved.task, resolved, pictures, folder, world, note=said.append, start=network, validation=watched
    )
    if resume and not trainer.resume():
        said.append(f"{folder} holds no state to resume from: the run begins")
    first = world.rank == 0
    timed = resolved.minutes is not None
    total, unit = (round(60 * (resolved.minutes or 0)), "seconds") if timed else (resolved.steps, "steps")
    done = round(trainer.seconds) if timed else trainer.step
    with Progress("train", total, unit, done=done, log_json=log_json, quiet=quiet or not first) as progress:
        for line in said if first else ():
            progress.note(line)

        def report(step: int, **figures: float) -> None:
            if "loss" in figures:
                reached = min(round(trainer.seconds), total) if timed else step
                progress.advance(reached - progress.done, **({"step": step} if timed else {}), **figures)
            else:
                shown = (
                    f"{name} {value:.4f}" if name.endswith(LPIPS) else f"{name} {value:.2f} dB"
                    for name, value in figures.items()
                )
                progress.note(f"step {step}: " + ", ".join(shown))

        trainer.report, trainer.note = report, progress.note
        path = trainer.run()
    leave()
    if first:
        click.echo(path)


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="FILE", help="The file to write.")
@click.option(
    "--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Of pictures that become JPEG."
)
@click.option("--lossy-pairs", is_flag=True, help="Make JPEGs of pairs, too.")
def pack(folders: tuple[str, ...], output: str, quality: int, lossy_pairs: bool) -> None:
    """Training pictures as one file, for a machine that is far from them: train takes it as --data.

    Clean pictures become JPEG with all of their chroma; pairs are kept to the bit.
    """
    from echoir.runtime.errors import needs_extra

    with needs_extra("train"):
        from echoir.pack import pack as write
    count = write([Path(folder) for folder in folders], Path(output), quality, lossy_pairs)
    click.echo(f"{output}: {count} pictures, {Path(output).stat().st_size / 1e6:.1f} MB")


@click.command()
@options.artifact
@options.pictures("Clean pictures, or pairs, as for train.", required=True)
@device_option
@click.option(
    "--form",
    "forms",
    multiple=True,
    metavar="NAME|all",
    help="The pictures' form: rgb, clipped, gray, jpeg444, jpeg422, jpeg420, yuv420, correlated or clean; "
    "may be repeated. [default: rgb]",
)
@click.option(
    "--sigma", type=float, multiple=True, help="Noise level in 8-bit codes, for clean pictures; may be repeated."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise.")
@click.option("--limit", type=click.IntRange(min=1), help="Take the first so many pictures.")
@click.option(
    "--task", metavar="NAME|MODULE:ATTRIBUTE", help="What clean pictures receive. [default: the model's task]"
)
@click.option("--network", metavar="MODULE:ATTRIBUTE", help="What builds the network of MODEL, if it is one's own.")
@click.option("--lpips", is_flag=True, help="Measure LPIPS, too; its package must be installed.")
@click.option("--threads", type=ThreadsType(), help=options.THREADS)
@options.figures
@click.option("--csv", "csv_path", metavar="FILE", help="Write the figures of every picture there, as a table.")
@options.progress
def evaluate(
    model: str,
    data: str,
    device: Device,
    forms: tuple[str, ...],
    sigma: tuple[float, ...],
    seed: int,
    limit: int | None,
    task: str | None,
    network: str | None,
    lpips: bool,
    threads: int | None,
    json_file: str | None,
    csv_path: str | None,
    log_json: bool,
    quiet: bool,
) -> None:
    """PSNR and SSIM of a checkpoint or an artifact, beside those of the degraded input.

    ARTIFACT is a shipped checkpoint's name, a .safetensors file (run by PyTorch on whole images), or
    an artifact (run as deployed, in tiles). Figures are means over pictures of 8-bit images: on
    RGB, for deraining on the Y channel. Noise on clean pictures comes in the forms in which
    pictures come: files of 8 bits, gray, JPEG of quality 95, frames of video.
    """
    from dataclasses import replace
    from functools import partial

    from echoir.runtime.errors import needs_extra

    _prepare_threads()
    with needs_extra("train"):
        import torch

        from echoir.checkpoint import SHIPPED, load_checkpoint, load_own
        from echoir.data import to_float
        from echoir.degradations import TASKS, find_task
        from echoir.evaluate import Restore, Score, mean, restore_whole, to_csv, to_json
        from echoir.evaluate import evaluate as score
        from echoir.forms import forms_named
        from echoir.metrics import to_8bit
        from echoir.named import find
        from echoir.samples import open_samples
    from echoir.runtime import Restorer
    from echoir.runtime.files import atomic_write
    from echoir.runtime.progress import Progress

    forms = forms_named(forms)
    if threads:
        torch.set_num_threads(threads)
    described: Descriptor | None = None
    weights = network or model.endswith(".safetensors") or (SHIPPED / f"{model}.safetensors").is_file()
    if weights and device != "cpu":
        raise click.UsageError(f"--device {device} is for an artifact; PyTorch measures a checkpoint on the CPU")
    if network:
        own, trained = load_own(model, find(network, "network"))
        restore: Restore = partial(restore_whole, own)
    elif weights:
        checkpoint = load_checkpoint(model)
        trained, restore = checkpoint.task, partial(restore_whole, checkpoint.network)
        described = checkpoint.descriptor
    else:
        restorer = Restorer.open(model, threads=threads, device=device)
        trained, restore, described = restorer.manifest.task, restorer, restorer.manifest.network
        if restorer.manifest.input.dtype == "uint8":  # a camera's model sees what a camera gives: clipped codes
            restore = lambda image: to_float(restorer(to_8bit(image)))  # noqa: E731 - one branch of three
    undone = find_task(task) if task else TASKS.get(trained, trained)
    scores: list[Score] = []
    say: Callable[..., None] = click.echo if json_file != "-" else (lambda _: None)
    given = "bicubic" if described is not None and described.scale > 1 else "input"
    say(
        f"{'':>20} {f'{given} PSNR':>12} {'PSNR':>7} {f'{given} SSIM':>12} {'SSIM':>7} {'worst PSNR':>11}"
        + f" {f'{given} LPIPS':>13} {'LPIPS':>7}" * lpips
    )
    asked = [
        (form, level) for form in (forms or (None,)) for level in ((None,) if form == "clean" else sigma or (None,))
    ]
    for form, level in asked:
        said: list[str] = []
        samples = open_samples(Path(data), undone, form=form, sigma=level, seed=seed, limit=limit, say=said.append)
        if described is not None and described.scale > 1:
            samples = replace(samples, network=described)
        with Progress("evaluate", len(samples), "pictures", log_json=log_json, quiet=quiet) as progress:
            for line in () if scores else said:  # once, not for every level
                progress.note(line)
            these = []
            for one in score(restore, samples, undone, lpips):
                these.append(one)
                progress.advance(picture=one.picture)
        average = mean(these)
        say(
            f"{samples.label:>20} {average.input_psnr:>12.2f} {average.psnr:>7.2f}"
            f" {average.input_ssim:>12.4f} {average.ssim:>7.4f} {min(one.psnr for one in these):>11.2f}"
            + (f" {average.input_lpips:>13.4f} {average.lpips:>7.4f}" if lpips else "")
        )
        scores += [replace(one, picture=f"{samples.label}/{one.picture}") for one in (*these, average)]
    options.write_figures(json_file, to_json(scores))
    if csv_path:
        with atomic_write(csv_path) as temporary:
            temporary.write_text(to_csv(scores), encoding="utf-8")

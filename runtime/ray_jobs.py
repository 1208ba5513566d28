"""Restoring many images on a Ray cluster: one restorer per actor, one picture per task.

Actors open, restore and save by themselves, so nothing but names travels, and the output file is the checkpoint. Ray is
told to retry nothing: what a pass left undone, because a worker or a node died, the next pass does. Retries inside Ray
lost pictures when a node died, passes did not (docs/scaling.md).
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoir.runtime.contract import Device
from echoir.runtime.errors import ArtifactError, BackendError, EchoIRError, ImageError, needs_extra
from echoir.runtime.forms import warning
from echoir.runtime.images import MAX_PIXELS
from echoir.runtime.jobs import Report, pending, restore_one
from echoir.runtime.machine import usable_cores
from echoir.runtime.plans import Exists, Failure, Job
from echoir.runtime.progress import Progress

if TYPE_CHECKING:
    from echoir.runtime.restorer import Restorer

Row = dict[str, Any]

LISTENS_SECONDS = 10.0


@dataclass(frozen=True)
class Cluster:
    """Where the work is done.

    Args:
        address: of a running cluster, ``HOST:PORT`` or ``auto``; None starts one on this machine alone.
        workers: restorers at work.
        gpus: of each worker; a fraction lets workers share one.
        attempts: how often a picture is tried whose worker dies.
    """

    address: str | None = None
    workers: int = 1
    gpus: float = 0
    attempts: int = 3


@dataclass(frozen=True)
class Settings:
    """How a worker restores; ``threads`` is also the number of CPUs that it asks Ray for."""

    model: str
    threads: int
    device: Device = "cpu"
    overlap: int | None = None
    batch: int | None = None
    strength: float = 1.0
    upright: bool = False
    max_pixels: int = MAX_PIXELS

    @classmethod
    def of(cls, model: str, cluster: Cluster, threads: int | None, **others: Any) -> Settings:
        """Settings for workers of a cluster: a path that means the same everywhere, and threads that fit.

        Args:
            threads: of each worker; None shares this machine's cores out, and is one on a running cluster.
        """
        if threads is None:
            threads = max(1, usable_cores() // cluster.workers) if cluster.address is None else 1
        return cls(model if "://" in model else os.path.abspath(model), threads, **others)


class Worker:
    """An actor's restorer. What goes wrong is an answer, not an exception, so that Ray goes on."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._restorer: Restorer | None = None

    def __call__(self, row: Row) -> Row:
        """Does the job of a row; gives its index, and what became of it."""
        from echoir.runtime.restorer import Restorer

        settings = self._settings
        answer = {"index": row["index"], "failure": "", "broken": 0, "left": "", "unknown": ""}
        try:
            if self._restorer is None:
                self._restorer = Restorer.open(
                    settings.model,
                    overlap=settings.overlap,
                    batch=settings.batch,
                    threads=settings.threads,
                    device=settings.device,
                    strength=settings.strength,
                )
            job = Job(Path(row["source"]), Path(row["target"]))
            done = restore_one(self._restorer, job, upright=settings.upright, max_pixels=settings.max_pixels)
            network = self._restorer.manifest.network
            return answer | {"left": ", ".join(done.left), "unknown": warning(done.form, network) or ""}
        except (ImageError, MemoryError) as error:
            return answer | {"failure": str(error) or "out of memory"}
        except EchoIRError as error:
            return answer | {"failure": str(error), "broken": error.exit_code}


def restore_on_ray(
    settings: Settings,
    cluster: Cluster,
    jobs: Sequence[Job],
    report: Report,
    *,
    exists: Exists = "skip",
    log_json: bool = False,
    quiet: bool = False,
) -> None:
    """Do the jobs on a cluster; see :func:`echoir.runtime.jobs.restore`.

    Every picture is done at least once, and its output is whole or absent. All machines must see the model, the
    sources and the targets under the same paths.

    Args:
        settings: of every worker; relative paths are taken from here.
        cluster: where.
        jobs: what :func:`echoir.runtime.plans.plan` returned.
        report: filled in as the work goes on.

    Raises:
        MissingExtraError: Ray is not installed.
        BackendError: the cluster cannot be reached, or a worker has no backend for the model.
        ArtifactError: a worker cannot use the model.
    """
    todo = list(pending(jobs, report, exists))
    with (
        _quiet(),
        Progress("restore", len(todo), "pictures", log_json=log_json, quiet=quiet) as progress,
        _connected(cluster, settings.threads) as ray,
    ):
        for line in () if quiet else report.notes:
            progress.note(line)

        def fail(job: Job, cause: str) -> None:
            report.failed.append(Failure(str(job.source), cause))
            progress.advance()

        def succeed(job: Job) -> None:
            report.restored.append(job)
            progress.advance(file=str(job.source))

        noted = 0

        def note_failures() -> None:
            nonlocal noted
            for failure in report.failed[noted:] if log_json else ():
                progress.note(str(failure), **asdict(failure))
            noted = len(report.failed)

        note_failures()
        said: set[str] = set()
        left = dict(enumerate(todo))
        for attempt in range(1, cluster.attempts + 1):
            for row in _answers(ray, settings, cluster, left):
                job = left.pop(row["index"], None)
                if row["broken"]:
                    kind = ArtifactError if row["broken"] == ArtifactError.exit_code else BackendError
                    raise _rebuilt(kind, row["failure"])
                if job is None:  # an answer that came twice
                    continue
                if row["failure"]:
                    fail(job, row["failure"])
                    note_failures()
                    continue
                lines = [f"not carried over: {row['left']}"] if row["left"] else []
                if row["unknown"] and row["unknown"] not in said:  # once a kind of pictures
                    said.add(row["unknown"])
                    lines.append(row["unknown"])
                for line in () if quiet else lines:
                    progress.note(f"{job.source}: {line}", source=str(job.source))
                succeed(job)
            if exists != "overwrite":  # the worker died between its output and its answer
                for index in [index for index, job in left.items() if os.path.isfile(job.target)]:
                    succeed(left.pop(index))
            if not left:
                break
            if attempt < cluster.attempts and not quiet:
                progress.note(f"{len(left)} of {len(todo)} pictures were lost with their workers; they are tried again")
        for job in left.values():
            fail(
                job,
                f"its worker was lost, {cluster.attempts} of {cluster.attempts} times (out of memory? a node gone?)",
            )
        note_failures()
        progress.fields.pop("file", None)
        progress.advance(0, restored=len(report.restored), skipped=len(report.skipped), failed=len(report.failed))


def _answers(ray: Any, settings: Settings, cluster: Cluster, left: dict[int, Job]) -> Iterator[Row]:
    """One pass over what is left, in the order it gets done; nothing comes for what died with its worker."""
    import ray.data as data

    rows = [
        {"index": index, "source": os.path.abspath(job.source), "target": os.path.abspath(job.target)}
        for index, job in left.items()
    ]
    worker: Any = Worker  # Ray's annotation knows functions only
    with warnings.catch_warnings():
        # Ray 2.60 announces that these two will have another name in 2.64, and has none for them yet.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        done = data.from_items(rows, override_num_blocks=len(rows)).map(
            worker,
            fn_constructor_args=(settings,),
            compute=data.ActorPoolStrategy(size=min(cluster.workers, len(rows)), max_tasks_in_flight_per_actor=1),
            num_cpus=settings.threads,
            num_gpus=cluster.gpus,
            max_restarts=-1,
            max_task_retries=0,
        )
    try:
        yield from done.iter_rows()
    except ray.exceptions.RayError as error:
        # Every task of the pass was lost: Ray has no block to give, not even an empty one.
        logging.getLogger(__name__).debug("a pass ended early: %s", error)


def _check_listens(address: str, own: str) -> None:
    """Refuse an address where nobody listens, which Ray would try for twenty minutes.

    Args:
        address: ``HOST:PORT``, or ``auto``, which Ray looks up.
        own: address of this machine, which Ray takes for a loopback one.

    Raises:
        BackendError: nobody listens there.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:
        return
    there = own if host in ("localhost", "127.0.0.1", "[::1]") else host.strip("[]")
    try:
        socket.create_connection((there, int(port)), LISTENS_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        tried = "" if there == host else f", for which Ray takes {there}"
        raise BackendError(f"no Ray cluster on {address}{tried}: {error}") from None


@contextmanager
def _connected(cluster: Cluster, threads: int) -> Iterator[Any]:
    """Ray, started here alone or joined."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # it would tell of dead workers on standard output
    with needs_extra("ray"):
        import ray
        import ray.data
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if cluster.address is None:
        options |= {
            "num_cpus": cluster.workers * threads,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        options["address"] = cluster.address
        _check_listens(cluster.address, ray.util.get_node_ip_address())
    try:
        ray.init(**options)
    except Exception as error:  # a node that does not start in time is a bare Exception
        where = cluster.address or "this machine"
        raise BackendError(f"no Ray cluster on {where}: {error}") from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1
        for name in ("ray.data", "ray"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if cluster.address is None and cluster.gpus:
            there = ray.cluster_resources().get("GPU", 0)
            if there < cluster.gpus * cluster.workers:
                raise BackendError(f"{cluster.workers} workers of {cluster.gpus:g} GPUs: Ray sees {there:g} here")
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray's core writes to descriptor 2 whatever it is told; what this process says goes on to where that led."""
    ours = sys.stderr
    try:
        mixed = ours.fileno() == 2
    except (OSError, ValueError):
        mixed = False  # captured: nothing of Ray's core gets there
    if not mixed:
        yield
        return
    ours.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        with open(kept, "w", encoding=ours.encoding, errors=ours.errors, closefd=False) as sys.stderr:
            yield
    finally:
        sys.stderr = ours
        os.dup2(kept, 2)
        os.close(kept)


def _rebuilt(kind: type[EchoIRError], message: str) -> EchoIRError:
    """An error with the message it had in a worker."""
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error

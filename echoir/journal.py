"""What a training run leaves to read: log.csv, validation.csv, and the same with pictures for TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from echoir.runtime.errors import needs_extra
from echoir.runtime.files import atomic_write

FLUSH_SECONDS = 30


class Journal:
    """Writes a run's figures into its folder; a context manager.

    Args:
        folder: of the run, existing.
        step: the run starts after this one. Later rows of a run that was killed are dropped: they come again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        with needs_extra("train"):
            from torch.utils.tensorboard import SummaryWriter

        for name in ("log.csv", "validation.csv"):
            _drop_rows_after(folder / name, step)
        self._log, self._validation = ((folder / name).open("a", newline="") for name in ("log.csv", "validation.csv"))
        self._board = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=FLUSH_SECONDS)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()
        self._log.close()
        self._validation.close()

    def trained(self, step: int, seconds: float, rate: float, figures: dict[str, float]) -> None:
        """One training step; ``seconds`` since the run began."""
        row = {"step": step, "seconds": f"{seconds:.2f}", "learning_rate": f"{rate:.6g}"}
        _append(self._log, row | {name: f"{value:.9g}" for name, value in figures.items()})
        for name, value in (figures | {"learning_rate": rate}).items():
            self._board.add_scalar(f"train/{name}", value, step)

    def validated(self, step: int, figures: dict[str, float], pictures: Sequence[NDArray[np.uint8]]) -> None:
        """Figures by name (PSNR in dB), and 8-bit pictures [H, W, 3]: degraded, restored and clean side by side."""
        _match_columns(self._validation, ["step", *figures])
        _append(self._validation, {"step": step} | {name: f"{value:.4f}" for name, value in figures.items()})
        for name, value in figures.items():
            self._board.add_scalar(f"validation/{name}", value, step)
        for number, picture in enumerate(pictures):
            self._board.add_image(f"degraded, restored, clean/{number}", picture, step, dataformats="HWC")
        self.flush()

    def flush(self) -> None:
        self._log.flush()
        self._validation.flush()


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a journal's file, by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _match_columns(file: TextIO, columns: list[str]) -> None:
    """Begin anew, with the old rows put into the new columns, if a resumed run measures something else."""
    file.flush()
    rows = read_csv(Path(file.name))
    if rows and list(rows[0]) != columns:
        names = list(dict.fromkeys([*columns, *rows[0]]))
        file.truncate(0)
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _append(file: TextIO, row: dict[str, object]) -> None:
    writer = csv.DictWriter(file, row, lineterminator="\n")
    if file.tell() == 0:
        writer.writeheader()
    writer.writerow(row)


def _drop_rows_after(path: Path, step: int) -> None:
    if path.exists():
        header, *rows = path.read_text().splitlines(True) or [""]
        # A row that was being written when the run was killed has no end, and perhaps no number.
        kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= step]
        with atomic_write(path) as temporary:
            temporary.write_text("".join([header, *kept]))

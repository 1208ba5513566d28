"""A run's books: CSV with a header, TensorBoard with pictures, nothing twice after a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from echoir.journal import Journal, read_csv


def test_rows_of_a_killed_run_come_once(tmp_path: Path) -> None:
    with Journal(tmp_path, 0) as journal:
        for step in range(1, 6):
            journal.trained(step, step * 1.5, 1e-3, {"loss": step / 10})
        journal.validated(5, {"sigma25": 30.0}, [])
    with (tmp_path / "log.csv").open("a") as file:
        file.write("6,9.0,0.0")  # the kill came while this row was written
    with Journal(tmp_path, 3) as journal:
        journal.trained(4, 7.0, 1e-3, {"loss": 0.25})
    rows = read_csv(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[-1] == {"step": "4", "seconds": "7.00", "learning_rate": "0.001", "loss": "0.25"}
    assert read_csv(tmp_path / "validation.csv") == []


def test_tensorboard_reads_figures_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = np.random.default_rng(0).integers(0, 256, (8, 24, 3), dtype=np.uint8)
    with Journal(tmp_path, 0) as journal:
        journal.trained(1, 0.5, 1e-3, {"loss": 0.25, "zeta": -0.5})
        journal.validated(1, {"sigma25": 30.5}, [picture])
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert board.Scalars("train/zeta")[0].value == -0.5
    assert (board.Scalars("validation/sigma25")[0].step, board.Scalars("validation/sigma25")[0].value) == (1, 30.5)
    (tag,) = board.Tags()["images"]
    assert (board.Images(tag)[0].width, board.Images(tag)[0].height) == (24, 8)

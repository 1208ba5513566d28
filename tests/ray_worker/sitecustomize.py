"""In Ray's workers, by PYTHONPATH: pictures take a while, and one whose name says so kills its worker."""

from __future__ import annotations

import os
import signal
import sys
import time

if any(argument.endswith("default_worker.py") for argument in sys.orig_argv):
    from typing import Any

    from echoir.runtime import jobs

    whole = jobs.restore_one

    def restore_one(restorer: Any, job: Any, **settings: Any) -> Any:
        with open(os.environ["RAY_TALLY"], "a") as tally:
            tally.write(f"{job.source.name} {os.getpid()} begun\n")
        time.sleep(float(os.environ.get("RAY_SECONDS", "0")))
        if "kills" in job.source.name:
            os.kill(os.getpid(), signal.SIGKILL)
        left = whole(restorer, job, **settings)
        with open(os.environ["RAY_TALLY"], "a") as tally:
            tally.write(f"{job.source.name} {os.getpid()} done\n")
        return left

    jobs.restore_one = restore_one

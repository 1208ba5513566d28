"""The project's exceptions, each with the exit code its command ends with.

    EchoIRError                    1   never raised itself
    ├── ImageError                 3   an input cannot be read, or an output cannot be written
    │   └── RejectedOutputError    3   the session gave NaN, infinite or constant pixels
    ├── ArtifactError              4   an artifact is broken, or does not match what is needed
    ├── GateError                  5   a parity gate failed
    └── BackendError               6   a library, backend or device is missing
        ├── MissingExtraError      6   ... and pip can install it
        └── ClosedSessionError     6   ... since the session was closed

Exit code 2 is click's own usage error. Messages name the thing and the likely cause.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

L4T_RELEASE = Path("/etc/nv_tegra_release")  # a Jetson's own file


class EchoIRError(Exception):
    """Base of everything this project raises on purpose."""

    exit_code = 1


class ImageError(EchoIRError):
    """An input could not be read or restored, or its output could not be written."""

    exit_code = 3


class RejectedOutputError(ImageError):
    """A session returned pixels that cannot be a restored image."""


class ArtifactError(EchoIRError):
    """An artifact that must not be used: broken, edited, or made for something else.

    Args:
        field: the manifest's field, dotted (``"model.sha256"``), or the file's role.
        found: what is there.
        needed: what would be accepted.
        hint: the likely cause or remedy, one sentence.
    """

    exit_code = 4

    def __init__(self, field: str, found: object, needed: object, hint: str = "") -> None:
        self.field, self.found, self.needed, self.hint = field, found, needed, hint
        super().__init__(f"{field}: found {found}, needed {needed}" + (f"; {hint}" if hint else ""))


class GateError(EchoIRError):
    """The engine strays further from PyTorch than its gate allows."""

    exit_code = 5


class BackendError(EchoIRError):
    """A backend or a device that is asked for is not here."""

    exit_code = 6


class ClosedSessionError(BackendError, ValueError):
    """A session is used after it was closed."""

    def __init__(self) -> None:
        super().__init__("the session is closed; open the artifact again, and use it inside its `with` block")


class MissingExtraError(BackendError):
    """An optional dependency is not installed.

    Args:
        package: the import name that is missing.
        extra: the extra of this project that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{package} is not installed; {remedy(extra)}")


def remedy(extra: str) -> str:
    """What brings an extra here, as the end of an error's sentence.

    pip takes the echoir that is installed and asks no index for it, so its name does for a wheel and a clone alike. In
    a clone that is not installed the name would be looked up, and found nowhere: there it is the clone's path.
    """
    if extra == "tensorrt" and L4T_RELEASE.exists():
        return (
            "it comes with JetPack, never from pip; run: apt install python3-libnvinfer, and make the environment with "
            "/usr/bin/python3 -m venv --system-site-packages"
        )
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution("echoir")
    except PackageNotFoundError:
        return f"run: pip install '{Path(__file__).parent.parent}[{extra}]'"
    return f"run: pip install 'echoir[{extra}]'"


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Import optional packages in here: one that is missing is named with what installs it.

    Raises:
        MissingExtraError: a package that is not this project's could not be found.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "echoir"):
            raise
        raise MissingExtraError(package, extra) from None

"""Whether every extra can be installed by a stranger: resolved from the public index, with no configuration.

    make resolve

Downloads metadata, not packages. One line per extra, one column per Python and architecture: how many packages it
comes to, or `-` with the reason below. Exit code 1 where a combination does not resolve. The JetPack line is for what
pip installs there: TensorRT comes with JetPack, and TensorRT-RTX is not for Jetsons.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# The oldest C library that each is for: torch's wheels, and Ubuntu 22.04 (JetPack 6) for TensorRT-RTX's.
PLATFORMS = {"x86-64": "x86_64-manylinux_2_28", "aarch64": "aarch64-manylinux_2_35"}
NOT_ON_JETPACK = ("dev", "tensorrt", "rtx")
# Their source archives tell what they need only once compiled, and that takes GLib's headers.
METADATA = """
[[dependency-metadata]]
name = "pygobject"
requires-dist = ["pycairo>=1.16"]

[[dependency-metadata]]
name = "pycairo"
requires-dist = []
"""


def resolve(extra: str, constraints: str, python: str, platform: str, settings: Path) -> tuple[int, str]:
    """How many packages the extra comes to, or 0 and the reason."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    options = ["--config-file", settings, "-c", constraints, "--python-version", python, "--python-platform", platform]
    wanted = ["--extra", extra] if extra else []
    command = ["uv", "pip", "compile", "-q", "pyproject.toml", *wanted, *options, "--no-header", "--no-annotate"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return (len(done.stdout.splitlines()), "") if done.returncode == 0 else (0, done.stderr.strip())


def table(extras: list[str], constraints: str, columns: list[tuple[str, str]], settings: Path) -> list[str]:
    """Print one table; return the failures, each with its reason."""
    print(f"\n{constraints}\n{'':12}" + "".join(f"{python + ' ' + name:>14}" for python, name in columns))
    failures = []
    with ThreadPoolExecutor(8) as pool:  # they wait for the index
        cells = {
            (extra, column): pool.submit(resolve, extra, constraints, column[0], PLATFORMS[column[1]], settings)
            for extra in extras
            for column in columns
        }
        for extra in extras:
            found = [cells[extra, column].result() for column in columns]
            print(f"{extra or 'runtime':12}" + "".join(f"{packages or '-':>14}" for packages, _ in found), flush=True)
            for (python, name), (packages, reason) in zip(columns, found, strict=True):
                if not packages:
                    failures.append(f"{constraints}: {extra or 'runtime'}, Python {python}, {name}: {reason}")
    return failures


def main() -> int:
    extras = ["", *tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]]
    everywhere = [(python, name) for name in PLATFORMS for python in PYTHONS]
    jetpack = [extra for extra in extras if extra not in NOT_ON_JETPACK]
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch) / "uv.toml"
        settings.write_text(METADATA)
        failures = table(extras, "constraints.txt", everywhere, settings)
        failures += table(jetpack, "constraints-jetpack6.txt", [("3.10", "aarch64")], settings)
    print("", *failures, sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())

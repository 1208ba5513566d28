"""Whether every extra can be installed by a stranger: resolved from the public index, with no configuration.

    make resolve                        all extras together, one resolution per Python and architecture
    python .ci/resolve.py --each        and each of them alone: a table, some minutes

What resolves together resolves alone, since each extra wants a part of it under the same pins; so CI asks for all at
once. Downloads metadata, not packages. Prints how many packages it comes to, or `-` with the reason below; exit code 1
where something does not resolve. The JetPack line is for what pip installs there: TensorRT comes with JetPack, and
TensorRT-RTX is not for Jetsons.
"""

from __future__ import annotations

import argparse
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
RUNTIME = "runtime"  # what every extra adds to
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


def resolve(extras: list[str], constraints: str, python: str, platform: str, settings: Path) -> tuple[int, str]:
    """How many packages the extras come to, or 0 and the reason."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    options = ["--config-file", settings, "-c", constraints, "--python-version", python, "--python-platform", platform]
    # Without these uv looks for a Python of that version, and fetches one, for every cell of the table.
    options += ["--python", sys.executable, "--no-python-downloads"]
    wanted = [f"--extra={extra}" for extra in extras if extra != RUNTIME]
    command = ["uv", "pip", "compile", "-q", "pyproject.toml", *wanted, *options, "--no-header", "--no-annotate"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return (len(done.stdout.splitlines()), "") if done.returncode == 0 else (0, done.stderr.strip())


def table(lines: dict[str, list[str]], constraints: str, columns: list[tuple[str, str]], settings: Path) -> list[str]:
    """Print one table; return the failures, each with its reason."""
    print(f"\n{constraints}\n{'':12}" + "".join(f"{python + ' ' + name:>14}" for python, name in columns))
    failures = []
    with ThreadPoolExecutor(8) as pool:  # they wait for the index
        cells = {
            (title, column): pool.submit(resolve, extras, constraints, column[0], PLATFORMS[column[1]], settings)
            for title, extras in lines.items()
            for column in columns
        }
        for title in lines:
            found = [cells[title, column].result() for column in columns]
            print(f"{title:12}" + "".join(f"{packages or '-':>14}" for packages, _ in found), flush=True)
            for (python, name), (packages, reason) in zip(columns, found, strict=True):
                if not packages:
                    failures.append(f"{constraints}: {title}, Python {python}, {name}: {reason}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", action="store_true", help="each extra alone as well")
    each = parser.parse_args().each
    extras = [RUNTIME, *tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]]
    failures = []
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch) / "uv.toml"
        settings.write_text(METADATA)
        everywhere = [(python, name) for name in PLATFORMS for python in PYTHONS]
        jetpack = [extra for extra in extras if extra not in NOT_ON_JETPACK]
        for constraints, wanted, columns in (
            ("constraints.txt", extras, everywhere),
            ("constraints-jetpack6.txt", jetpack, [("3.10", "aarch64")]),
        ):
            alone = {extra: [extra] for extra in wanted} if each else {}
            failures += table(alone | {"together": wanted}, constraints, columns, settings)
    print("", *failures, sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())

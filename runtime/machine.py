"""What machine a measurement ran on, and in what state: no figure means much without it."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

UNKNOWN = "unknown"


def usable_cores() -> int:
    """Cores this process may run on: what a thread count of None stands for."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    """Physical cores among those that this process may run on: how many threads the libraries take by themselves."""
    if not hasattr(os, "sched_getaffinity"):
        return usable_cores()
    siblings = {
        _read(Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")) or str(core)
        for core in os.sched_getaffinity(0)
    }
    return max(len(siblings), 1)


def all_cores() -> int:
    """Cores of the machine, whether this process may run on them or not: more threads than these help nobody."""
    return max(os.cpu_count() or 1, usable_cores())


def processor_id(root: Path = Path("/")) -> str:
    """16 hex digits that processors with the same instructions share: what is compiled for one runs on the other."""
    cpuinfo = _read(root / "proc/cpuinfo") or platform.processor()
    lines = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", cpuinfo, re.MULTILINE)
    text = "\n".join([platform.machine(), *dict.fromkeys(lines)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Machine:
    """What a measurement ran on, as far as it can be read; "unknown" where it cannot."""

    device: str
    cpu: str
    cores: int
    clocks_mhz: str
    governor: str
    power_mode: str
    temperature: str
    load: str
    system: str


def describe_machine(root: Path = Path("/")) -> Machine:
    """Read the machine's state now: right after a measurement, clocks are still those of the work.

    Args:
        root: where ``proc``, ``sys``, ``var`` and ``etc`` are; tests pass their own.
    """
    cpuinfo = _read(root / "proc/cpuinfo") or ""
    cpus = root / "sys/devices/system/cpu"
    clocks = [int(text) / 1e3 for text in _read_all(cpus, "cpu[0-9]*/cpufreq/scaling_cur_freq") if text.isdigit()]
    clocks = clocks or [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", cpuinfo, re.MULTILINE)]
    governors = sorted(set(_read_all(cpus, "cpu[0-9]*/cpufreq/scaling_governor")))
    model = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    zones = _read_all(root / "sys/class/thermal", "thermal_zone*/temp")
    degrees = [int(text) / 1e3 for text in zones if text.lstrip("-").isdigit()]
    return Machine(
        device=(_read(root / "proc/device-tree/model") or "").strip("\0") or UNKNOWN,
        cpu=model[1] if model else platform.processor() or UNKNOWN,
        cores=usable_cores(),
        clocks_mhz=f"{min(clocks):.0f} to {max(clocks):.0f}" if clocks else UNKNOWN,
        governor=", ".join(governors) or UNKNOWN,
        power_mode=_power_mode(root),
        temperature=f"{max(degrees):.0f} °C" if degrees else UNKNOWN,
        load=(_read(root / "proc/loadavg") or UNKNOWN).split()[0],
        system=f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
    )


def _power_mode(root: Path) -> str:
    """Jetson's nvpmodel mode by name, else the firmware's platform profile."""
    status = re.search(r"pmode:(\d+)", _read(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return _read(root / "sys/firmware/acpi/platform_profile") or UNKNOWN
    number = int(status[1])
    name = re.search(rf"POWER_MODEL\s+ID={number}\s+NAME=(\S+)", _read(root / "etc/nvpmodel.conf") or "")
    return f"nvpmodel {number}" + (f" ({name[1]})" if name else "")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _read_all(folder: Path, pattern: str) -> list[str]:
    return [text for path in sorted(folder.glob(pattern)) if (text := _read(path))]

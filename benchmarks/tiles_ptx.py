"""Compile runtime/cuda/tiles.cu to runtime/cuda/tiles.ptx with NVRTC; no GPU needed.

pip install nvidia-cuda-nvrtc-cu12==12.1.105
python benchmarks/tiles_ptx.py

NVRTC 12.1 writes PTX 8.1, which every driver from CUDA 12.1 on accepts; JetPack 6 has CUDA 12.2 to 12.6.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
from pathlib import Path

CUDA = Path(__file__).resolve().parents[1] / "runtime" / "cuda"
OPTIONS = [b"--gpu-architecture=compute_75", b"--fmad=false", b"--prec-div=true"]


def compile_ptx(source: bytes, library: str) -> str:
    """PTX of CUDA C++ source."""
    nvrtc = ctypes.CDLL(library)
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"tiles.cu", 0, None, None)
    failed = nvrtc.nvrtcCompileProgram(program, len(OPTIONS), (ctypes.c_char_p * len(OPTIONS))(*OPTIONS))
    kind = b"ProgramLog" if failed else b"PTX"
    getattr(nvrtc, f"nvrtcGet{kind.decode()}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{kind.decode()}")(program, text)
    if failed:
        raise SystemExit(text.value.decode())
    # NVRTC 12.1 adds 40 variables of its own headers, which nothing refers to.
    return "".join(line for line in text.value.decode().splitlines(True) if "2nv6target" not in line)


def main() -> None:
    spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("NVRTC is missing; run: pip install nvidia-cuda-nvrtc-cu12==12.1.105")
    library = next(Path(spec.submodule_search_locations[0]).glob("lib/libnvrtc.so.*"))
    source = (CUDA / "tiles.cu").read_bytes()
    ptx = compile_ptx(source, str(library))
    (CUDA / "tiles.ptx").write_text(f"// tiles.cu, SHA-256 {hashlib.sha256(source).hexdigest()}\n{ptx}")
    print(f"{len(ptx)} bytes")


if __name__ == "__main__":
    main()

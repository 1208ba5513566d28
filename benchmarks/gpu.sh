#!/bin/bash
# Installs this project beside a Python that has PyTorch, without a network, and runs benchmarks/gpu.py there.
#
#     bash benchmarks/gpu.sh [--python PYTHON] [--wheels FOLDER] [--site FOLDER] PART... [OPTIONS]
#     bash benchmarks/gpu.sh --wheels ~/wheels checks timings -o results
#
# PART and OPTIONS are those of gpu.py; "install" alone installs and prints what to set for other commands.
# Without --wheels everything is installed already: pip install -c constraints.txt -e '.[dev,kernel,cuda]', and TensorRT where it can be had.
# With it, FOLDER holds what the machine lacks: wheels, and PyCUDA as one or as source. They go into the site folder
# (/tmp/echoir-site) and leave the machine's own packages alone. A wheel that does not install stops nothing. PyCUDA is
# built in the background where no wheel of it works here; steps that need it wait for that.
set -u
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
python=python3 wheels="" site=/tmp/echoir-site arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --python) python=$2; shift 2 ;;
        --wheels) wheels=$(cd "$2" && pwd) || exit 2; shift 2 ;;
        --site) site=$2; shift 2 ;;
        *) arguments+=("$1"); shift ;;
    esac
done
[ ${#arguments[@]} -gt 0 ] || { sed -n '2,12s/^# \?//p' "$0"; exit 2; }
python=$(command -v "$python") || { echo "no $python"; exit 1; }
building=$site/pycuda.building

add() { # into the site folder, what it needs being there or in the folder too
    "$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-build-isolation \
        --no-compile --no-cache-dir --upgrade --target "$site" "$@"
}
has_driver() { "$python" -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2>/dev/null; }
has_pycuda() { (cd / && "$python" -c 'import pycuda.driver') >/dev/null 2>&1; }
build_pycuda() { # from source: a minute or two of one core
    local source scratch nvcc cuda library
    source=$(ls "$wheels"/pycuda-*.tar.gz 2>/dev/null | head -1)
    [ -n "$source" ] || { echo "no source of PyCUDA in $wheels"; return 1; }
    scratch=$(mktemp -d)
    tar xzf "$source" -C "$scratch" --strip-components=1
    nvcc=$(command -v nvcc || ls /usr/local/cuda*/bin/nvcc 2>/dev/null | head -1)
    cuda=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
    library=$(ldconfig -p | sed -n 's/.*libcuda\.so\.1.* => //p' | head -1)
    mkdir "$scratch/driver" && ln -s "${library:-libcuda.so.1}" "$scratch/driver/libcuda.so" # a driver has no libcuda.so
    cat >"$scratch/siteconf.py" <<EOF
CUDA_ROOT = '$cuda'
CUDA_INC_DIR = ['$cuda/include']
CUDADRV_LIB_DIR = ['$scratch/driver', '$cuda/lib64/stubs']
CUDADRV_LIBNAME = ['cuda']
CUDA_ENABLE_CURAND = False
CUDA_ENABLE_GL = False
USE_SHIPPED_BOOST = True
CXXFLAGS = ['-O1', '-w']
LDFLAGS = []
EOF
    add "$scratch"
    rm -rf "$scratch"
}

if [ -n "$wheels" ] && [ ! -f "$site/.installed" ]; then
    mkdir -p "$site"
    add "$root" >"$site/install.log" 2>&1 || { cat "$site/install.log"; exit 1; }
    add "$wheels"/*.whl || for wheel in "$wheels"/*.whl; do add "$wheel" || echo "$wheel does not install here"; done
    rm -rf "$root/build"
    touch "$site/.installed"
fi
[ -z "$wheels" ] || export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PATH=$site/bin:$PATH
if [ -n "$wheels" ] && has_driver && ! has_pycuda; then
    touch "$building"
    (build_pycuda; rm -f "$building") >"$site/pycuda.log" 2>&1 &
fi
if [ "${arguments[0]}" = install ]; then
    wait
    has_pycuda || echo "PyCUDA does not load here; see $site/pycuda.log"
    echo "export PYTHONPATH=$site PATH=$site/bin:\$PATH"
    exit
fi
"$python" "$root/benchmarks/gpu.py" "${arguments[@]}" --waiting-for "$building"

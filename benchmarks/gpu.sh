#!/bin/bash
# Everything that waits for a GPU, in one command; needs no network. Writes benchmarks/results/.
#
#     pip install -c constraints.txt -e '.[dev,kernel,cuda]'     and TensorRT or TensorRT-RTX, where they can be had
#     bash benchmarks/gpu.sh [PYTHON]
#
# A step whose library is missing is left out and named; the exit code is 1 when a step that ran failed.
set -u
cd "$(dirname "$0")/.." || exit 1
python=$(command -v "${1:-python}") || { echo "no ${1:-python}"; exit 1; }
name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1)
[ -n "$name" ] || name=$(tr -d '\0' 2>/dev/null </proc/device-tree/model) # a Jetson
[ -n "$name" ] || { echo "no NVIDIA GPU here"; exit 1; }
out=$PWD/benchmarks/results/$(echo "$name" | tr -cs '[:alnum:]' '-' | sed 's/-$//' | tr '[:upper:]' '[:lower:]')
mkdir -p "$out"
summary=$out/summary.md
failed=0
{ echo "# $name, $(date -u +%F)"; echo; echo '| step | result | log |'; echo '|---|---|---|'; } >"$summary"

has() { "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }
step() { # name, command...
    local name=$1 start=$SECONDS code
    shift
    echo "== $name: $*"
    (cd "$root" && timeout 1800 "$@") >"$out/$name.log" 2>&1
    code=$?
    tail -5 "$out/$name.log"
    [ $code = 0 ] || failed=1
    echo "| $name | $([ $code = 0 ] && echo "passed: $(tail -1 "$out/$name.log" | tr "|" " ")" || echo "FAILED, exit code $code"), $((SECONDS - start)) s | $name.log |" >>"$summary"
}
left_out() { echo "== $1 left out: $2"; echo "| $1 | left out: $2 | |" >>"$summary"; }

root=$PWD
bin=$(dirname "$python") # its scripts: "-m" would take the folder echoir/ here for the package
{ nvidia-smi; "$python" --version; "$python" -m pip list 2>/dev/null | grep -iE 'torch|triton|tensorrt|pycuda|cuda|numpy|onnx|echoir'; } >"$out/machine.txt" 2>&1

step tests "$bin/pytest" -m gpu -rs
if has triton; then step kernel "$python" benchmarks/kernel.py -o "$out"; else left_out kernel "no triton"; fi
for target in tensorrt tensorrt-rtx; do
    if ! has "${target/-/_}"; then left_out "$target" "not installed"; continue; fi
    if ! has pycuda; then left_out "$target" "no pycuda"; continue; fi
    step "$target" "$python" benchmarks/gpu_engines.py --target "$target" -o "$out/$target.md"
    folder=$(mktemp -d)
    step "$target-export" "$bin/echoir" export --precision fp16 --target "$target" -o "$folder/export"
    engine=$folder/export/denoise-fp16-$target.engine
    if [ -f "$engine" ]; then
        step "$target-parity" "$bin/echoir" parity -m "$engine"
        step "$target-bench" "$bin/echoir" bench -m "$engine" --against pytorch
        # An engine that holds its plugin's code loads where there is neither Python nor this project.
        trtexec=$(command -v trtexec || ls /usr/src/tensorrt/bin/trtexec 2>/dev/null)
        if [ "$target" = tensorrt ] && [ -n "$trtexec" ]; then
            step trtexec-engine "$trtexec" --loadEngine="$engine" --iterations=100
            step trtexec-onnx "$trtexec" --onnx="$folder/export/denoise-fp16.onnx" --stronglyTyped
        elif [ "$target" = tensorrt ]; then
            left_out trtexec "not installed"
        fi
    fi
    rm -rf "$folder"
done
cat "$summary"
exit $failed

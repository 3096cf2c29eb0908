#!/usr/bin/env bash
# Builds the kernels, runs the GPU tests and measures all that can be measured, within eight minutes:
#
#     benchmarks/gpu_check.sh OUT_FOLDER [--no-build] [options of gpu_check.py]
#
# writes OUT_FOLDER/gpu_check-<GPU>.json and prints its table last. It needs this tree and, of the machine, a GPU, a C++
# compiler and a python ($PYTHON, by default python3) with torch 2.11 or later, triton, cmake, ninja, pybind11 and
# pytest; no network. Without nvcc there are no CUDA kernels and Triton's serve; without a GPU every case says so.
# Exit status: 0 where the build, all tests that ran and all checks passed.
set -uo pipefail
if [ $# -lt 1 ]; then
  echo "usage: $0 OUT_FOLDER [--no-build] [options of gpu_check.py]" >&2
  exit 2
fi
started=$(date +%s)
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
python=$(command -v "${PYTHON:-python3}") || { echo "there is no ${PYTHON:-python3}" >&2; exit 2; }
cd "$(dirname "$0")/.." || exit 2
status=0
if [ "${1:-}" = --no-build ]; then
  shift
else
  # tools that pip installed lie beside the interpreter
  export PATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
  build=build/gpu_check
  if timeout 170 bash -c "cmake -S . -B $build -G Ninja -DPython_EXECUTABLE='$python' \
      -DCMAKE_LIBRARY_OUTPUT_DIRECTORY='$PWD/svg_fast' && cmake --build $build" >"$out/build.log" 2>&1; then
    grep "svg_fast:" "$out/build.log"
  else
    echo "the build failed or took longer than 170 s, see $out/build.log:"
    tail -5 "$out/build.log"
    status=1
  fi
fi
PYTHONPATH=$PWD:$PWD/tests "$python" benchmarks/gpu_check.py "$out" --started "$started" "$@" || status=1
exit $status

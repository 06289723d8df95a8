#!/bin/sh
# Installs hotset and what its tests need into build/test-venv, then runs the C++ and the Python tests.
# Arguments go to pytest. The last line is pytest's summary.
set -eu
cd "$(dirname "$0")/.."
. tools/setup_venv.sh
setup_venv build/test-venv doctest-dev
bin=$PWD/build/test-venv/bin
"$PYTHON" -m pip install --quiet --upgrade cmake ninja
"$PYTHON" -m pip install --quiet ".[test]"
"$bin/cmake" -S . -B build/tests -G Ninja -DCMAKE_MAKE_PROGRAM="$bin/ninja" -DCMAKE_BUILD_TYPE=Release \
  -DHOTSET_TESTS=ON -DHOTSET_CUDA=OFF >build/cmake.log || { cat build/cmake.log; exit 1; }
"$bin/cmake" --build build/tests -j "$(nproc)"
"$bin/ctest" --test-dir build/tests -j "$(nproc)" --output-on-failure
HOTSET_BUILD_DIR=$PWD/build/tests PATH=$bin:$PATH "$PYTHON" -m pytest tests/python "$@"

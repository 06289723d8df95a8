#!/bin/sh
# Installs hotset into .venv and lets the packaged model continue a text. Arguments replace those of `hotset run`.
set -eu
cd "$(dirname "$0")/.."
. tools/setup_venv.sh
setup_venv .venv
"$PYTHON" -m pip install --quiet . >&2
[ $# -gt 0 ] || set -- -p "Once upon a time"
exec .venv/bin/hotset run "$@"

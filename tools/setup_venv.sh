# Sourced by tools/quickstart.sh and tests/run.sh: makes sure of a compiler and of Python with venv, then of a virtual
# environment. Usage: setup_venv DIR [extra Debian packages]. Sets PYTHON to the environment's interpreter.

# Installs Debian packages when apt is there; the message says what to do elsewhere.
install_packages() {
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: error: [setup] packages: expected $* to be installed, got no apt-get; install them by hand" >&2
    exit 1
  fi
  as_root=""
  [ "$(id -u)" = 0 ] || as_root="sudo"
  $as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq "$@" >/dev/null
}

setup_venv() {
  environment=$1
  shift
  missing=""
  command -v c++ >/dev/null 2>&1 || missing="$missing g++"
  command -v python3 >/dev/null 2>&1 || missing="$missing python3"
  # Debian splits these off; other Pythons have them built in.
  python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing="$missing python3-venv"
  python3 -c 'import os, sysconfig as s, sys; sys.exit(not os.path.exists(s.get_paths()["include"] + "/Python.h"))' \
    >/dev/null 2>&1 || missing="$missing python3-dev"
  for package in "$@"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
  done
  # shellcheck disable=SC2086
  [ -z "$missing" ] || install_packages $missing
  [ -x "$environment/bin/python" ] || python3 -m venv "$environment"
  PYTHON=$environment/bin/python
}

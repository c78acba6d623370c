#!/bin/sh
# Install offramp into a virtual environment on top of what the base image has. Run in the root of the source tree.
#   sh docker/install.sh /opt/offramp server,gpu [INDEX]
# INDEX has the builds of torch to take where the base image has none.
set -eu
target=$1
extras=$2
index=${3:-}

constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
python3 docker/constraints.py constraints.txt >"$constraints"

# With the base image's pip: Ubuntu's Python makes no environment with a pip of its own without a further package.
python3 -m venv --without-pip --system-site-packages "$target"
install() {
    pip --python "$target/bin/python" install --no-cache-dir --constraint "$constraints" "$@"
}

if [ -n "$index" ] && ! "$target/bin/python" -c 'import importlib.util as u; exit(u.find_spec("torch") is None)'; then
    # By itself: that index has other packages in a few versions only. The ordinary one has builds for CUDA, which are
    # gigabytes larger.
    install --no-deps --index-url "$index" torch
fi
install ".[$extras]"

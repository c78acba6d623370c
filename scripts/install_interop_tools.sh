#!/usr/bin/env bash
# Install what some clients of tests/interop need: C++ gRPC, and h2load (Debian and Ubuntu; needs root or sudo). The tests
# leave out what is not there, so nothing that goes wrong here is an error.
set -uo pipefail

packages=()
command -v h2load > /dev/null || packages+=(nghttp2-client)
if ! { command -v pkg-config && pkg-config --exists grpc++ protobuf && command -v g++; } > /dev/null 2>&1; then
    packages+=(g++ pkg-config libgrpc++-dev libprotobuf-dev)
fi
if [ ${#packages[@]} -eq 0 ]; then
    exit 0
fi
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
if ! command -v apt-get > /dev/null \
    || ! timeout 60 "${as_root[@]}" apt-get update -qq \
    || ! timeout 180 "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${packages[@]}"; then
    echo "not installed: ${packages[*]}; the clients that need them are left out of tests/interop" >&2
fi
exit 0

#!/usr/bin/env bash
# Install Prometheus, which the end-to-end tests let scrape a server (Debian and Ubuntu; needs root or sudo).
set -euo pipefail

if command -v prometheus > /dev/null && command -v promtool > /dev/null; then
    exit 0
fi
if ! command -v apt-get > /dev/null; then
    echo "prometheus and promtool are missing, and there is no apt-get to install them with:" \
        "put both into PATH (https://prometheus.io/download)" >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo > /dev/null; then
        echo "prometheus is missing; installing it needs root or sudo: apt-get install prometheus" >&2
        exit 1
    fi
    as_root=(sudo)
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus

#!/usr/bin/env bash
# Installs PostgreSQL on Debian, for the tests, unless a version that will do is there; no server is left running.
set -euo pipefail

newest=$(find /usr/lib/postgresql -mindepth 3 -maxdepth 3 -name postgres 2>/dev/null | sort -V | tail -n 1)
program=${newest:-$(command -v postgres || true)}
if [[ -n $program ]] && (($("$program" --version | grep -oE '[0-9]+' | head -n 1) >= 15)); then
    echo "PostgreSQL is there: $("$program" --version)"
    exit
fi
if ((EUID != 0)); then
    echo "PostgreSQL 15 or newer is missing; as root: apt-get install postgresql" >&2
    exit 1
fi
# Debian's package would make a database and start a server of its own.
mkdir -p /etc/postgresql-common
echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --no-install-recommends -o Dpkg::Options::=--force-confold postgresql

#!/usr/bin/env bash
# Finds Python 3.11 (the variable PYTHON, else python3.11, else python3) and hands over to setup.py beside it.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
candidates=(python3.11 python3)
[ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
seen=""
for python in "${candidates[@]}"; do
    if version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then
        [ "$version" = 3.11 ] && exec "$python" "$here/setup.py" "$@"
        seen="$seen, $python is $version"
    else
        seen="$seen, $python does not run"
    fi
done
echo "set-up: needs Python 3.11, but ${seen#, }; install it, or name it: make setup PYTHON=/path/to/python3.11" >&2
exit 1

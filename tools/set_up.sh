#!/bin/sh
# Make a virtual environment where there is none, and install a lock into it.
#   sh tools/set_up.sh PYTHON VENV LOCK      PYTHON may be empty: the first of 3.11 to 3.13 that runs is taken
set -eu
python=$1 venv=$2 lock=$3
supported='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

if [ ! -x "$venv/bin/pip" ]; then
    for candidate in ${python:-python3.11 python3.12 python3.13 python3}; do
        if "$candidate" -c "$supported" >/dev/null 2>&1; then found=$candidate; break; fi
    done
    if [ -z "${found:-}" ]; then
        echo "No Python 3.11, 3.12 or 3.13 with venv found (tried: ${python:-python3.11 python3.12 python3.13 python3})." >&2
        echo "Install one (Debian, Ubuntu: apt install python3-venv), or name it: make course PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
    echo "Making $venv with $("$found" --version)"
    "$found" -m venv "$venv"
fi
echo "Installing $lock (the first time: about 400 MB to fetch, 2 GB on disk, one to five minutes)"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r "$lock"

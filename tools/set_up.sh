#!/bin/sh
# Make a virtual environment where there is none, and install a lock into it.
#   sh tools/set_up.sh PYTHON VENV LOCK      PYTHON may be empty: the first of 3.11 to 3.13 that runs is taken
#   sh tools/set_up.sh PYTHON VENV           only say whether VENV was made with another version of Python
# Where there is a folder wheels/, as in the archive of `make offline`, requirements.txt is installed from it alone.
set -eu
python=$1 venv=$2 lock=${3:-}
needed_gb=4 # 3 for the environment, 1 while packages are unpacked
supported='import sys, venv, ensurepip; sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv[1:])'
version='import sys; print("%d.%d" % sys.version_info[:2])'

fail() {
    printf "%s\n" "$@" >&2
    exit 1
}

if [ -n "$python" ] && has=$("$venv/bin/python" -c "$version" 2>/dev/null); then
    wanted=$("$python" -c "$version" 2>/dev/null) || fail "$python does not run."
    [ "$has" = "$wanted" ] || fail "$venv has Python $has, not $wanted: remove it (rm -rf $venv), and run make again."
fi
[ -n "$lock" ] || exit 0

[ -w . ] || fail "Nothing can be written in $(pwd): clone the course into a folder of your own, and run make there."
if [ ! -e "$venv" ]; then
    free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
    [ "$free_kb" -ge $((needed_gb * 1000000)) ] ||
        fail "The disk of $(pwd) has $((free_kb / 1000)) MB free; the set-up needs $needed_gb GB."
fi
versions="3.11 3.12 3.13" targets=
if [ "$lock" = requirements.txt ] && [ -f wheels/targets.txt ]; then # lines of a system and a version of Python
    versions=$(sed 's/.* //' wheels/targets.txt | sort -u | paste -s -d ' ' -)
    targets=$(paste -s -d ',' wheels/targets.txt)
fi
found=
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if [ -n "$python" ]; then set -- "$python"; else set -- python3.11 python3.12 python3.13 python3; fi
    for candidate; do
        # shellcheck disable=SC2086
        if "$candidate" -c "$supported" $versions >/dev/null 2>&1; then found=$candidate; break; fi
    done
    [ -n "$found" ] || fail \
        "No Python with venv found of a version in $versions (tried: $*)." \
        ${targets:+"The packages in wheels/ are for $targets."} \
        "Install one (Debian, Ubuntu: apt install python3-venv), or name it: make course PYTHON=/path/to/python3.12"
fi

# One at a time: two would write the same packages.
mkdir -p "$venv"
holder=$venv/set-up.pid
if ! (set -C && echo $$ >"$holder") 2>/dev/null; then
    pid=$(cat "$holder" 2>/dev/null) || pid=
    if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then
        fail "Process $pid is setting up $venv already: wait for it, and run make again."
    fi
    echo $$ >"$holder" # that one was killed
fi
trap 'rm -f "$holder"' EXIT
trap 'exit 130' HUP INT TERM

if [ -n "$found" ]; then
    echo "Making $venv with $("$found" --version)"
    "$found" -m venv "$venv"
fi
set -- -m pip install --quiet --disable-pip-version-check -r "$lock"
if [ -n "$targets" ]; then
    echo "Installing $lock from wheels/, without a network (3 GB on disk, one to five minutes)"
    "$venv/bin/python" "$@" --no-index --find-links wheels || fail \
        "The packages in wheels/ are for $targets; this is $(uname -sm), $("$venv/bin/python" --version)." \
        "If that fits, a file is missing or damaged: unpack the archive again, and run make again." \
        "With a network, remove that folder (rm -r wheels), and run make again."
else
    echo "Installing $lock (the first time: up to 800 MB to fetch, 3 GB on disk, one to five minutes)"
    "$venv/bin/python" "$@"
fi

#!/bin/sh
# Prepare this machine and .venv for a make target; immediate when nothing is missing.
#
#   tools/prepare.sh run     what `lvsha` and its drill need
#   tools/prepare.sh test    that, and what the test suite, the linters and the bench need
#   tools/prepare.sh interop that, keepalived, and what a guest with a kernel of its own needs
#
# As root on Debian it installs missing packages with apt-get. Otherwise it says in one
# sentence which are missing. Nothing is written outside .venv but by apt-get.
set -eu

purpose=${1:-run}
# Of Python packages there are two sets.
packages=$purpose
[ "$purpose" = interop ] && packages=test
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

# Pairs of a program and the Debian package that holds it.
programs="nft:nftables ip:iproute2 unshare:util-linux nsenter:util-linux mount:mount"
# Some tests use more and skip where it is missing.
optional=""
if [ "$purpose" != run ]; then
    optional="keepalived:keepalived sysctl:procps ethtool:ethtool"
fi
if [ "$purpose" = interop ]; then
    programs="$programs keepalived:keepalived sysctl:procps"
    optional="ethtool:ethtool linux.uml:user-mode-linux ipvsadm:ipvsadm modprobe:kmod"
fi

say() {
    printf 'prepare: %s\n' "$*" >&2
}

give_up() {
    say "$*"
    exit 3
}

# The first Python that is new enough and can make a virtual environment with pip.
find_python() {
    for candidate in python3 python3.15 python3.14 python3.13 python3.12 python3.11; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
            "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# The packages of those pairs whose program is not there.
missing_of() {
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || printf '%s\n' "${pair##*:}"
    done | sort -u | tr '\n' ' '
}

install_packages() {
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet --quiet || say "apt-get update failed; going on with the old lists"
    apt-get install --yes --quiet --quiet --no-install-recommends "$@" >/dev/null
}

is_up_to_date() {
    [ -x .venv/bin/python ] && [ -r .venv/prepared ] &&
        [ "$(cat .venv/prepared)" = "$(fingerprint "$packages")" ] && return 0
    # What was prepared for the tests serves to run as well.
    [ "$packages" = run ] && [ -x .venv/bin/python ] && [ -r .venv/prepared ] &&
        [ "$(cat .venv/prepared)" = "$(fingerprint test)" ]
}

# A virtual environment holds absolute paths, so a tree that was copied or moved starts anew.
fingerprint() {
    printf '%s %s %s\n' "$1" "$(cat pyproject.toml lvsha/__init__.py tools/prepare.sh | cksum)" "$PWD"
}

# shellcheck disable=SC2086  # lists of words
needed=$(missing_of $programs)
# shellcheck disable=SC2086
wanted=$(missing_of $optional)
if ! is_up_to_date && ! find_python >/dev/null; then
    needed="${needed}python3 python3-venv "
fi

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    # shellcheck disable=SC2086
    if [ -n "$needed" ] && ! install_packages $needed; then
        give_up "apt-get could not install: $needed"
    fi
    # shellcheck disable=SC2086
    if [ -n "$wanted" ]; then
        install_packages $wanted || say "going on without: $wanted"
    fi
    # Debian enables the daemon when it installs it. It would start only with a
    # configuration of its own, but a test suite should not leave one enabled at all.
    case " $needed$wanted" in
    *" keepalived "*)
        if [ -d /run/systemd/system ]; then
            systemctl --quiet disable --now keepalived || true
        fi
        ;;
    esac
elif [ -n "$needed" ]; then
    give_up "these packages are missing; install them as root with: apt-get install ${needed% }"
fi

is_up_to_date && exit 0

python=$(find_python) ||
    give_up "Python 3.11 or newer with the venv module is needed; this system's packages have none"
say "making .venv with $python (a minute or two the first time)"
pip() {
    .venv/bin/python -m pip --quiet --quiet --disable-pip-version-check "$@" ||
        give_up "pip could not install what is needed; its message is above"
}
rm -f .venv/prepared
"$python" -m venv --clear .venv
pip install --upgrade "pip>=25.1"
if [ "$packages" = test ]; then
    pip install --editable . --group test --group lint
else
    pip install --editable .
fi
fingerprint "$packages" >.venv/prepared
say "ready"

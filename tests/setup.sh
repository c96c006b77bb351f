#!/bin/sh
# Installs what the tests need from Debian's packages. Does nothing where all of it is there.
set -eu

packages="
    bsdutils build-essential ca-certificates chromium curl dante-client default-jdk-headless dnsmasq-base
    fail2ban file iproute2 libcrypt-dev libio-socket-socks-perl man-db mandoc ncat
    netcat-openbsd oidentd openssh-client openssh-server openssl procps prometheus proxychains4
    python3 python3-pyftpdlib python3-python-socks python3-socks socat tnftp tshark util-linux whois
"

missing=
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' \
        || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=
[ "$(id -u)" -eq 0 ] || as_root=sudo
export DEBIAN_FRONTEND=noninteractive
# No daemon is to start: the tests run what they need, and want its port.
policy=/usr/sbin/policy-rc.d
if ! [ -e "$policy" ]; then
    trap '$as_root rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi
$as_root apt-get -qq update
# shellcheck disable=SC2086 # a list of words
$as_root apt-get -qq install -y --no-install-recommends -o DPkg::Lock::Timeout=300 $missing

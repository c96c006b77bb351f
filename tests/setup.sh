#!/bin/sh
# Installs what the tests need: Debian's packages, and one from PyPI. Does nothing where all of it is
# there.
set -eu
cd "$(dirname "$0")/.."

packages="
    bsdutils build-essential ca-certificates chromium curl dante-client default-jdk-headless
    dnsmasq-base fail2ban file haproxy iproute2 ipsvd libbsd0 libcrypt-dev libevent-2.1-7
    libio-socket-socks-perl libtirpc3 libwrap0 man-db mandoc ncat netbase netcat-openbsd oidentd
    openssh-client openssh-server openssl procps prometheus proxychains4 python3 python3-pip
    python3-pyftpdlib python3-python-socks python3-socks s6 socat strace stunnel4 systemd tnftp
    tshark ucspi-tcp ucspi-unix util-linux whois
"

# These exclude each other, and would be started and write to /etc: they are only unpacked, below
# the directory that cargo builds in. What they need is among the packages above.
unpacked="inetutils-inetd openbsd-inetd xinetd"
wrappers=${CARGO_TARGET_DIR:-target}/wrappers

# As strict a parser of logfmt as go-logfmt, which Debian has for a compiler of 80 MB only.
parser="logfmtkv==0.2.1
    --hash=sha256:af4d50462eb05697f61c2563ad001f21c3542073ddb3aeedd0e2c955b6f448e9"
logfmt=${CARGO_TARGET_DIR:-target}/logfmt

missing=
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' \
        || missing="$missing $package"
done
wanted=
for package in $unpacked; do
    [ -d "$wrappers/$package" ] || wanted="$wanted $package"
done
[ -n "$missing$wanted" ] || ! [ -d "$logfmt" ] || exit 0

as_root=
[ "$(id -u)" -eq 0 ] || as_root=sudo
export DEBIAN_FRONTEND=noninteractive
policy=
new=
trap '[ -z "$policy" ] || $as_root rm -f "$policy"; [ -z "$new" ] || rm -rf "$new"' EXIT
# No daemon is to start: the tests run what they need, and want its port.
if [ -n "$missing" ] && ! [ -e /usr/sbin/policy-rc.d ]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi
[ -z "$missing$wanted" ] || $as_root apt-get -qq update
# A crash in between would leave files to be installed anew, and syncing each takes long.
# shellcheck disable=SC2086 # a list of words
[ -z "$missing" ] || $as_root apt-get -qq install -y --no-install-recommends \
    -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-unsafe-io $missing

if ! [ -d "$logfmt" ]; then
    mkdir -p "${logfmt%/*}"
    new=$(mktemp -d "$logfmt.XXXXXX")
    # shellcheck disable=SC2086 # one line of them
    echo $parser >"$new/requirements"
    /usr/bin/python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore \
        --no-deps --require-hashes --target "$new" -r "$new/requirements"
    mv -T "$new" "$logfmt" || [ -d "$logfmt" ]
fi

[ -n "$wanted" ] || exit 0
mkdir -p "$wrappers"
# Whoever is there in the end was unpacked whole.
new=$(mktemp -d "$wrappers/new.XXXXXX")
for package in $wanted; do
    # What is downloaded as root is checked against the signed lists all the same.
    (cd "$new" && apt-get -qq -o APT::Sandbox::User=root download "$package")
    dpkg -x "$new/$package"_*.deb "$new/$package"
    chmod 755 "$new/$package"
    mv -T "$new/$package" "$wrappers/$package" || [ -d "$wrappers/$package" ]
done

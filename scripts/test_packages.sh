#!/bin/sh
# Install the Debian packages that some tests need, where this runs as root on Debian or Ubuntu. Elsewhere it
# does nothing: those tests then skip and name the package. No service is started, now or at the next boot.
set -eu

missing=""
command -v redis-server >/dev/null || missing="$missing redis-server"
command -v prometheus >/dev/null || missing="$missing prometheus"
command -v chromium >/dev/null || missing="$missing chromium"
command -v wrk >/dev/null || missing="$missing wrk"
command -v faketime >/dev/null || missing="$missing faketime"
command -v nginx >/dev/null || missing="$missing nginx"

[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || exit 0
[ "$(id -u)" = 0 ] || exit 0

# Debian's maintainer scripts ask this file whether they may start a service; 101 says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

log=$(mktemp)
echo "Installing from apt for the tests:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >"$log" 2>&1 || true
for package in $missing; do
    if ! apt-get install -y -qq --no-install-recommends "$package" >>"$log" 2>&1; then
        echo "could not install $package; the tests that need it will say so (log: $log)" >&2
        continue
    fi
    if [ -d /run/systemd/system ] && [ "$package" != chromium ] && [ "$package" != wrk ] && [ "$package" != faketime ]; then
        systemctl disable --quiet "$package" 2>>"$log" || true
    fi
done

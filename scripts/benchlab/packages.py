"""PostgreSQL 17, pgBackRest and nginx as Debian trixie packages them, made to run in place on an older Debian.

No chroot and no change to the system: apt, told to use folders of its own, fetches the packages and all they depend
on; they are unpacked into one folder, and interpreter and library path of their programs are set to that folder."""

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

from . import machine
from .machine import WORK, BenchError, run, say

ROOT = WORK / "trixie"
LIBRARIES = ROOT / "usr/lib/x86_64-linux-gnu"
LOADER = LIBRARIES / "ld-linux-x86-64.so.2"
PGBIN = ROOT / "usr/lib/postgresql/17/bin"
PGBACKREST = ROOT / "usr/bin/pgbackrest"
ZSTD = ROOT / "usr/bin/zstd"
NGINX = ROOT / "usr/sbin/nginx"
OPENSSL = ROOT / "usr/bin/openssl"
PATCHELF = ROOT / "usr/bin/patchelf"
WANTED = ["postgresql-17", "pgbackrest", "nginx", "patchelf", "zstd", "openssl"]
PROGRAMS = [PGBACKREST, ZSTD, NGINX, OPENSSL]
S3S_FS_VERSION = "0.14.1"
S3S_FS = WORK / "s3s/bin/s3s-fs"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def debian_mirror():
    """The archive this machine's own apt uses for Debian: its configuration is the only place that knows."""
    for source in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if not source.is_file():
            continue
        text = source.read_text(errors="replace")
        if source.suffix == ".sources":
            found = re.findall(r"^URIs:\s*(\S+)", text, re.M)
        else:
            found = re.findall(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+\S+\s+.*\bmain\b", text, re.M)
        for uri in found if source.suffix in (".sources", ".list") else []:
            if uri.rstrip("/").endswith("/debian"):
                return uri
    raise BenchError("no Debian archive in /etc/apt/sources.list or /etc/apt/sources.list.d: the bench needs one")


def is_dynamic_program(path):
    """Whether a file is an x86-64 ELF program with an interpreter (ELF: PT_INTERP is 3)."""
    with open(path, "rb") as handle:
        head = handle.read(64)
        if len(head) < 64 or head[:5] != b"\x7fELF\x02":
            return False
        at, = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        for n in range(count):
            handle.seek(at + n * size)
            if struct.unpack("<I", handle.read(4))[0] == 3:
                return True
    return False


def install_trixie():
    if (ROOT / "complete").exists():
        return
    say("fetching PostgreSQL 17, pgBackRest and nginx from Debian trixie")
    apt = WORK / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "status").write_text("")
    (apt / "trixie.sources").write_text(
        f"Types: deb\nURIs: {debian_mirror()}\nSuites: trixie\nComponents: main\nSigned-By: {KEYRING}\n")
    options = [f"-oDir::State::lists={apt}/lists", f"-oDir::State::status={apt}/status", f"-oDir::Cache={apt}/cache",
               f"-oDir::Etc::sourcelist={apt}/trixie.sources", "-oDir::Etc::sourceparts=/dev/null",
               "-oDir::Etc::preferencesparts=/dev/null", "-oAPT::Sandbox::User=root"]
    run(["apt-get", *options, "update", "-qq"], root=True, log="install.log")
    run(["apt-get", *options, "install", "-y", "--no-install-recommends", "--download-only", *WANTED],
        root=True, log="install.log")
    machine.remove(ROOT)
    ROOT.mkdir()
    # A merged /usr, as Debian has had it for years: some packages still carry files below /lib.
    for name in ("bin", "sbin", "lib", "lib64"):
        (ROOT / "usr" / name).mkdir(parents=True)
        (ROOT / name).symlink_to(f"usr/{name}")
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        tar = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
        run(["tar", "-x", "--keep-directory-symlink", "-C", ROOT], root=True, stdin=tar.stdout)
        if tar.wait():
            raise BenchError(f"could not unpack {package.name}")
    for program in [*PROGRAMS, *sorted(PGBIN.iterdir())]:
        if program.is_file() and not program.is_symlink() and is_dynamic_program(program):
            # patchelf itself is not patched yet: the loader starts it.
            run([LOADER, "--library-path", LIBRARIES, PATCHELF, "--set-interpreter", LOADER,
                 "--force-rpath", "--set-rpath", LIBRARIES, program], root=True)
    for program in (PGBIN / "postgres", PGBACKREST, NGINX):
        run([program, "-v" if program == NGINX else "--version" if program != PGBACKREST else "version"])
    (ROOT / "complete").write_text("")


def install_s3s_fs():
    if S3S_FS.exists():
        return
    cargo = shutil.which("cargo") or BenchError("no cargo in PATH: it is needed for the S3 server")
    if isinstance(cargo, BenchError):
        raise cargo
    say(f"building the S3 server s3s-fs {S3S_FS_VERSION} (some minutes)")
    run([cargo, "install", "s3s-fs", "--version", S3S_FS_VERSION, "--features", "binary", "--locked",
         "--root", WORK / "s3s"], root=True, env=dict(os.environ), log="install.log")


def versions():
    """One line a tool, for the report."""
    server = run([PGBIN / "postgres", "--version"])
    return {"PostgreSQL": re.search(r"PostgreSQL\) ([\d.]+)", server).group(1), "pgBackRest": run([PGBACKREST, "version"]).split()[-1],
            "zstd": re.search(r"v([\d.]+)", run([ZSTD, "--version"])).group(1)}

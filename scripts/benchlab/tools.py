"""The tools compared. Each knows how to get ready outside the clock, and the two commands that are measured."""

import shlex
import shutil

from . import bucket, packages, servers
from .machine import PROJECT, WORK, BenchError, environment, folder, remove, run
from .servers import PRIMARY, SOCKETS, STANDBY, program, server_environment

REPOSITORIES, RESTORED = WORK / "repo", WORK / "restored"
LEVEL, PROCESSES = 3, 2
LEEWARD = WORK / "bin/leeward"


def s3_environment():
    """How Leeward finds the bucket."""
    return {"AWS_ACCESS_KEY_ID": bucket.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": bucket.SECRET_KEY, "AWS_REGION": bucket.REGION,
            "AWS_ENDPOINT_URL": bucket.ENDPOINT, "AWS_CA_BUNDLE": str(bucket.AUTHORITY)}


def pgbackrest_s3(path):
    """How pgBackRest finds it: lines of its configuration."""
    return ["repo1-type=s3", f"repo1-path={path}", f"repo1-s3-bucket={bucket.BUCKET}", "repo1-s3-endpoint=127.0.0.1",
            f"repo1-storage-port={bucket.TLS_PORT}", f"repo1-storage-ca-file={bucket.AUTHORITY}", "repo1-s3-uri-style=path",
            f"repo1-s3-region={bucket.REGION}", f"repo1-s3-key={bucket.ACCESS_KEY}", f"repo1-s3-key-secret={bucket.SECRET_KEY}"]


class Tool:
    """`sync_*`: what the tool leaves in the page cache counts as its own time, because it does not write it out itself."""

    key = title = ""
    sync_backup = sync_restore = False

    def __init__(self, store="local"):
        self.store = store
        # The S3 server does not fsync: for every tool alike, the clock runs until its files are on the device.
        if store == "s3":
            self.sync_backup = True
        self.repository = folder(REPOSITORIES) / self.key
        self.target = folder(RESTORED) / self.key

    def label(self, verb):
        return f"{self.key}/{self.store}/{verb}"

    def stored(self):
        return [bucket.ROOT / bucket.BUCKET] if self.store == "s3" else [self.repository]

    def once(self):
        """Before the first round."""

    def before_backup(self):
        """Before each backup, outside the clock."""

    def before_restore(self):
        remove(self.target)

    def environment(self):
        return server_environment()

    def after_restore(self):
        """Before the restored copy is started."""


class Leeward(Tool):
    key, title = "leeward", "leeward"

    def url(self):
        return f"s3://{bucket.BUCKET}/leeward" if self.store == "s3" else str(self.repository)

    def environment(self):
        # Neither PGHOST nor a password: the server of a data directory is found by its postmaster.pid.
        env = environment(PGUSER=servers.ROLE)
        return env | (s3_environment() if self.store == "s3" else {})

    def before_backup(self):
        remove(bucket.ROOT / bucket.BUCKET / "leeward" if self.store == "s3" else self.repository)

    def backup(self):
        return [LEEWARD, "backup", "--pgdata", STANDBY, "--repository", self.url()]

    def restore(self):
        return [LEEWARD, "restore", "latest", "--to", self.target, "--repository", self.url()]


class PgBackRest(Tool):
    key, title = "pgbackrest", f"pgBackRest, zst:{LEVEL}, {PROCESSES} processes, bundle + block"

    def __init__(self, store="local"):
        super().__init__(store)
        self.configuration = WORK / f"pgbackrest-{store}.conf"

    def command(self, *arguments):
        return [packages.PGBACKREST, f"--config={self.configuration}", "--stanza=main", *arguments]

    def once(self):
        state = {name: folder(WORK / "pgbackrest" / self.store / name) for name in ("log", "lock", "spool")}
        remove(self.repository)
        folder(self.repository)
        where = [f"repo1-path={self.repository}"]
        if self.store == "s3":
            where = pgbackrest_s3("/pgbackrest")
        self.configuration.write_text("\n".join([
            "[global]", *where, "repo1-bundle=y", "repo1-block=y", "repo1-retention-full=1", "expire-auto=n",
            "log-level-console=warn", "log-level-file=off", f"log-path={state['log']}", f"lock-path={state['lock']}",
            f"spool-path={state['spool']}", f"process-max={PROCESSES}", "compress-type=zst", f"compress-level={LEVEL}",
            "start-fast=y", "backup-standby=y", "archive-timeout=60",
            # The primary is reached through the relay that counts bytes; the standby directly.
            "[main]", f"pg1-path={PRIMARY}", f"pg1-port={servers.PRIMARY_PORT}", f"pg1-socket-path={servers.TAPPED}",
            "pg1-user=postgres", f"pg2-path={STANDBY}", f"pg2-port={servers.STANDBY_PORT}",
            f"pg2-socket-path={SOCKETS}", "pg2-user=postgres", ""]))
        run(self.command("stanza-create"), log="pgbackrest.log")
        servers.archive_with(shlex.join(map(str, self.command("archive-push"))) + " %p")
        run(self.command("check"), log="pgbackrest.log")

    def backup(self):
        return self.command("--type=full", "backup")

    def before_backup(self):
        # All but the newest backup and its WAL go, outside the clock: every tool then writes into an empty place.
        run(self.command("expire"), log="pgbackrest.log", check=False)

    def before_restore(self):
        super().before_restore()
        folder(self.target, 0o700)

    def restore(self):
        return self.command(f"--pg1-path={self.target}", "--type=immediate", "--target-action=promote", "restore")


class PgBaseBackup(Tool):
    key, title = "pg_basebackup", f"pg_basebackup -Ft, server-zstd:{LEVEL}, workers={PROCESSES}"
    # pg_basebackup syncs what it writes; tar does not.
    sync_restore = True

    def before_backup(self):
        remove(self.repository)

    def backup(self):
        return [program("pg_basebackup"), "-p", servers.STANDBY_PORT, "-D", self.repository, "-F", "t", "-X", "stream",
                "-c", "fast", "-Z", f"server-zstd:level={LEVEL},workers={PROCESSES}"]

    def restore(self):
        there, here = shlex.quote(str(self.target)), shlex.quote(str(self.repository))
        return ["bash", "-c", f"set -eo pipefail; mkdir -m 700 {there};"
                f" {packages.ZSTD} -dc -T{PROCESSES} {here}/base.tar.zst | tar -x -C {there};"
                f" tar -x -C {there}/pg_wal -f {here}/pg_wal.tar"]

    def after_restore(self):
        # Taken from a standby, the copy would follow the primary again; this bench wants it opened for writes.
        (self.target / "standby.signal").unlink(missing_ok=True)


def install_leeward(binary=None):
    """A copy of the program under test: a build that goes on meanwhile does not change what is measured."""
    source = binary or PROJECT / "target/release/leeward"
    if not source.exists():
        raise BenchError(f"no {source}: build it with cargo build --release")
    folder(LEEWARD.parent)
    shutil.copy(source, LEEWARD)
    LEEWARD.chmod(0o755)


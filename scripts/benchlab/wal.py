"""WAL in and out, side by side: the same segments offered as the archiver does, and replayed by a real recovery."""

import os
import shlex
import statistics
import time

from . import archiver, bucket, packages, servers, tools, walsource
from .machine import BenchError, drop_caches, environment, folder, remove, run, say, tree_size
from .walsource import BASE, HOME, SEGMENTS

STAND_IN, RECOVERED, ARCHIVES, STATE = HOME / "stand-in", HOME / "recovered", HOME / "archive", HOME / "state"
RECOVERED_PORT = 54331
# Of the segments that are offered one at a time: enough for a median.
STEADY = 20


class Contender:
    """One program and its setting: the commands a server is given, and where they leave things."""

    key = title = ""
    # Some only push, some only read back; `archive_of` names whose archive is read.
    pushes = gets = True
    archive_of = None

    def __init__(self, store):
        self.store = store
        self.archive = (bucket.ROOT / bucket.BUCKET if store == "s3" else ARCHIVES) / (self.archive_of or self.key)
        self.state = STATE / self.key

    def environment(self):
        return environment()

    def forget(self):
        """No memory of an earlier run; the archive stays."""
        remove(self.state)
        folder(STATE), folder(self.state)

    def before_push(self):
        self.forget()
        remove(self.archive)
        folder(self.archive.parent), folder(self.archive)

    def before_get(self, segments):
        """RECOVERED is the base directory, its `pg_wal` empty."""
        self.forget()


class Copy(Contender):
    key, title = "cp", "cp, fsync, rename: not compressed"

    def push(self):
        there = shlex.quote(str(self.archive))
        return f"cp %p {there}/%f.new && sync {there}/%f.new && mv {there}/%f.new {there}/%f && sync {there}"

    def get(self):
        return f"cp {shlex.quote(str(self.archive))}/%f %p"


class Local(Contender):
    """No archive at all: recovery reads what lies in its own `pg_wal`."""

    key, title, pushes = "local", "none: all of it in pg_wal", False

    def before_get(self, segments):
        super().before_get(segments)
        run(["cp", "-t", RECOVERED / "pg_wal", *(SEGMENTS / name for name in segments)])

    def get(self):
        return "false"


class PgBackRest(Contender):
    level, processes, queue_mib = 3, 2, None

    def command(self, verb, *options):
        configuration = self.state / "pgbackrest.conf"
        return shlex.join(map(str, [packages.PGBACKREST, f"--config={configuration}", "--stanza=main", *options, verb]))

    def configure(self, data):
        state = {name: folder(self.state / name) for name in ("log", "lock", "spool")}
        where = tools.pgbackrest_s3(f"/{self.archive.name}") if self.store == "s3" else [f"repo1-path={self.archive}"]
        (self.state / "pgbackrest.conf").write_text("\n".join([
            "[global]", *where, "log-level-console=warn", "log-level-file=off", f"log-path={state['log']}",
            f"lock-path={state['lock']}", f"spool-path={state['spool']}", f"process-max={self.processes}", "archive-async=y",
            "compress-type=zst", f"compress-level={self.level}",
            *([f"archive-get-queue-max={self.queue_mib}MiB"] if self.queue_mib else []),
            "[main]", f"pg1-path={data}", ""]))

    def before_push(self):
        super().before_push()
        self.configure(STAND_IN)
        run(["/bin/sh", "-c", self.command("stanza-create", "--no-online")], log="wal-pgbackrest.log")

    def before_get(self, segments):
        super().before_get(segments)
        self.configure(RECOVERED)

    def push(self):
        return self.command("archive-push") + " %p"

    def get(self):
        return self.command("archive-get") + " %f %p"


class PgBackRest3(PgBackRest):
    key, title = "pgbackrest-3", "pgBackRest, async, 2 processes, zst:3"


class PgBackRest1(PgBackRest):
    key, title, level = "pgbackrest-1", "pgBackRest, async, 2 processes, zst:1", 1


class PgBackRestTuned(PgBackRest):
    key, title = "pgbackrest-tuned", "pgBackRest, the same zst:3, archive-get-queue-max = 1 GiB"
    pushes, archive_of, queue_mib = False, "pgbackrest-3", 1024


class Leeward(Contender):
    key, title, options = "leeward", "leeward", ()

    def environment(self):
        return environment(**(tools.s3_environment() if self.store == "s3" else {}))

    def command(self, *arguments):
        url = f"s3://{bucket.BUCKET}/{self.archive.name}" if self.store == "s3" else self.archive
        return shlex.join(map(str, [tools.LEEWARD, "wal", *arguments, "--repository", url, "--cluster", "main", *self.options]))

    def push(self):
        return self.command("push") + " %p"

    def get(self):
        return self.command("get") + " %f %p"


EVERY = (Local, Copy, PgBackRest3, PgBackRest1, PgBackRestTuned, Leeward)


def stand_in(segments):
    """A data directory at rest with these segments in its `pg_wal`, all of them in the page cache as fresh WAL is."""
    remove(STAND_IN)
    run(["cp", "-a", BASE, STAND_IN])
    for name in segments:
        os.link(SEGMENTS / name, STAND_IN / "pg_wal" / name)
    drop_caches()
    for name in segments:
        with open(SEGMENTS / name, "rb", buffering=0) as handle:
            while handle.read(1 << 20):
                pass


def push(tool, segments, one_at_a_time):
    stand_in(segments)
    tool.before_push()
    before = tree_size([tool.archive])[0]
    row = archiver.apart(lambda: archiver.archive(STAND_IN, segments, tool.push(), tool.environment(),
                                                  f"wal-{tool.key}.log", one_at_a_time))
    began = time.monotonic()
    os.sync()
    row["sync_s"] = time.monotonic() - began
    latencies = sorted(row.pop("latencies_ms"))
    return row | {"median_ms": statistics.median(latencies), "p95_ms": latencies[int(len(latencies) * 0.95)], "most_ms": latencies[-1],
                  "per_s": len(segments) / row["wall_s"], "stored_mib": (tree_size([tool.archive])[0] - before) / 2**20}


def get(tool, segments, compare):
    remove(RECOVERED)
    run(["cp", "-a", BASE, RECOVERED])
    tool.before_get(segments)
    restore_command = tool.get().replace("'", "''")
    (RECOVERED / "recovery.signal").touch()
    with open(RECOVERED / "postgresql.auto.conf", "a") as conf:
        conf.write(f"port = {RECOVERED_PORT}\nrestore_command = '{restore_command}'\n")
    run(["chown", "-R", "--reference", BASE, RECOVERED], root=True)
    drop_caches()

    def contents():
        return servers.sql(RECOVERED_PORT, "\\connect application", "select count(*), sum(abalance) from pgbench_accounts",
                           "select count(*) from pgbench_history")

    row = archiver.apart(lambda: archiver.recover(servers.program("postgres"), RECOVERED, tool.environment(),
                                                  f"wal-recovery-{tool.key}.log", contents if compare else lambda: None))
    remove(RECOVERED)
    return row | {"per_s": len(segments) / row["wall_s"]}


def rounds(store, wanted, count, segment_count, keep):
    """All of it, `count` times, every contender in turn; `keep` is called with all rows after each round."""
    walsource.create()
    rows = []
    segments = walsource.names(segment_count)
    s3 = bucket.Bucket() if store == "s3" else None
    try:
        contenders = [kind(store) for kind in wanted if store == "local" or kind not in (Local, Copy)]
        ends = {}
        for turn in range(count):
            say(f"WAL, {store}: round {turn + 1} of {count}, {len(segments)} segments")
            # Each round begins with another one, so that none always follows the same one.
            shift = turn % len(contenders)
            order = contenders[shift:] + contenders[:shift]
            for what, least in (("steady", "pushes"), ("push", "pushes"), ("get", "gets")):
                for tool in order:
                    if not getattr(tool, least):
                        continue
                    if what == "get":
                        row = get(tool, segments, turn == 0)
                        ends.setdefault(turn == 0, {})[tool.key] = (row["redo_done_at"], row.pop("contents"))
                        say(f"get    {tool.key:18} {row['wall_s']:7.2f} s  CPU {row['cpu_tool_s']:6.2f} s")
                    else:
                        row = push(tool, segments[:STEADY] if what == "steady" else segments, what == "steady")
                        say(f"{what:6} {tool.key:18} {row['wall_s']:7.2f} s  CPU {row['cpu_tool_s']:6.2f} s  {row['median_ms']:.1f}"
                            f" ({row['p95_ms']:.1f}) ms  stored {row['stored_mib']:.0f} MiB  others {row['cpu_other_s']:.1f} s")
                    rows.append({"tool": tool.key, "store": store, "what": what, "segments": len(segments)} | row)
            for found in ends.values():
                if len(set(found.values())) > 1:
                    raise BenchError(f"recoveries ended differently: {found}")
            keep(rows)
    finally:
        if s3:
            s3.close()
    remove(STAND_IN, STATE, ARCHIVES)

"""Real WAL for the comparison: whole segments of one server's life, and the base directory from which they replay."""

import os

from . import servers
from .machine import WORK, BenchError, environment, folder, remove, run, say
from .servers import program

HOME = WORK / "wal"
BASE, SEGMENTS, SOURCE = HOME / "base", HOME / "segments", HOME / "source"
PORT = 54321
COUNT, SEGMENT_MIB = 200, 16
LOAD_SCALE, OLTP_SCALE, FILLFACTOR, SMALL_TABLES = 60, 20, 90, 1000
RANDOM_MIB, TEXT_MIB = 300, 300
OLTP_CLIENTS, OLTP_SECONDS = 4, 10

CONFIGURATION = f"""
listen_addresses = ''
port = {PORT}
unix_socket_directories = '{servers.SOCKETS}'
shared_buffers = 512MB
wal_level = replica
log_line_prefix = '%m [%p] '
log_checkpoints = on
timezone = 'UTC'
log_timezone = 'UTC'
"""
# Only the source needs these: every segment stays, and the load does not wait for the disk.
SOURCE_CONFIGURATION = """
wal_keep_size = 16GB
wal_recycle = off
synchronous_commit = off
"""


def name(number):
    """The file name of a segment of timeline 1 (16 MiB each, 256 to a logical file)."""
    return f"00000001{number // 256:08X}{number % 256:08X}"


def names(count=COUNT):
    # A new cluster's first checkpoint lies in segment 1.
    return [name(number) for number in range(1, count + 1)]


def create():
    """Base directory and segments, made once."""
    done = HOME / "complete"
    if done.exists():
        return
    say(f"making {COUNT} segments of WAL: initial load, small tables, OLTP")
    servers.stop(SOURCE, "immediate")
    remove(HOME)
    folder(HOME), folder(servers.SOCKETS), folder(SEGMENTS)
    run([program("initdb"), "-k", "-A", "trust", "-U", servers.ROLE, "--locale=C.UTF-8", "--encoding=UTF8", "-D", BASE],
        env=servers.server_environment(), log="servers.log")
    with open(BASE / "postgresql.conf", "a") as conf:
        conf.write(CONFIGURATION)
    run(["cp", "-a", BASE, SOURCE])
    with open(SOURCE / "postgresql.conf", "a") as conf:
        conf.write(SOURCE_CONFIGURATION)
    # What recovery reads comes from outside, the base's own checkpoint too.
    remove(BASE / "pg_wal")
    folder(BASE / "pg_wal", 0o700), folder(BASE / "pg_wal/archive_status", 0o700)
    servers.start(SOURCE, "wal-source.log")
    try:
        load()
    finally:
        servers.stop(SOURCE)
    for segment in names():
        found = SOURCE / "pg_wal" / segment
        if not found.exists() or found.stat().st_size != SEGMENT_MIB << 20:
            raise BenchError(f'the source has no whole segment "{segment}"')
        os.rename(found, SEGMENTS / segment)
    remove(SOURCE)
    done.write_text("")


def load():
    """About two thirds initial load (pgbench's tables, bytes that do not compress, text that half does, small tables), the
    rest an application's transactions."""
    client = environment(PGHOST=servers.SOCKETS, PGUSER=servers.ROLE, PGPORT=PORT)
    pgbench = [program("pgbench"), "-n", "-c", OLTP_CLIENTS, "-j", 2]
    for database, scale in (("application", OLTP_SCALE), ("warehouse", LOAD_SCALE)):
        sql_in("postgres", f"create database {database}")
        run([program("pgbench"), "-i", "-q", "-F", FILLFACTOR, "-s", scale, database], env=client, log="wal-source.log")
    run([*pgbench, "-T", OLTP_SECONDS, "application"], env=client, log="wal-source.log")
    sql_in("warehouse", script=f"""
create extension pgcrypto;
create table random(i bigint, b bytea); alter table random alter b set storage plain;
insert into random select g, gen_random_bytes(1024) || gen_random_bytes(896) from generate_series(1, {RANDOM_MIB} * 512) g;
create table text(i bigint, t text); alter table text alter t set storage plain;
insert into text select g, (select string_agg(md5(g * 60 + n || ''), ' ') from generate_series(1, 60) n)
  from generate_series(1, {TEXT_MIB} * 512) g;
do $$ begin for i in 1..{SMALL_TABLES} loop
  execute format('create table small_%s(id int primary key, v text)', i);
  execute format('insert into small_%s select g, md5(g::text) from generate_series(1,20) g', i);
  if i % 250 = 0 then commit; end if; end loop; end $$;
vacuum analyze;
""")
    while (at := current_segment()) <= COUNT:
        say(f"segment {at} of {COUNT}")
        run([*pgbench, "-T", OLTP_SECONDS, "warehouse"], env=client, log="wal-source.log")
        run([*pgbench, "-T", OLTP_SECONDS, "application"], env=client, log="wal-source.log")


def sql_in(database, *statements, script=None):
    """Like `servers.sql`, in one of the source's databases."""
    argv = [program("psql"), "-XqAtv", "ON_ERROR_STOP=1", "-p", PORT, "-d", database]
    for statement in statements:
        argv += ["-c", statement]
    return run(argv, env=servers.server_environment(), **({"input": script.encode()} if script else {})).strip()


def current_segment():
    """The number of the segment that is being written."""
    file = sql_in("postgres", "select pg_walfile_name(pg_current_wal_lsn())")
    return int(file[8:16], 16) * 256 + int(file[16:24], 16)

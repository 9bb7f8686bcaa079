"""The pair of servers under test: a primary, its streaming standby, and the data of the comparison."""

import os
import re
import time

from . import packages
from .machine import LOGS, WORK, BenchError, environment, folder, remove, run, say

PRIMARY, STANDBY = WORK / "primary", WORK / "standby"
PRIMARY_PORT, STANDBY_PORT, RESTORED_PORT = 54317, 54318, 54330
SOCKETS, TAPPED = WORK / "run", WORK / "run/tap"
ROLE = "postgres"
PGBENCH_SCALE, FILLFACTOR, RANDOM_MIB, SMALL_TABLES = 200, 90, 500, 3000

CONFIGURATION = """
listen_addresses = ''
port = {port}
unix_socket_directories = '{sockets}'
shared_buffers = 512MB
max_wal_size = 4GB
wal_level = replica
archive_mode = on
archive_command = 'true'
log_connections = on
log_statement = all
log_replication_commands = on
log_checkpoints = on
max_locks_per_transaction = 512
timezone = 'UTC'
log_timezone = 'UTC'
"""


def program(name):
    return packages.PGBIN / name


def server_environment(port=None):
    return environment(PGHOST=SOCKETS, PGUSER=ROLE, PGDATABASE="postgres", **({"PGPORT": port} if port else {}))


def sql(port, *statements, script=None):
    """Run statements on one of the servers; returns the unaligned output."""
    argv = [program("psql"), "-XqAtv", "ON_ERROR_STOP=1", "-p", port]
    for statement in statements:
        argv += ["-c", statement]
    return run(argv, env=server_environment(), **({"input": script.encode()} if script else {})).strip()


def postmaster(data):
    """The pid of the server running on a data directory, or None."""
    try:
        pid = int((data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, 0)
        return pid
    except (OSError, ValueError, IndexError):
        return None


def start(data, log, *options):
    run([program("pg_ctl"), "-D", data, "-l", LOGS / log, "-w", "-t", "300", *options, "start"],
        env=server_environment(), log="servers.log")


def stop(data, mode="fast"):
    if postmaster(data):
        run([program("pg_ctl"), "-D", data, "-m", mode, "-w", "stop"], env=server_environment(), log="servers.log")


def until(what, seconds, condition):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"waited {seconds} s in vain: {what}")
        time.sleep(0.1)


def catch_up():
    """The standby has replayed everything; both have a fresh checkpoint, so no tool inherits another's dirty pages."""
    sql(PRIMARY_PORT, "checkpoint")
    lsn = sql(PRIMARY_PORT, "select pg_current_wal_lsn()")
    until("the standby replays the primary's WAL", 300,
          lambda: sql(STANDBY_PORT, f"select pg_last_wal_replay_lsn() >= '{lsn}'") == "t")
    sql(STANDBY_PORT, "checkpoint")


def create():
    """initdb, standby by pg_basebackup, load. Skipped when an earlier run left a complete pair."""
    done = WORK / "pair-complete"
    if done.exists():
        return
    stop_all()
    remove(PRIMARY, STANDBY)
    folder(WORK), folder(SOCKETS), folder(TAPPED)
    say("creating the primary and its standby")
    run([program("initdb"), "-k", "-A", "trust", "-U", ROLE, "--locale=C.UTF-8", "--encoding=UTF8", "-D", PRIMARY],
        env=server_environment(), log="servers.log")
    with open(PRIMARY / "postgresql.conf", "a") as conf:
        conf.write(CONFIGURATION.format(port=PRIMARY_PORT, sockets=SOCKETS))
    start(PRIMARY, "primary.log")
    sql(PRIMARY_PORT, "select pg_create_physical_replication_slot('standby1')")
    run([program("pg_basebackup"), "-p", PRIMARY_PORT, "-D", STANDBY, "-R", "-S", "standby1", "-X", "stream", "-c", "fast"],
        env=server_environment(), log="servers.log")
    conf = STANDBY / "postgresql.conf"
    conf.write_text(re.sub(rf"^port = {PRIMARY_PORT}$", f"port = {STANDBY_PORT}", conf.read_text(), flags=re.M))
    start(STANDBY, "standby.log")
    load()
    stop_all()
    done.write_text("")


def load():
    say(f"loading: pgbench scale {PGBENCH_SCALE}, {RANDOM_MIB} MiB of random bytes, {SMALL_TABLES} small tables")
    run([program("pgbench"), "-p", PRIMARY_PORT, "-i", "-q", "-F", FILLFACTOR, "-s", PGBENCH_SCALE],
        env=server_environment(), log="servers.log")
    # 1920 bytes a row, plain: four rows fill a page and nothing is compressed or moved out of line.
    sql(PRIMARY_PORT, "create extension pgcrypto", "create table random(i bigint, b bytea)",
        "alter table random alter b set storage plain",
        "insert into random select g, gen_random_bytes(1024) || gen_random_bytes(896)"
        f" from generate_series(1, {RANDOM_MIB} * 512) g")
    sql(PRIMARY_PORT, script=f"""
do $$ begin for i in 1..{SMALL_TABLES} loop
  execute format('create table small_%s(id int primary key, v text)', i);
  execute format('insert into small_%s select g, md5(g::text) from generate_series(1,20) g', i);
  if i % 250 = 0 then commit; end if; end loop; end $$;
vacuum analyze;
""")
    catch_up()


def start_all():
    for data, log in ((PRIMARY, "primary.log"), (STANDBY, "standby.log")):
        if not postmaster(data):
            start(data, log)
    until("the standby streams", 60,
          lambda: sql(PRIMARY_PORT, "select count(*) from pg_stat_replication where state = 'streaming'") == "1")
    catch_up()


def stop_all():
    stop(STANDBY)
    stop(PRIMARY)


def archive_with(command):
    """Set the primary's archive_command; the caller's tool decides what it needs there."""
    sql(PRIMARY_PORT, f"alter system set archive_command = $c${command}$c$", "select pg_reload_conf()")


def check_restored(data):
    """Start a restored directory as it is, wait until it takes writes, compare some contents; seconds it took.

    Only what would collide with the pair is overridden: port, sockets, archiving, and following a primary."""
    for name in ("standby.signal", "postmaster.pid"):
        (data / name).unlink(missing_ok=True)
    options = (f"-p {RESTORED_PORT} -c listen_addresses= -c unix_socket_directories={SOCKETS} -c archive_mode=off"
               " -c primary_conninfo= -c primary_slot_name=")
    began = time.monotonic()
    run([program("pg_ctl"), "-D", data, "-l", LOGS / "restored.log", "-o", options, "-W", "start"],
        env=server_environment(), log="servers.log")
    try:
        def writable():
            done = run([program("psql"), "-XqAtc", "select not pg_is_in_recovery()", "-p", RESTORED_PORT],
                       env=server_environment(), check=False)
            return done.strip() == "t"
        until(f"the restored copy in {data} accepts writes (see {LOGS / 'restored.log'})", 120, writable)
        seconds = time.monotonic() - began
        queries = ["select count(*), sum(abalance) from pgbench_accounts", "select count(*), sum(length(b)) from random",
                   "select count(*) from pg_class where relname like 'small\\_%' and relkind = 'r'",
                   f"select sum(id) from small_{SMALL_TABLES}"]
        for query in queries:
            theirs, ours = sql(RESTORED_PORT, query), sql(STANDBY_PORT, query)
            if theirs != ours:
                raise BenchError(f'the restored copy in "{data}" differs from the standby: {query}: {theirs} is not {ours}')
        return seconds
    finally:
        stop(data, "immediate")

"""Peak memory with very many files: a standby of one, with its data directory blown up to as many relation files."""

import os
import shutil
import time

from . import servers
from .machine import WORK, BenchError, account, environment, folder, measure, remove, run, say
from .tools import LEEWARD

MANY, REPOSITORY, RESTORED = WORK / "many", WORK / "repo/many", WORK / "restored/many"
PORT = 54319
LIMIT_MIB = 256


def create(files):
    """A standby without a primary, at rest: its recovery finds nothing more to replay."""
    servers.stop(MANY)
    remove(MANY)
    folder(servers.SOCKETS)
    run([servers.program("initdb"), "-k", "-A", "trust", "-U", servers.ROLE, "--locale=C.UTF-8", "-D", MANY],
        env=servers.server_environment(), log="servers.log")
    with open(MANY / "postgresql.conf", "a") as conf:
        conf.write(f"listen_addresses = ''\nport = {PORT}\nunix_socket_directories = '{servers.SOCKETS}'\n"
                   "restore_command = 'false'\n")
    servers.start(MANY, "many.log")
    servers.sql(PORT, "create table one_page(id int)", "insert into one_page values (1)", "checkpoint")
    page = MANY / servers.sql(PORT, "select pg_relation_filepath('one_page')")
    servers.stop(MANY)
    # A page's checksum depends on its block number, not on its file: copies of one relation file all check out.
    content, first = page.read_bytes(), 1_000_000
    say(f"writing {files} relation files")
    for number in range(first, first + files):
        with open(page.parent / str(number), "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
            out.write(content)
    (MANY / "standby.signal").write_text("")
    shutil.chown(MANY / "standby.signal", account().pw_uid)
    run(["chown", "-R", f"{account().pw_uid}:{account().pw_gid}", MANY], root=True)
    servers.start(MANY, "many.log")


def measure_memory(files):
    """Backup and restore of that standby; peak memory and time of each."""
    create(files)
    time.sleep(1)
    remove(REPOSITORY, RESTORED)
    folder(REPOSITORY.parent), folder(RESTORED.parent)
    try:
        env = environment(PGUSER=servers.ROLE)
        rows = [
            measure(f"leeward/{files} files/backup", [LEEWARD, "backup", "--pgdata", MANY, "--repository", REPOSITORY],
                    env=env, stored=[REPOSITORY], sync_counts=False,
                    servers={"standby": servers.postmaster(MANY)}),
            measure(f"leeward/{files} files/restore", [LEEWARD, "restore", "latest", "--to", RESTORED, "--repository", REPOSITORY],
                    env=env, stored=[RESTORED], sync_counts=False),
        ]
        if rows[1]["stored_files"] < files:
            raise BenchError(f"only {rows[1]['stored_files']} of {files} files came back")
        return rows
    finally:
        servers.stop(MANY)
        remove(MANY, REPOSITORY, RESTORED)

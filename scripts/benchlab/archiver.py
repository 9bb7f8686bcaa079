"""The server's side of archiving and recovery: calls made as the archiver makes them, and a server that replays.

Both run in a process of their own, as the servers' account, which adopts whatever its descendants leave behind: the CPU
of a tool's background processes counts, and the clock can wait for them."""

import ctypes
import json
import os
import re
import resource
import signal
import time
import traceback
from datetime import datetime

from .machine import LOGS, TICKS_PER_SECOND, BenchError, account, busy_seconds, tree_of

PR_SET_CHILD_SUBREAPER = 36
RECOVERY_SECONDS = 600


def apart(work):
    """Run `work()` in such a process; it returns what json can carry, or fails here with its error."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            os.setsid()
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(account().pw_gid)
                os.setuid(account().pw_uid)
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                answer = {"done": work()}
            except BenchError as error:
                answer = {"failed": str(error)}
            except Exception:
                answer = {"failed": traceback.format_exc()}
            os.write(writer, json.dumps(answer).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    answer = json.loads(told or '{"failed": "the process ended without an answer"}')
    if "failed" in answer:
        raise BenchError(answer["failed"])
    return answer["done"]


def spawn(argv, env, log):
    out = os.open(LOGS / log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        return os.posix_spawn(argv[0], argv, env, file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)])
    finally:
        os.close(out)


def call(command, env, log):
    """What system(3) does in the archiver; the exit status, and milliseconds."""
    began = time.monotonic()
    child = spawn(["/bin/sh", "-c", command], env, log)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), (time.monotonic() - began) * 1000


def wait_for_all(seconds):
    """Until nothing is left of what was started; the background processes of a tool end by themselves."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() > deadline:
                raise BenchError(f"processes of the tool still run after {seconds} s")
            time.sleep(0.002)


def archive(data, segments, command, env, log, one_at_a_time):
    """Offer segments as the archiver does, from `data`, each ready or one after the other; latencies and cost.

    pgarch.c: one call a segment in the order of their names, `%p` relative to the data directory, `.ready` renamed to
    `.done` after exit code 0."""
    os.chdir(data)
    status = "pg_wal/archive_status/"
    latencies = []

    def offer(segment):
        with open(f"{status}{segment}.ready", "w"):
            pass

    if not one_at_a_time:
        for segment in segments:
            offer(segment)
    used, busy = cpu_seconds(), busy_seconds()
    began = time.monotonic()
    for segment in segments:
        if one_at_a_time:
            wait_for_all(30)
            offer(segment)
        code, took = call(command.replace("%p", f"pg_wal/{segment}").replace("%f", segment), env, log)
        if code:
            raise BenchError(f"archiving {segment} ended with {code}: see {LOGS / log}")
        latencies.append(took)
        os.rename(f"{status}{segment}.ready", f"{status}{segment}.done")
    wall = time.monotonic() - began
    wait_for_all(30)
    cpu = [now - then for now, then in zip(cpu_seconds(), used)]
    return {"wall_s": wall, "latencies_ms": latencies, "cpu_tool_s": cpu[0], "cpu_other_s": max(0.0, busy_seconds() - busy - sum(cpu))}


def cpu_seconds():
    """CPU of all that has been started and has ended, and this process's own."""
    started, own = resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF)
    return started.ru_utime + started.ru_stime, own.ru_utime + own.ru_stime


LOG_LINE = re.compile(r"^(\S+ \S+) UTC \[\d+\] LOG:  (.*)$", re.M)
REDO_DONE = re.compile(r"redo done at (\S+) system usage: CPU: user: ([\d.]+) s, system: ([\d.]+) s, elapsed: ([\d.]+) s")


def recover(postgres, data, env, log, check):
    """Start a server that recovers, wait until it has, call `check`, stop it; times are those of its own log, from its
    first line, because the first file is asked for before recovery is announced.

    CPU is that of the server and of all that it called, up to the end of recovery."""
    path, us = LOGS / log, os.getpid()
    path.write_text("")
    server = spawn([str(postgres), "-D", str(data)], env, log)
    deadline, busy, ended = time.monotonic() + RECOVERY_SECONDS, busy_seconds(), False

    def lines():
        return [(datetime.fromisoformat(at), what) for at, what in LOG_LINE.findall(path.read_text(errors="replace"))]

    def reap():
        """What ended meanwhile; whether the server is among it."""
        try:
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                if pid == server:
                    return True
        except ChildProcessError:
            return True
        return False

    try:
        def await_line(text):
            nonlocal ended
            while not any(what.startswith(text) for _, what in lines()):
                ended = reap()
                if ended or time.monotonic() > deadline:
                    raise BenchError(f"recovery did not end well: see {path}")
                time.sleep(0.01)

        await_line("archive recovery complete")
        cpu = sum(reaped + (0 if pid == us else own) for pid, (own, reaped) in tree_of(us).items()) / TICKS_PER_SECOND
        busy = busy_seconds() - busy - cpu - cpu_seconds()[1]
        await_line("database system is ready to accept connections")
        contents = check()
    finally:
        if not ended:
            os.kill(server, signal.SIGQUIT)
            os.waitpid(server, 0)
        for pid in tree_of(us):
            if pid != us:
                os.kill(pid, signal.SIGTERM)
        wait_for_all(30)
    at = lambda text: next(at for at, what in lines() if what.startswith(text))
    lsn, user, system, elapsed = next(found.groups() for _, what in lines() if (found := REDO_DONE.match(what)))
    return {"wall_s": (at("archive recovery complete") - at("starting PostgreSQL")).total_seconds(), "cpu_tool_s": cpu,
            "cpu_other_s": max(0.0, busy), "redo_s": float(elapsed), "redo_cpu_s": float(user) + float(system), "redo_done_at": lsn, "contents": contents}

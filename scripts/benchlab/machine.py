"""What the bench asks of the machine: folders, users, caches, and the measuring of one command."""

import json
import os
import pwd
import re
import subprocess
import threading
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
WORK = Path(os.environ.get("LEEWARD_BENCH_DIR") or
            Path(os.environ.get("LEEWARD_WORK") or PROJECT / ".leeward-work") / "bench").resolve()
LOGS = WORK / "log"
RESULTS = WORK / "results.jsonl"
# Servers refuse to run as root, and no tool needs to: both run as this account.
ACCOUNT = os.environ.get("LEEWARD_BENCH_USER", "postgres")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A step of the bench failed; the message says which and where its log is."""


def account():
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError:
        raise BenchError(
            f'no user "{ACCOUNT}": create it (useradd --system {ACCOUNT}) or name another in LEEWARD_BENCH_USER'
        ) from None


def environment(**extra):
    """A small fixed environment, so that no setting of the caller's reaches a tool."""
    base = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": str(WORK)}
    return base | {k: str(v) for k, v in extra.items()}


def as_account():
    """Popen arguments that make a command run as the account of the servers."""
    who = account()
    return {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}


def run(argv, *, root=False, env=None, check=True, log=None, **more):
    """Run a command outside any clock; its output is returned, or goes to `log`."""
    argv = [str(a) for a in argv]
    sink = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if log:
        handle = open(LOGS / log, "ab")
        sink = {"stdout": handle, "stderr": handle}
    more.setdefault("stdin", subprocess.DEVNULL) if "input" not in more else None
    done = subprocess.run(argv, env=env or environment(), **sink, **({} if root else as_account()), **more)
    if check and done.returncode:
        told = f"see {LOGS / log}" if log else (done.stderr or done.stdout).decode(errors="replace")[-800:]
        raise BenchError(f"{' '.join(argv)[:200]} ended with {done.returncode}: {told}")
    return done.stdout.decode(errors="replace") if done.stdout else ""


def folder(path, mode=0o755):
    """Create a folder that belongs to the account."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    if os.getuid() == 0:
        os.chown(path, account().pw_uid, account().pw_gid)
    os.chmod(path, mode)
    return path


def remove(*paths):
    subprocess.run(["rm", "-rf", "--", *map(str, paths)], check=True)


def say(text):
    print(time.strftime("%H:%M:%S"), text, flush=True)


def drop_caches():
    """Write everything out and empty the page cache; False where that is not allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return True
    except OSError:
        return False


def tree_size(paths):
    """Bytes and number of the files below some paths, store-internal dot files left out."""
    size = count = 0
    for top in paths:
        for base, folders, files in os.walk(top):
            folders[:] = [f for f in folders if not f.startswith(".")]
            for name in files:
                if not name.startswith("."):
                    try:
                        size += os.lstat(os.path.join(base, name)).st_size
                        count += 1
                    except OSError:
                        pass
    return size, count


def device_bytes_written():
    """Bytes written so far to the device that holds the work folder, or None where it has none of its own."""
    device = os.stat(WORK).st_dev
    for line in open("/proc/diskstats"):
        part = line.split()
        if (int(part[0]), int(part[1])) == (os.major(device), os.minor(device)):
            return int(part[9]) * 512
    return None


def busy_seconds():
    """CPU seconds spent by everything on this machine (proc(5): user, nice, system, irq, softirq; not steal)."""
    part = [int(x) for x in open("/proc/stat").readline().split()[1:]]
    return (sum(part[:3]) + part[5] + part[6]) / TICKS_PER_SECOND


def processes():
    """(pid, parent, session, own CPU ticks, CPU ticks of reaped children) of every process."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                part = open(f"/proc/{name}/stat").read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            yield int(name), int(part[1]), int(part[3]), int(part[11]) + int(part[12]), int(part[13]) + int(part[14])


def tree_of(pid):
    """A process and all its living descendants: pid -> (own ticks, reaped children's ticks)."""
    table = {p: (parent, own, reaped) for p, parent, _, own, reaped in processes()}
    found = {pid} & table.keys()
    grown = True
    while grown:
        more = {p for p, (parent, _, _) in table.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return {p: table[p][1:] for p in found}


def tree_cpu_seconds(pid):
    """CPU of a process and its descendants, the living and the reaped."""
    return sum(own + reaped for own, reaped in tree_of(pid).values()) / TICKS_PER_SECOND if pid else 0.0


def status_kib(pid, field):
    try:
        match = re.search(rf"^{field}:\s+(\d+)", open(f"/proc/{pid}/status").read(), re.M)
        return int(match.group(1)) if match else 0
    except OSError:
        return 0


def pss_kib(pid):
    """Proportional set size: shared pages divided among those who share them, so that a sum over processes is honest."""
    try:
        match = re.search(r"^Pss:\s+(\d+)", open(f"/proc/{pid}/smaps_rollup").read(), re.M)
        return int(match.group(1)) if match else 0
    except OSError:
        return 0


class MemoryWatch(threading.Thread):
    """Samples the memory of a session's processes, and of the standby's, until stopped.

    `ru_maxrss` will not do: it starts at the size of the process that forked the tool."""

    def __init__(self, session, standby_pid):
        super().__init__(daemon=True)
        self.session, self.standby_pid = session, standby_pid
        self.largest = self.together = 0
        self.standby_first = self.standby_peak = self.standby_private() if standby_pid else 0
        self.halt = threading.Event()

    def standby_private(self):
        return sum(status_kib(p, "RssAnon") for p in tree_of(self.standby_pid))

    def run(self):
        while not self.halt.wait(0.1):
            pids = [p for p, _, session, _, _ in processes() if session == self.session]
            self.largest = max([self.largest, *(status_kib(p, "VmHWM") for p in pids)])
            self.together = max(self.together, sum(map(pss_kib, pids)))
            if self.standby_pid:
                self.standby_peak = max(self.standby_peak, self.standby_private())

    def stop(self):
        self.halt.set()
        self.join()


def measure(label, argv, *, env, stored=(), sync_counts, servers=None, primary=None, store=None):
    """Run one command with a cold cache; return everything the report needs.

    The clock stops when the command has ended and, with `sync_counts`, when what it left in the page cache is on the
    device too. `servers`: name -> pid of server trees whose CPU is counted apart. `primary`: the primary's witness."""
    servers = servers or {}
    cold = drop_caches()
    size_before, _ = tree_size(stored)
    log = open(LOGS / (label.replace("/", "_") + ".log"), "ab")
    if primary:
        primary.begin()
    cpu_before = {name: tree_cpu_seconds(pid) for name, pid in servers.items()}
    written_before, busy_before = device_bytes_written(), busy_seconds()
    began = time.monotonic()
    child = subprocess.Popen(
        [str(a) for a in argv], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        start_new_session=True, cwd=WORK, **as_account(),
    )
    watch = MemoryWatch(child.pid, servers.get("standby"))
    watch.start()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    ended = time.monotonic()
    watch.stop()
    os.sync()
    synced = time.monotonic()
    busy = busy_seconds() - busy_before
    cpu = {name: tree_cpu_seconds(pid) - cpu_before[name] for name, pid in servers.items()}
    size_after, files = tree_size(stored)
    row = {
        "label": label, "exit": child.returncode, "cold": cold,
        "wall_s": round((synced if sync_counts else ended) - began, 3), "sync_s": round(synced - ended, 3),
        "cpu_tool_s": round(usage.ru_utime + usage.ru_stime, 2),
        **{f"cpu_{name}_s": round(used, 2) for name, used in cpu.items()},
        "cpu_other_s": round(max(0.0, busy - sum(cpu.values()) - usage.ru_utime - usage.ru_stime), 2),
        "rss_largest_mib": round(watch.largest / 1024, 1), "rss_sum_mib": round(watch.together / 1024, 1),
        "standby_memory_mib": round((watch.standby_peak - watch.standby_first) / 1024, 1),
        "written_mb": None if written_before is None else round((device_bytes_written() - written_before) / 1e6, 1),
        "stored_mib": round((size_after - size_before) / 2**20, 1), "stored_files": files,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if primary:
        row |= primary.end()
    if store:
        row |= store
    with open(RESULTS, "a") as out:
        out.write(json.dumps(row) + "\n")
    say(f"{label:32} {row['wall_s']:8.2f} s  CPU {row['cpu_tool_s']:6.2f} s  RSS {row['rss_largest_mib']:.0f} MiB"
        f"  stored {row['stored_mib']:.0f} MiB  other CPU {row['cpu_other_s']:.1f} s")
    if child.returncode:
        raise BenchError(f"{label} ended with {child.returncode}: see {log.name}")
    return row

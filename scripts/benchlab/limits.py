"""What the hardware allows: the device alone, and the plainest pipe that reads, compresses and writes the same data."""

import mmap
import os
import shlex
import threading
import time

from . import packages
from .machine import WORK, BenchError, drop_caches, folder, measure, remove
from .servers import STANDBY
from .tools import LEVEL, PROCESSES

SCRATCH = WORK / "limits"
FILE_MIB, CHUNK, IN_FLIGHT = 2048, 1 << 20, 8


def direct(path, writing):
    """MB/s of reading or writing one file past the page cache, several requests of 1 MiB in flight."""
    flags = os.O_DIRECT | (os.O_WRONLY | os.O_CREAT if writing else os.O_RDONLY)
    handle = os.open(path, flags, 0o600)
    offsets, lock = iter(range(0, FILE_MIB << 20, CHUNK)), threading.Lock()

    def work():
        page_aligned = mmap.mmap(-1, CHUNK)
        page_aligned.write(os.urandom(CHUNK))
        while True:
            with lock:
                offset = next(offsets, None)
            if offset is None:
                return
            (os.pwritev if writing else os.preadv)(handle, [page_aligned], offset)

    began = time.monotonic()
    workers = [threading.Thread(target=work) for _ in range(IN_FLIGHT)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if writing:
        os.fsync(handle)
    took = time.monotonic() - began
    os.close(handle)
    return FILE_MIB * 1.048576 / took


def measure_limits():
    """Rows for the report: disk, and the floors of backup and restore."""
    folder(SCRATCH)
    path = SCRATCH / "direct"
    try:
        with open(path, "wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, FILE_MIB << 20)
        drop_caches()
        # The best of three: other guests of the same host only ever make it slower.
        write = max(direct(path, True) for _ in range(3))
        read = max(direct(path, False) for _ in range(3))
    except OSError as error:
        raise BenchError(f"{SCRATCH} cannot be read past the page cache: {error}") from None
    remove(path)
    data, zstd = shlex.quote(str(STANDBY)), packages.ZSTD
    # What every backup leaves out is left out here too.
    tar = f"tar -C {data} --exclude=./pg_wal --exclude=./pg_replslot --warning=no-file-changed -c ."
    archive = SCRATCH / "floor.tar.zst"

    def floor(label, script, sync):
        remove(SCRATCH / "x")
        return measure(f"floor/local/{label}", ["bash", "-c", f"set -o pipefail; {script}"], env={"PATH": "/usr/bin:/bin"},
                       sync_counts=sync)["wall_s"]

    result = {
        "write_mb_s": round(write), "read_mb_s": round(read),
        "tar_read_s": floor("tar, cold, to nothing", f"{tar} | cat > /dev/null", False),
        "backup_floor_s": floor(f"tar | zstd -{LEVEL} -T{PROCESSES}", f"{tar} | {zstd} -q -f -{LEVEL} -T{PROCESSES} -o {archive}", True),
        "restore_floor_s": floor("zstd -d | tar -x", f"mkdir {SCRATCH}/x; {zstd} -qdc {archive} | tar -x -C {SCRATCH}/x", True),
        "copy_floor_s": floor("cp -a", f"cp -a {data}/base {SCRATCH}/x", True),
    }
    remove(SCRATCH)
    return result

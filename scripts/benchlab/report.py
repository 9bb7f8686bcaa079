"""Tables: aligned, so that they read the same on a terminal and in docs/performance.md."""

import os
import platform
import re
import statistics
import time

from .machine import PROJECT

DOCUMENT = PROJECT / "docs/performance.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
REFERENCE = "pgbackrest"


def table(head, rows):
    """A Markdown table with padded columns; the first is left-aligned, the others right."""
    cells = [head, *rows]
    width = [max(len(str(row[n])) for row in cells) for n in range(len(head))]

    def line(row):
        return "| " + " | ".join(str(c).ljust(w) if n == 0 else str(c).rjust(w)
                                 for n, (c, w) in enumerate(zip(row, width))) + " |"
    rule = "|" + "|".join("-" * (w + 2) if n == 0 else "-" * (w + 1) + ":" for n, w in enumerate(width)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def middle(rows, field):
    values = [row[field] for row in rows if row.get(field) is not None]
    return statistics.median(values) if values else None


def number(value, digits=1):
    return "-" if value is None else f"{value:,.{digits}f}"


def spread(rows, field, digits=1):
    values = [row[field] for row in rows]
    return f"{min(values):.{digits}f}-{max(values):.{digits}f}"


def best(rows):
    return min(row["wall_s"] for row in rows)


def others_share(rows):
    """How much of the machine something outside the bench used: above some percent, wall times say less."""
    return f"{statistics.median(row['cpu_other_s'] / row['wall_s'] / os.cpu_count() for row in rows):.0%}"


def total_cpu(rows):
    """The tool's own CPU and what it made the standby and the primary spend."""
    return statistics.median(sum(row.get(f"cpu_{who}_s", 0) for who in ("tool", "standby", "primary")) for row in rows)


def comparison(title, rows, tools):
    """One table: `rows` of one verb and store, by tool, against the reference."""
    by_tool = {tool.key: [row for row in rows if row["label"].split("/")[0] == tool.key] for tool in tools}
    by_tool = {key: found for key, found in by_tool.items() if found}
    if not by_tool:
        return ""
    reference = by_tool.get(REFERENCE)
    backup = title.startswith("Backup")
    head = ["tool", "wall s", "min-max", "ratio", "best/best", "CPU s: tool", "+ servers", "ratio", "RSS MiB: one", "all", "+ standby",
            "stored MiB" if backup else "restored MiB", "written MB", "others' CPU"]
    lines = []
    for tool in tools:
        found = by_tool.get(tool.key)
        if not found:
            continue
        wall, cpu = middle(found, "wall_s"), total_cpu(found)
        lines.append([
            tool.title, number(wall), spread(found, "wall_s"),
            number(wall / middle(reference, "wall_s"), 2) if reference else "-",
            number(best(found) / best(reference), 2) if reference else "-",
            number(middle(found, "cpu_tool_s")), number(cpu - middle(found, "cpu_tool_s")),
            number(cpu / total_cpu(reference), 2) if reference else "-",
            *(number(max(r[f] for r in found), 0) for f in ("rss_largest_mib", "rss_sum_mib", "standby_memory_mib")),
            number(middle(found, "stored_mib"), 0), number(middle(found, "written_mb"), 0), others_share(found),
        ])
    count = min(len(found) for found in by_tool.values())
    return f"### {title}\n\nMedians of {count} round{'s' if count > 1 else ''}, memory the most of any.\n\n{table(head, lines)}\n"


def primary_table(rows, tools):
    head = ["tool (backup)", "connections", "statements", "bytes to", "bytes from", "checkpoints", "primary's CPU s"]
    lines = []
    for tool in tools:
        found = [row for row in rows if row["label"].startswith(tool.key + "/local/backup")]
        if found:
            lines.append([tool.title] + [number(max(row[f"primary_{f}"] for row in found), 0) for f in
                                         ("connections", "statements", "bytes_in", "bytes_out", "checkpoints")]
                         + [number(middle(found, "cpu_primary_s"), 2)])
    return (f"### What reached the primary\n\nThe most of any round. Bytes are those of SQL connections; the WAL it ships and"
            f" the files read from its data directory are not in them.\n\n{table(head, lines)}\n") if lines else ""


def limits_table(limits, rows):
    if not limits:
        return ""
    lines = [["disk, sequential, past the page cache, 1 MiB, 8 in flight: read", f"{limits['read_mb_s']:,} MB/s", "", ""],
             ["the same: write", f"{limits['write_mb_s']:,} MB/s", "", ""]]
    restored = middle([row for row in rows if row["label"] == "leeward/local/restore"], "stored_mib")
    if restored:
        plain = restored * 1.048576
        floors = [("reading the data directory at that rate (backup)", "backup", plain / limits["read_mb_s"]),
                  ("writing it at that rate (restore)", "restore", plain / limits["write_mb_s"])]
        floors += [("tar into zstd -3 -T2, cold, to disk (backup)", "backup", limits["backup_floor_s"]),
                   ("zstd -d into tar -x, to disk (restore)", "restore", limits["restore_floor_s"])]
        for what, verb, seconds in floors:
            against = []
            for key in ("leeward", "pgbackrest"):
                wall = middle([row for row in rows if row["label"] == f"{key}/local/{verb}"], "wall_s")
                against.append("-" if wall is None else f"{wall / seconds:.2f}")
            lines.append([what, f"{seconds:.1f} s", *against])
    lines += [["tar of the data directory, cold, to nothing", f"{limits['tar_read_s']:.1f} s", "", ""],
              ["cp -a of the relations, cold, to disk", f"{limits['copy_floor_s']:.1f} s", "", ""]]
    return f"### What the hardware allows\n\n{table(['what', 'figure', 'leeward, times that', 'pgBackRest, times that'], lines)}\n"


def memory_table(rows):
    if not rows:
        return ""
    lines = [[row["label"].split("/", 1)[1], number(row["wall_s"]), number(row["cpu_tool_s"]), number(row["rss_largest_mib"], 0),
              number(row["stored_mib"], 0)] for row in rows]
    return f"### Very many files\n\n{table(['leeward', 'wall s', 'CPU s', 'peak RSS MiB', 'MiB'], lines)}\n"


def machine_line(versions):
    cpu = re.search(r"model name\s*:\s*(.+)", open("/proc/cpuinfo").read())
    memory = int(re.search(r"MemTotal:\s+(\d+)", open("/proc/meminfo").read()).group(1)) / 2**20
    tools = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (f"{time.strftime('%d %B %Y', time.gmtime())}: {os.cpu_count()} CPUs ({cpu.group(1) if cpu else platform.machine()}),"
            f" {memory:.0f} GiB of memory, Linux {platform.release()}. {tools}.\n")


def render(rows, tools, limits, memory, versions, wal, pages):
    parts = [machine_line(versions)]
    for store, name in (("local", "a local directory"), ("s3", "S3")):
        for verb, title in (("backup", f"Backup of the standby into {name}"), ("restore", f"Restore from {name}")):
            parts.append(comparison(title, [r for r in rows if r["label"].endswith(f"/{store}/{verb}")], tools))
    parts += [primary_table(rows, tools), limits_table(limits, rows), memory_table(memory), wal, pages]
    return "\n".join(part for part in parts if part)


def write_document(text):
    """Replace the block between the markers; the words around it are written by people."""
    page = DOCUMENT.read_text()
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{DOCUMENT} has no lines {BEGIN} and {END}")
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    DOCUMENT.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")

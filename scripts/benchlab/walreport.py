"""The tables of the WAL comparison, and its targets beside what was reached."""

import os
import statistics

from .report import middle, number, spread, table

STORES = (("local", "a local directory"), ("s3", "S3"))
REFERENCE = "pgbackrest-3"


def others(rows):
    return f"{statistics.median(row['cpu_other_s'] / row['wall_s'] / os.cpu_count() for row in rows):.0%}"


def found(rows, store, what, tools):
    """Rows of one kind by tool, in the order of the contenders."""
    by_tool = {tool: [row for row in rows if (row["store"], row["what"], row["tool"]) == (store, what, tool.key)] for tool in tools}
    return {tool: its for tool, its in by_tool.items() if its}


def of(rows, store, what, tool, field):
    return middle([row for row in rows if (row["store"], row["what"], row["tool"]) == (store, what, tool)], field)


def push_table(rows, store, tools):
    head = ["push", "wall s", "min-max", "segments/s", "ratio", "a call: median ms", "p95", "longest", "alone: median ms", "p95",
            "CPU s", "stored MiB", "others' CPU"]
    lines, reference = [], of(rows, store, "push", REFERENCE, "per_s")
    for tool, its in found(rows, store, "push", tools).items():
        alone = lambda field: number(of(rows, store, "steady", tool.key, field))
        lines.append([tool.title, number(middle(its, "wall_s")), spread(its, "wall_s"), number(middle(its, "per_s")),
                      number(middle(its, "per_s") / reference, 2) if reference else "-",
                      *(number(middle(its, field)) for field in ("median_ms", "p95_ms", "most_ms")), alone("median_ms"), alone("p95_ms"),
                      number(middle(its, "cpu_tool_s")), number(middle(its, "stored_mib"), 0), others(its)])
    return table(head, lines) if lines else ""


def get_table(rows, store, tools):
    head = ["recovery with WAL from", "wall s", "min-max", "ratio", "to local pg_wal", "segments/s", "CPU s", "others' CPU"]
    lines = []
    reference, local = of(rows, store, "get", REFERENCE, "wall_s"), of(rows, store, "get", "local", "wall_s")
    for tool, its in found(rows, store, "get", tools).items():
        wall = middle(its, "wall_s")
        lines.append([tool.title, number(wall), spread(its, "wall_s"), number(wall / reference, 2) if reference else "-",
                      number(wall / local, 2) if local else "-", number(middle(its, "per_s")), number(middle(its, "cpu_tool_s")), others(its)])
    return table(head, lines) if lines else ""


def targets_table(rows, store):
    """Ours against pgBackRest's two settings, and against the local `pg_wal`."""
    def ratio(what, field, against, who="leeward"):
        ours, theirs = of(rows, store, what, who, field), of(rows, store, what, against, field)
        return "-" if ours is None or not theirs else number(ours / theirs, 2)

    lines = [[title, wanted, *(ratio(what, field, against) for against in ("pgbackrest-3", "pgbackrest-1"))] for title, wanted, what, field in (
        ("push, segments per second", "at least 2", "push", "per_s"),
        ("push, median call, everything ready", "at most 0.33", "push", "median_ms"),
        ("push, median call, one segment at a time", "at most 0.33", "steady", "median_ms"),
        ("recovery, wall", "at most 0.80", "get", "wall_s"),
        ("archive, size", "at most 1.00", "push", "stored_mib"))]
    if store == "local":
        lines.append(["recovery, wall, to that from local pg_wal", "at most 1.10", ratio("get", "wall_s", "local"), ""])
    return table(["leeward to pgBackRest", "target", "zst:3", "zst:1"], lines)


def render(rows, tools):
    parts = []
    for store, name in STORES:
        here = [row for row in rows if row["store"] == store]
        if not any(row["tool"] == "leeward" or row["tool"].startswith("pgbackrest") for row in here):
            continue
        segments = sorted({row["segments"] for row in here})
        count = min(len(its) for what in ("push", "get") for its in found(rows, store, what, tools).values())
        parts.append(f"### WAL: {' or '.join(map(str, segments))} segments of 16 MiB, archive in {name}\n\n"
                     f"Medians of {count} round{'s' if count > 1 else ''}.\n\n"
                     + "\n\n".join(t for t in (push_table(rows, store, tools), get_table(rows, store, tools), targets_table(rows, store)) if t) + "\n")
    return "\n".join(parts)

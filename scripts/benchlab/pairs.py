"""Two versions of leeward in turns: what a change costs, as ratios with their 95 % intervals."""

import math
import shutil
import statistics

from . import servers, tools, wal, walsource
from .machine import BenchError, folder, measure, remove, say

# Student's t, 0.975, by degrees of freedom.
T = {4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 19: 2.093, 29: 2.045}


def install(old, new):
    """Copies of both programs, so that builds that go on meanwhile change nothing."""
    folder(tools.LEEWARD.parent)
    programs = {}
    for key, source in (("old", old), ("new", new)):
        if not source or not source.exists():
            raise BenchError(f"the {key} program is not there: name it with --{'old' if key == 'old' else 'leeward'}")
        programs[key] = tools.LEEWARD.with_name(f"leeward-{key}")
        shutil.copy(source, programs[key])
        programs[key].chmod(0o755)
    return programs


def in_turns(programs, count, run):
    """`run(key)` for both programs `count` times, each round beginning with the other one; seconds by key."""
    seconds = {"old": [], "new": []}
    for turn in range(count):
        for key in ("old", "new") if turn % 2 else ("new", "old"):
            tools.LEEWARD = programs[key]
            seconds[key].append(run(key))
        say(f"round {turn + 1} of {count}: old {seconds['old'][-1]:.2f} s, new {seconds['new'][-1]:.2f} s")
    return seconds


def ratio(seconds):
    """Geometric mean of new against old, and the ends of its 95 % interval."""
    logs = [math.log(new / old) for new, old in zip(seconds["new"], seconds["old"])]
    mean = statistics.mean(logs)
    degrees = max((d for d in T if d <= len(logs) - 1), default=4)
    error = T[degrees] * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - error), math.exp(mean + error)


def measure_pairs(old, new, count, segment_count):
    programs = install(old, new)
    results = {}
    servers.start_all()
    try:
        tool = tools.Leeward("local")

        def backup(_):
            tool.before_backup()
            servers.catch_up()
            return measure(tool.label("backup"), tool.backup(), env=tool.environment(), stored=tool.stored(),
                           sync_counts=tool.sync_backup)["wall_s"]

        def restore(_):
            tool.before_restore()
            return measure(tool.label("restore"), tool.restore(), env=tool.environment(), stored=[tool.target],
                           sync_counts=tool.sync_restore)["wall_s"]

        say("backup")
        results["backup"] = in_turns(programs, count, backup)
        say("restore, of one backup")
        results["restore"] = in_turns(programs, count, restore)
        remove(tool.target)
    finally:
        servers.stop_all()
    walsource.create()
    segments = walsource.names(segment_count)
    contender = wal.Leeward("local")
    say(f"wal push, {segment_count} segments")
    results["wal push"] = in_turns(programs, count, lambda _: wal.push(contender, segments, False)["wall_s"])
    say("replay with wal get")
    results["replay"] = in_turns(programs, count, lambda _: wal.get(contender, segments, False)["wall_s"])
    return results


def render(results):
    lines = [f"{'':10} {'old':>8} {'new':>8} {'new/old':>8}  95 % interval"]
    for what, seconds in results.items():
        middle, low, high = ratio(seconds)
        old, new = statistics.median(seconds["old"]), statistics.median(seconds["new"])
        lines.append(f"{what:10} {old:6.2f} s {new:6.2f} s {middle:8.3f}  {low:.3f} to {high:.3f}, {len(seconds['old'])} pairs")
    return "\n".join(lines)

"""The kinds of pages through crates/repository/examples/page_speed.rs, and the tables of what came out."""

import json
import os
import shutil
import statistics

from . import pagekinds
from .machine import PROJECT, BenchError, run, say
from .report import number, table

EXAMPLE = "page_speed"


def build():
    """The measuring program, built now; cargo says where."""
    cargo = shutil.which("cargo")
    if not cargo:
        raise BenchError("no cargo in PATH: it builds the measuring program")
    said = run([cargo, "build", "--release", "-q", "-p", "leeward-repository", "--example", EXAMPLE,
                "--message-format", "json-render-diagnostics"], root=True, env=dict(os.environ), cwd=PROJECT)
    found = [message["executable"] for message in map(json.loads, said.splitlines())
             if message.get("executable") and message["target"]["name"] == EXAMPLE]
    return found[-1]


def measure_pages(server, rounds, ways, by_type):
    """Makes what is missing, and measures all kinds; with `by_type` each type of page apart."""
    major, folders = pagekinds.create(server)
    options = ["--json", "--rounds", rounds] + (["--by-type"] if by_type else []) + (["--ways", ways] if ways else [])
    program = build()
    say(f"pages: {rounds} rounds")
    return {"major": major} | json.loads(run([program, *options, *folders], root=True))


def together(name, kinds):
    """Several kinds as one: sums, the seconds round by round."""
    rounds = lambda lists: [sum(seconds) for seconds in zip(*lists)]
    ways = [{"way": same[0]["way"], "stored_bytes": sum(way["stored_bytes"] for way in same),
             **{field: rounds(way[field] for way in same) for field in ("compress_s", "decompress_s")}}
            for same in zip(*(kind["ways"] for kind in kinds))]
    return {"kind": name, "bytes": sum(kind["bytes"] for kind in kinds), "frames": sum(kind["frames"] for kind in kinds), "ways": ways}


def times(first, second):
    """How many times as fast the second is: the median of each round's ratio, as they took turns within it."""
    return statistics.median(a / b for a, b in zip(first, second))


def render(result):
    """Sizes and speeds, each against the first way's."""
    if not result:
        return ""
    kinds = result["kinds"]
    structured = [kind for kind in kinds if kind["kind"].split()[0] in pagekinds.STRUCTURED]
    types = sorted({kind["kind"].split()[1] for kind in kinds if " " in kind["kind"]})
    same = [together(f"every {name}", [kind for kind in kinds if kind["kind"].split()[1] == name]) for name in types]
    lines = kinds + same + [together("structured", structured), together("total", kinds)]
    names = [way["way"] for way in kinds[0]["ways"]]
    reference, others = names[0], names[1:]

    def speeds(title, field):
        return table([title, f"{reference}, MB/s", *others],
                     [[line["kind"], number(line["bytes"] / 1e6 / statistics.median(line["ways"][0][field]), 0),
                       *(number(times(line["ways"][0][field], way[field]), 2) for way in line["ways"][1:])] for line in lines])
    sizes = table(["stored", "MB", "frames", f"{reference}, MB", *others],
                  [[line["kind"], number(line["bytes"] / 1e6), line["frames"], number(line["ways"][0]["stored_bytes"] / 1e6, 2),
                    *(number(way["stored_bytes"] / line["ways"][0]["stored_bytes"], 3) for way in line["ways"][1:])] for line in lines])
    rounds = f"{result['rounds']} round{'s' if result['rounds'] > 1 else ''}"
    return (f"### Pages\n\nPostgreSQL {result['major']}, frames of 1 MiB, one thread, medians of {rounds}; every way is given as times the first:"
            f" less is smaller, more is faster. \"structured\" is {', '.join(pagekinds.STRUCTURED)}.\n\n"
            f"{sizes}\n\n{speeds('compress', 'compress_s')}\n\n{speeds('decompress', 'decompress_s')}\n")

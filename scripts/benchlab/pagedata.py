"""What stands in the rows of the page kinds: names, sentences, sensors, text found on this machine, random bytes.

Everything comes from one seed, so that two machines make the same rows; only `documents` depends on what is installed."""

import gzip
import hashlib
import itertools
import json
import os
import random
import zlib
from datetime import datetime, timedelta

SEED = 20_240_229
FIRST_DAY = datetime(2021, 3, 1)

FIRST_NAMES = """Aisha Alexander Amélie Anders Anna Antonio Astrid Björn Carlos Chiara Chloé Daniel David Elena Elisabeth Emil Emma
Fatima Felix François Frieda Giulia Grace Hanna Hiroshi Ines Ingrid Ivan Jakob James Jan Johanna José Julia Karin Katarzyna Kenji Lars
Laura Leon Linh Lucía Luka Magda Maria Mateo Michael Mohammed Nadia Nina Noah Olga Oliver Omar Paul Petra Priya Rahul Robert Rosa Sara
Sofia Stefan Sven Thomas Tim Ursula Viktor Wei Yusuf Zoë""".split()
LAST_NAMES = """Andersson Bauer Becker Bianchi Brown Castro Chen Cohen Costa Davies Dubois Eriksen Fernández Fischer Fontaine García Gruber
Gupta Haas Hansen Hoffmann Horvat Ito Ivanova Jansen Johnson Jovanović Kaya Keller Khan Kim Klein Kowalski Kumar Lang Larsen Lefèvre Lehmann
López Martin Mayer Meier Meyer Moreau Müller Murphy Nakamura Nguyen Novák Okafor Olsen Papadopoulos Patel Pereira Petersen Popov Richter
Rossi Sánchez Santos Sato Schmidt Schneider Schulz Silva Singh Smirnov Smith Suzuki Svensson Tanaka Taylor Tran Vogel Wagner Walker Wang
Weber Williams Wolf Wright Yılmaz Zhang Zimmermann""".split()
CITIES = """Amsterdam Barcelona Berlin Bern Bologna Bordeaux Bremen Bristol Brno Brussels Cologne Copenhagen Dortmund Dresden Dublin
Edinburgh Frankfurt Gdańsk Geneva Ghent Göteborg Graz Hamburg Hanover Helsinki Kraków Leeds Leipzig Lille Linz Lisbon Ljubljana London Lyon
Madrid Malmö Manchester Marseille Milan Munich Nantes Naples Nuremberg Oslo Paris Porto Prague Riga Rome Rotterdam Salzburg Seville
Stockholm Stuttgart Tallinn Toulouse Turin Utrecht Valencia Vienna Vilnius Warsaw Wrocław Zagreb Zürich""".split()
COUNTRIES = "DE AT CH FR NL BE DK SE NO FI PL CZ IT ES PT GB IE HR SI EE LV LT".split()
DOMAINS = "example.com example.org example.net mail.example shop.example post.example company.example".split()
WORDS = """the a to of and in is for with that on as was be by we it not are this customer order please from at will have has or an but
delivery has been asked invoice again after before until morning next week called address changed new account contract payment received
open sent parcel returned damaged replacement wanted discount granted reminder second third phone email no answer yesterday today tomorrow
product quality complaint solved warehouse Monday Tuesday Friday carrier late early package missing part spare number wrong right colour
size exchanged refund bank transfer credit card expired renewed newsletter unsubscribed prefers evening contact neighbour gate code floor
left behind house yellow door signature needed express cheaper offer annual volume framework agreement manager approved rejected pending
review checked stock item supplier waiting import customs declaration weight pallet forklift access narrow street holidays closed
January February March April May June July August September October November December company department purchase reference old
system migrated duplicate merged record note see ticket escalated support hotline callback promised done""".split()
COLOURS = ["red", "green", "blue", "black", "white", "yellow"]
STATUSES = ["new", "paid", "packed", "shipped", "delivered", "returned", "cancelled"]


def generator(kind):
    return random.Random(f"{SEED}/{kind}")


def falling(count):
    """Cumulative weights 1, 1/2, 1/3, ...: a few words are common and most are rare."""
    return list(itertools.accumulate(1 / n for n in range(1, count + 1)))


WORD_WEIGHTS, CITY_WEIGHTS, STATUS_WEIGHTS = falling(len(WORDS)), falling(len(CITIES)), [2, 4, 6, 14, 94, 97, 100]


def sentences(draw, most):
    said = [" ".join(draw.choices(WORDS, cum_weights=WORD_WEIGHTS, k=draw.randint(4, 16))).capitalize() + "."
            for _ in range(draw.randint(1, most))]
    return " ".join(said)


def literal(value):
    """A value as SQL."""
    if value is None:
        return "null"
    return str(value) if isinstance(value, (int, float)) else "'" + str(value).replace("'", "''") + "'"


def customer(draw, number, at):
    first, last = draw.choice(FIRST_NAMES), draw.choice(LAST_NAMES)
    plain = lambda name: name.lower().encode("ascii", "ignore").decode()
    attributes = {"language": draw.choice(COUNTRIES).lower(), "newsletter": draw.random() < 0.4, "segment": draw.choice("ABBCCCC")}
    if draw.random() < 0.6:
        attributes["favourites"] = {"colour": draw.choice(COLOURS), "numbers": draw.sample(range(1000), draw.randint(1, 4))}
    if draw.random() < 0.3:
        attributes["referred_by"] = draw.randint(1, max(1, number - 1))
    return [
        f"{first} {last}", f"{plain(first)}.{plain(last)}{number if draw.random() < 0.9 else f'.{number}'}@{draw.choice(DOMAINS)}",
        f"+{draw.randint(30, 49)} {draw.randint(20, 999)} {draw.randint(100_000, 99_999_999)}" if draw.random() < 0.85 else None,
        draw.choices(CITIES, cum_weights=CITY_WEIGHTS)[0], draw.choice(COUNTRIES), at, at,
        f"{1940 + draw.randint(0, 65)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}" if draw.random() < 0.7 else None,
        round(draw.expovariate(1 / 300), 2) if draw.random() < 0.75 else None,
        draw.choice([500, 1000, 2500, 10_000]) if draw.random() < 0.3 else None,
        f"{draw.getrandbits(128):032x}", json.dumps(attributes), sentences(draw, 3) if draw.random() < 0.8 else None,
    ]


def order(draw, customers, at):
    status = draw.choices(STATUSES, cum_weights=STATUS_WEIGHTS)[0]
    shipped = at + timedelta(seconds=draw.randint(3_600, 900_000)) if status in STATUSES[3:6] else None
    # Half of the orders come from recent customers.
    who = draw.randint(1, customers) if draw.random() < 0.5 else max(1, customers - int(draw.expovariate(1 / 2_000)))
    return [who, status, round(draw.lognormvariate(3.8, 0.9), 2), at, shipped, f"R{draw.randint(0, 10**9):09}",
            draw.randint(1, 9), sentences(draw, 1) if draw.random() < 0.1 else None]


def business(customers, orders):
    """The inserts of a small shop's life: transactions of a few statements, statements of a few rows."""
    draw = generator("business")
    of_customers = "customers(name, email, phone, city, country, created_at, updated_at, born, balance, credit, reference, attributes, note)"
    of_orders = "orders(customer_id, status, amount, ordered_at, shipped_at, number, lines, remark)"
    known, made, at = 0, 0, FIRST_DAY
    while known < customers or made < orders:
        statements = []
        for _ in range(draw.randint(1, 4)):
            at += timedelta(seconds=draw.expovariate(1 / 2_000), microseconds=draw.randint(0, 999_999))
            count = draw.randint(1, 20)
            if known * orders <= made * customers and known < customers:
                count = min(count, customers - known)
                rows = [customer(draw, known + n + 1, at) for n in range(count)]
                into, known = of_customers, known + count
            else:
                rows = [order(draw, known, at) for _ in range(count)]
                into, made = of_orders, made + count
            values = ", ".join("(" + ", ".join(map(literal, row)) + ")" for row in rows)
            statements.append(f"insert into {into} values {values};")
        yield f"begin; {' '.join(statements)} commit;\n"


def measurements(ticks, sensors):
    """Readings in the order of time, a COPY for each tick: walks of limited resolution, one column of full floats, nulls."""
    draw = generator("timeseries")
    temperature = [draw.uniform(5, 30) for _ in range(sensors)]
    at = FIRST_DAY
    for _ in range(ticks):
        at += timedelta(seconds=10)
        yield "copy measurements from stdin;\n"
        for sensor in range(sensors):
            if draw.random() < 0.02:
                continue
            temperature[sensor] += draw.gauss(0, 0.05)
            seen = at + timedelta(milliseconds=draw.randint(0, 3_000))
            yield (f"{seen}\t{1000 + sensor}\t{temperature[sensor]:.2f}\t{950 + temperature[sensor] + draw.gauss(0, 20)!r}\t"
                   f"{draw.choice([0, 0, 0, 0, 1, 2]) if draw.random() < 0.9 else chr(92) + 'N'}\n")
        yield "\\.\n"


def found_files(folders):
    for top in folders:
        for base, below, names in os.walk(top):
            below.sort()
            yield from (os.path.join(base, name) for name in sorted(names))


def documents(folders, smallest=3_000, largest=400_000):
    """Texts of these folders, (path, text), each once, in an order of their own; .gz unpacked."""
    paths = list(found_files(folders))
    generator("documents").shuffle(paths)
    seen = set()
    for path in paths:
        if os.path.islink(path) or not os.path.isfile(path):
            continue
        try:
            with (gzip.open if path.endswith(".gz") else open)(path, "rb") as handle:
                content = handle.read(largest + 1)
        except (OSError, EOFError, zlib.error):
            continue
        if not smallest <= len(content) <= largest or b"\0" in content:
            continue
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue
        digest = hashlib.sha256(content).digest()
        if digest not in seen:
            seen.add(digest)
            yield path, text


def copy_text(text):
    """A value of COPY's text format."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def random_rows(values, ids):
    """Two COPYs: bytea of a kilobyte, and pairs of uuid."""
    draw = generator("random")
    yield "copy random_bytes from stdin;\n"
    for number in range(values):
        yield f"{number}\t\\\\x{draw.randbytes(draw.randint(900, 1_100)).hex()}\n"
    yield "\\.\ncopy random_ids from stdin;\n"
    for _ in range(ids):
        yield f"{draw.getrandbits(128):032x}\t{draw.getrandbits(128):032x}\n"
    yield "\\.\n"

//! What lies in the clusters of the stories: pgbench's tables, and one of each kind of thing a data directory can
//! hold that a careless copy would lose.

use std::process::Command;

use crate::installation::system_tool;
use crate::server::{PORT, Server, run};

/// Fills a new primary: pgbench at this scale (about 15 MiB each), the schema `story`, and a second database.
pub fn fill(primary: &mut Server, scale: u32) {
    let mut pgbench = Command::new(system_tool("pgbench"));
    pgbench.args([
        "-i",
        "-q",
        "-F",
        "90",
        "-s",
        &scale.to_string(),
        "-U",
        "postgres",
        "-p",
        &PORT.to_string(),
    ]);
    pgbench.arg("-h").arg(primary.sockets()).arg("postgres");
    run(&mut pgbench);
    primary.sql(KINDS);
    primary.sql("CREATE DATABASE \"other One\"");
    primary.sql_in("other One", "CREATE TABLE notes AS SELECT i AS id, md5(i::text) AS note FROM generate_series(1, 5000) i");
}

const KINDS: &str = r"
CREATE SCHEMA story;
SET search_path = story;

-- Wide values that TOAST keeps outside, uncompressed.
CREATE TABLE events (id bigserial PRIMARY KEY, kind int NOT NULL, at timestamptz DEFAULT now(), payload text);
ALTER TABLE events ALTER payload SET STORAGE EXTERNAL;
INSERT INTO events (kind, payload) SELECT i % 7, repeat(md5(i::text), 1 + i % 200) FROM generate_series(1, 2000) i;
CREATE INDEX events_kind ON events USING hash (kind);
CREATE INDEX events_at ON events USING brin (at);

CREATE TABLE shapes (id int PRIMARY KEY, tags int[], place point);
INSERT INTO shapes SELECT i, ARRAY[i % 10, i % 100], point(i % 317, i % 211) FROM generate_series(1, 5000) i;
CREATE INDEX shapes_tags ON shapes USING gin (tags);
CREATE INDEX shapes_place ON shapes USING gist (place);
CREATE INDEX shapes_spread ON shapes USING spgist (place);

CREATE TABLE parted (id int, part int) PARTITION BY LIST (part);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2);
INSERT INTO parted SELECT i, 1 + i % 2 FROM generate_series(1, 3000) i;

CREATE MATERIALIZED VIEW kinds AS SELECT kind, count(*) FROM events GROUP BY kind;
CREATE TABLE empty (nothing int);
CREATE SEQUENCE counter;
SELECT nextval('counter') FROM generate_series(1, 77);

-- Contents that must not come along: only the init fork does.
CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY, what text);
INSERT INTO fleeting SELECT i, repeat('gone', 100) FROM generate_series(1, 3000) i;

SELECT lo_from_bytea(0, decode(repeat('cafe', 5000), 'hex'));

-- A prepared transaction lives in pg_twophase once a checkpoint has passed.
BEGIN;
INSERT INTO events (kind, payload) VALUES (42, 'undecided');
PREPARE TRANSACTION 'undecided';

VACUUM (ANALYZE) events;
CHECKPOINT;
";

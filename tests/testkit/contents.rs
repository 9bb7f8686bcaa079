//! What a server holds: a fingerprint of every table of every database, and the checks that find a copy unsound.

use std::collections::BTreeMap;

use crate::server::Server;

/// Rows and hash of each relation, by `database: relation`. Two servers with equal fingerprints hold the same rows,
/// sequences and catalogues. Unlogged relations are left out: a restore empties them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<String, String>);

// Each row's text is hashed to 64 bits and the hashes are summed: the order of the rows does not matter, their
// multiset does.
const FINGERPRINT: &str = r"
SET search_path = '';
SET extra_float_digits = 3;
SELECT format('SELECT %L, count(*), coalesce(sum(hashtextextended(%s, 0)::numeric), 0) FROM %s t', c.oid::regclass,
              CASE c.relkind WHEN 'S' THEN 'last_value || is_called::text' ELSE 't::text' END, c.oid::regclass)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm', 'S') AND c.relpersistence = 'p'
   AND (n.nspname !~ '^(pg_|information_schema)'
        OR c.relname IN ('pg_class', 'pg_attribute', 'pg_type', 'pg_proc', 'pg_index', 'pg_constraint', 'pg_namespace',
                         'pg_depend', 'pg_authid', 'pg_database', 'pg_tablespace', 'pg_largeobject', 'pg_sequence'))
 ORDER BY 1
\gexec
";

/// The fingerprint of all databases of a server.
pub fn fingerprint(server: &Server) -> Fingerprint {
    let mut relations = BTreeMap::new();
    for database in databases(server) {
        for line in server.sql_in(&database, FINGERPRINT).lines() {
            let (relation, facts) = line.split_once('|').expect("a relation and its facts");
            relations.insert(format!("{database}: {relation}"), facts.to_owned());
        }
    }
    assert!(
        relations.len() > 30,
        "a fingerprint of {} relations is no fingerprint",
        relations.len()
    );
    Fingerprint(relations)
}

impl Fingerprint {
    /// Panics with the relations that differ.
    pub fn assert_equals(&self, truth: &Fingerprint, what: &str) {
        let mut differences = Vec::new();
        for (relation, facts) in &truth.0 {
            match self.0.get(relation) {
                Some(own) if own == facts => {}
                Some(own) => {
                    differences.push(format!("{relation}: has {own}, should have {facts}"))
                }
                None => differences.push(format!("{relation}: missing")),
            }
        }
        for relation in self
            .0
            .keys()
            .filter(|relation| !truth.0.contains_key(*relation))
        {
            differences.push(format!("{relation}: should not be there"));
        }
        differences.truncate(20);
        assert!(
            differences.is_empty(),
            "{what}:\n{}",
            differences.join("\n")
        );
    }

    /// How many relations it covers.
    pub fn relations(&self) -> usize {
        self.0.len()
    }
}

/// The databases one can connect to.
pub fn databases(server: &Server) -> Vec<String> {
    let answer = server.sql("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1");
    answer.lines().map(str::to_owned).collect()
}

/// What must hold of pgbench's tables at every instant between transactions.
pub fn assert_pgbench_invariants(server: &Server) {
    let sums = server.sql(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
                (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
    );
    let sums: Vec<&str> = sums.split('|').collect();
    assert!(
        sums.iter().all(|sum| *sum == sums[0]),
        "pgbench's balances disagree: {sums:?}"
    );
}

/// Runs amcheck over every B-tree index and every heap and TOAST table of every database of a writable server, each
/// index held against its heap. Reading every page also makes the server verify every checksum.
pub fn assert_amcheck_clean(server: &Server) {
    let mut checked = 0;
    for database in databases(server) {
        server.sql_in(
            &database,
            "CREATE EXTENSION IF NOT EXISTS amcheck SCHEMA pg_catalog",
        );
        let indexes = server.sql_in(
            &database,
            "SELECT count(bt_index_check(c.oid, true)::text)
               FROM pg_class c JOIN pg_am a ON a.oid = c.relam JOIN pg_index i ON i.indexrelid = c.oid
              WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence <> 't' AND i.indisvalid AND i.indisready",
        );
        let damage = server.sql_in(
            &database,
            "SELECT c.oid::regclass, v.* FROM pg_class c, LATERAL verify_heapam(c.oid, check_toast => true) v
              WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't' LIMIT 20",
        );
        assert_eq!(damage, "", "amcheck found damage in {database}");
        checked += indexes.parse::<u64>().expect("a count");
    }
    assert!(checked > 100, "amcheck looked at {checked} indexes only");
}

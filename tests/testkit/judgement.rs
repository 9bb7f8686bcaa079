//! What a restored directory has to show before a story calls it good.

use std::fs;

use crate::contents::{Fingerprint, assert_amcheck_clean, assert_pgbench_invariants, fingerprint};
use crate::deadline::{PATIENCE, wait_until};
use crate::leeward::Backup;
use crate::server::{Server, Stop};
use crate::story::Story;
use crate::tools::{pg_checksums, pg_controldata, tools_understand};

/// Files that belong to the server that was backed up, and must not come along.
const LEFT_BEHIND: [&str; 4] = [
    "postmaster.pid",
    "postmaster.opts",
    "standby.signal",
    "backup_manifest",
];

/// Starts a restored server: it must come up by itself, with nothing but its own WAL, and open for writes on a new
/// timeline.
pub fn start_restored(story: &Story, server: &mut Server, backup: &Backup) {
    for name in LEFT_BEHIND {
        assert!(!server.data().join(name).exists(), "{name} came along");
    }
    if tools_understand(story.installation()) {
        assert_eq!(
            pg_controldata(
                story.installation(),
                server.data(),
                "Database system identifier"
            ),
            backup.text("system_identifier")
        );
    }
    server.start();
    wait_until("the restored server opens for writes", PATIENCE, || {
        !server.in_recovery()
    });
    let timeline: u64 = server
        .sql("SELECT timeline_id FROM pg_control_checkpoint()")
        .parse()
        .expect("a timeline");
    let new = server.sql(
        "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint",
    );
    let new: u64 = new.parse().expect("a timeline");
    assert!(
        new > backup.count("stop_timeline"),
        "no new timeline: {new} (checkpoint on {timeline})"
    );
}

/// Starts a restored server, holds its contents against the truth, lets amcheck and pgbench's invariants judge it,
/// and stops it clean, so that `pg_checksums` can have its say. It is left stopped.
pub fn assert_sound(story: &Story, server: &mut Server, backup: &Backup, truth: &Fingerprint) {
    start_restored(story, server, backup);
    fingerprint(server).assert_equals(
        truth,
        "the restored contents differ from what they were at the stop LSN",
    );
    assert_pgbench_invariants(server);
    // Unlogged relations start empty; a prepared transaction can still be decided.
    assert_eq!(server.sql("SELECT count(*) FROM story.fleeting"), "0");
    assert_eq!(server.sql("SELECT gid FROM pg_prepared_xacts"), "undecided");
    server.sql("COMMIT PREPARED 'undecided'");
    assert_eq!(
        server.sql("SELECT count(*) FROM story.events WHERE payload = 'undecided'"),
        "1"
    );
    server.sql("INSERT INTO story.fleeting VALUES (1, 'alive'); INSERT INTO story.shapes VALUES (0, '{1}', '(1,1)')");
    assert_amcheck_clean(server);
    server.stop(Stop::Fast);
    if tools_understand(story.installation()) {
        assert_eq!(
            pg_controldata(
                story.installation(),
                server.data(),
                "Database cluster state"
            ),
            "shut down"
        );
        pg_checksums(story.installation(), server.data());
    }
}

/// Says whether a restored directory looks half-made to PostgreSQL: without a control file no server starts on it.
pub fn cannot_start(server: &Server) -> bool {
    !fs::exists(server.data().join("global/pg_control")).unwrap_or(false)
}

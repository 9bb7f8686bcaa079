//! The truth about a moment: PostgreSQL's own point-in-time recovery, without Leeward.
//!
//! From a cold copy taken before the load began, and the primary's own WAL, a server replays every record that ends
//! at or before the LSN asked for, and none after. What it holds then is what the standby held at that LSN.

use std::fs::File;

use crate::deadline::{PATIENCE, wait_until};
use crate::pair::Pair;
use crate::server::Server;
use crate::story::Story;

/// The contents of the pair's cluster at `lsn`, on a server of its own. The primary must run (or have stopped later
/// than `lsn`), and its WAL must go beyond `lsn`.
pub fn server_at(story: &Story, pair: &Pair, lsn: &str) -> Server {
    let mut server = pair.base.cold_copy(story, "reference");
    File::create(server.data().join("recovery.signal")).expect("could not create recovery.signal");
    server.append_config(&format!(
        "restore_command = 'cp {}/pg_wal/%f %p'
         recovery_target_lsn = '{lsn}'
         recovery_target_inclusive = off
         recovery_target_timeline = 'latest'
         recovery_target_action = 'promote'
         autovacuum = off",
        pair.primary.data().display()
    ));
    server.start();
    wait_until("the reference has reached its target", PATIENCE, || {
        !server.in_recovery()
    });
    server
}

/// Writes a little on the primary, so that its WAL goes beyond any LSN seen before.
pub fn write_beyond(primary: &Server) {
    primary.sql("CREATE TABLE story.beyond (); DROP TABLE story.beyond; CHECKPOINT");
}

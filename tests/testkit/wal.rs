//! A server's WAL: how far it goes, how much of it is safe with Leeward, and the end of a segment.

use crate::oracle::{Address, address};
use crate::server::Server;

/// The slot of `leeward wal receive`, unless it is given another one.
pub const SLOT: &str = "leeward_wal";

impl Server {
    /// How far this primary has written and flushed WAL.
    pub fn written(&self) -> Address {
        address(&self.sql("SELECT pg_current_wal_flush_lsn()"))
    }

    /// Where the slot holds WAL from: what lies before was acknowledged as durable. 0 without a slot, or with one that was
    /// never used.
    pub fn acknowledged(&self) -> Address {
        let lsn = self.sql(&format!(
            "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
        ));
        if lsn.is_empty() { 0 } else { address(&lsn) }
    }

    /// Ends the current WAL segment of this primary, with a little in it, since an empty one cannot be ended. Returns its
    /// name.
    pub fn switch_wal(&self) -> String {
        self.sql(
            "CREATE TABLE IF NOT EXISTS switched ();
             DROP TABLE switched;
             SELECT pg_walfile_name(pg_switch_wal())",
        )
    }
}

//! The replication slot: what the server says of it, and when that is a reason to worry.

use std::time::Duration;

use leeward_pgformat::{Lsn, WalSegmentSize};
use leeward_postgres::Error as PostgresError;
use leeward_postgres::connection::Connection;
use leeward_postgres::server_facts::Role;

/// Longest wait for a query that only looks.
const PATIENCE: Duration = Duration::from_secs(20);

/// A line of `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotState {
    /// The process that uses it.
    pub(super) active_pid: Option<i32>,
    /// WAL is held from here.
    pub(super) restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub(super) wal_status: Option<String>,
    /// Bytes that may be written before the slot is in danger; absent without `max_slot_wal_keep_size`.
    pub(super) safe_bytes: Option<i64>,
    /// `max_slot_wal_keep_size` in bytes; negative without limit.
    pub(super) limit_bytes: i64,
    /// Whether it is a physical one.
    pub(super) physical: bool,
}

impl SlotState {
    /// Whether the server has let go of the WAL that the slot held.
    pub(super) fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }

    /// Whether the slot will be lost soon if nothing changes: less than a tenth of what it may hold is left, or less
    /// than two WAL segments.
    pub(super) fn is_at_risk(&self, size: WalSegmentSize) -> bool {
        let least = (self.limit_bytes / 10).max(2 * size.bytes() as i64);
        self.wal_status.as_deref() == Some("unreserved")
            || self
                .safe_bytes
                .is_some_and(|safe| safe < least.min(self.limit_bytes / 2))
    }
}

/// What the server is, and what it says of the slot; every role may ask.
pub(super) fn look(
    connection: &mut Connection,
    slot: &str,
) -> Result<(Role, WalSegmentSize, Option<SlotState>), PostgresError> {
    let sql = "SELECT pg_is_in_recovery(), \
                 (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_segment_size'), \
                 s.slot_name IS NOT NULL, s.active_pid, s.restart_lsn, s.wal_status, s.safe_wal_size, \
                 (SELECT setting::int8 * 1048576 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
                 s.slot_type = 'physical' \
               FROM (SELECT $1::text AS name) n LEFT JOIN pg_replication_slots s ON s.slot_name = n.name::name";
    let rows = connection.query_with_deadline(sql, &[Some(slot)], PATIENCE)?;
    let role = if rows.is_true(0, 0) {
        Role::Standby
    } else {
        Role::Primary
    };
    let size_bytes: u32 = rows.parse(0, 1)?;
    let size = WalSegmentSize::new(size_bytes).unwrap_or(WalSegmentSize::DEFAULT);
    let state = if rows.is_true(0, 2) {
        Some(SlotState {
            active_pid: rows.parse_optional(0, 3)?,
            restart_lsn: rows.parse_optional(0, 4)?,
            wal_status: rows.get(0, 5).map(str::to_owned),
            safe_bytes: rows.parse_optional(0, 6)?,
            limit_bytes: rows.parse_optional(0, 7)?.unwrap_or(-1),
            physical: rows.is_true(0, 8),
        })
    } else {
        None
    };
    Ok((role, size, state))
}

/// Whether a name can be a slot's: lower-case letters, digits and underscores, 63 at most (`slot.c`,
/// `ReplicationSlotValidateName`).
pub(super) fn is_slot_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: i64 = 1 << 20;

    fn state(safe_mib: Option<i64>, limit_mib: i64, status: &str) -> SlotState {
        SlotState {
            active_pid: None,
            restart_lsn: Some(Lsn(1)),
            wal_status: Some(status.to_owned()),
            safe_bytes: safe_mib.map(|mib| mib * MIB),
            limit_bytes: limit_mib * MIB,
            physical: true,
        }
    }

    #[test]
    fn what_is_a_risk() {
        let at_risk = |state: SlotState| state.is_at_risk(WalSegmentSize::DEFAULT);
        assert!(!at_risk(state(None, -1, "extended")));
        assert!(!at_risk(state(Some(500), 1000, "extended")));
        assert!(!at_risk(state(Some(101), 1000, "extended")));
        assert!(at_risk(state(Some(99), 1000, "extended")));
        assert!(at_risk(state(Some(31), 100, "extended")));
        assert!(
            !at_risk(state(Some(31), 40, "reserved")),
            "it may never have more"
        );
        assert!(at_risk(state(Some(-5), 40, "unreserved")));
        assert!(!state(Some(-5), 40, "unreserved").is_lost());
        assert!(state(None, 40, "lost").is_lost());
    }

    #[test]
    fn slot_names() {
        for name in ["leeward_wal", "a", "1", "_"] {
            assert!(is_slot_name(name), "{name}");
        }
        let long = "a".repeat(64);
        for name in ["", "Leeward", "a-b", "a b", "\"", &long] {
            assert!(!is_slot_name(name), "{name}");
        }
    }
}

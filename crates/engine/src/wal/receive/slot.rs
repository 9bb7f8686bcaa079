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
    /// How far the server has come: written by a primary, received or replayed by a standby.
    pub(super) current_lsn: Option<Lsn>,
    /// Bytes of WAL that slots may hold, `max_slot_wal_keep_size` or `wal_keep_size`; negative without limit.
    pub(super) limit_bytes: i64,
    /// Whether it is a physical one.
    pub(super) physical: bool,
}

impl SlotState {
    /// Whether the server has let go of the WAL that the slot held.
    pub(super) fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }

    /// Bytes that may still be written before the server lets go of what the slot holds; absent without limit. Reckoned
    /// as `pg_get_replication_slots` (`slotfuncs.c`) does, whose own `safe_wal_size` a standby gets wrong: it
    /// counts from what the server itself has written, which in recovery is nothing.
    pub(super) fn safe_bytes(&self, size: WalSegmentSize) -> Option<i64> {
        let (restart, current) = self.restart_lsn.zip(self.current_lsn)?;
        let limit_segments = u64::try_from(self.limit_bytes).ok()? / size.bytes();
        let end = (size.segment_number(restart) + limit_segments + 1) * size.bytes();
        Some(end.cast_signed() - current.0.cast_signed())
    }

    /// Whether the slot will be lost soon if nothing changes: less than a tenth of what it may hold is left, or less
    /// than two WAL segments.
    pub(super) fn is_at_risk(&self, size: WalSegmentSize) -> bool {
        let least = (self.limit_bytes / 10).max(2 * size.bytes() as i64);
        self.wal_status.as_deref() == Some("unreserved")
            || self
                .safe_bytes(size)
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
                 s.slot_name IS NOT NULL, s.active_pid, s.restart_lsn, s.wal_status, \
                 CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
                      ELSE pg_current_wal_lsn() END, \
                 (SELECT CASE WHEN m.setting = '-1' THEN -1 ELSE greatest(m.setting::int8, k.setting::int8) * 1048576 END \
                    FROM pg_settings m, pg_settings k \
                   WHERE m.name = 'max_slot_wal_keep_size' AND k.name = 'wal_keep_size'), \
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
            current_lsn: rows.parse_optional(0, 6)?,
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

    /// A slot behind which so many MiB were written.
    fn state(written_mib: u64, limit_mib: i64, status: &str) -> SlotState {
        SlotState {
            active_pid: None,
            restart_lsn: Some(Lsn(32 << 20)),
            wal_status: Some(status.to_owned()),
            current_lsn: Some(Lsn((32 + written_mib) << 20)),
            limit_bytes: limit_mib * MIB,
            physical: true,
        }
    }

    #[test]
    fn what_is_a_risk() {
        let size = WalSegmentSize::DEFAULT;
        let at_risk = |state: SlotState| state.is_at_risk(size);
        assert_eq!(
            state(0, 1600, "reserved").safe_bytes(size),
            Some(1616 * MIB)
        );
        assert_eq!(state(5000, -1, "extended").safe_bytes(size), None);
        assert!(!at_risk(state(5000, -1, "extended")));
        assert!(!at_risk(state(1400, 1600, "extended")));
        assert!(at_risk(state(1460, 1600, "extended")));
        assert!(at_risk(state(90, 96, "extended")));
        assert!(
            !at_risk(state(10, 32, "reserved")),
            "it may never have more"
        );
        assert!(at_risk(state(0, 32, "unreserved")));
        assert!(!state(60, 32, "unreserved").is_lost());
        assert!(state(60, 32, "lost").is_lost());
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

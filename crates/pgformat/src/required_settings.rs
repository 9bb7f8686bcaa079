//! The settings that a server in recovery may not have lower than the server that wrote the WAL.
//!
//! Facts from `CheckRequiredParameterValues` and `RecoveryRequiresIntParameter`
//! (`access/transam/xlogrecovery.c`, `xlog.c`).

/// The values of the server that wrote the WAL. With `hot_standby = on`, a server in recovery whose own setting is
/// lower aborts recovery, or pauses it for ever if it already answers queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequiredSettings {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

impl RequiredSettings {
    /// The names of the settings and their values.
    #[must_use]
    pub const fn by_name(&self) -> [(&'static str, u32); 5] {
        [
            ("max_connections", self.max_connections),
            ("max_worker_processes", self.max_worker_processes),
            ("max_wal_senders", self.max_wal_senders),
            ("max_prepared_transactions", self.max_prepared_transactions),
            ("max_locks_per_transaction", self.max_locks_per_transaction),
        ]
    }

    /// The higher value of each setting.
    #[must_use]
    pub fn max(self, other: RequiredSettings) -> RequiredSettings {
        RequiredSettings {
            max_connections: self.max_connections.max(other.max_connections),
            max_worker_processes: self.max_worker_processes.max(other.max_worker_processes),
            max_wal_senders: self.max_wal_senders.max(other.max_wal_senders),
            max_prepared_transactions: self
                .max_prepared_transactions
                .max(other.max_prepared_transactions),
            max_locks_per_transaction: self
                .max_locks_per_transaction
                .max(other.max_locks_per_transaction),
        }
    }
}

//! The files of transaction status (`pg_xact`) and of multixacts (`pg_multixact/offsets`), by the numbers they hold.
//!
//! Recovery reads a missing one as zeros, so that committed transactions become ones that never ended
//! (`SlruPhysicalReadPage`, `access/transam/slru.c`); whoever copies these directories has to know which files must be
//! there. Facts from `access/transam/clog.c`, `multixact.c` and `slru.c`.

use crate::MajorVersion;

/// Pages in one file (`SLRU_PAGES_PER_SEGMENT`).
const PAGES_PER_FILE: u32 = 32;

/// Transactions in one file of `pg_xact`: four a byte.
const TRANSACTIONS_PER_FILE: u32 = 8192 * 4 * PAGES_PER_FILE;

/// The first transaction that is not one of the special ones (`FirstNormalTransactionId`).
const FIRST_TRANSACTION: u32 = 3;

/// The first multixact (`FirstMultiXactId`).
const FIRST_MULTIXACT: u32 = 1;

/// The names of the files of `pg_xact` that hold the status of all transactions from `oldest` to the one before `next`.
/// Numbers wrap around.
pub fn transaction_status_files(oldest: u32, next: u32) -> impl Iterator<Item = String> {
    files(oldest, next, FIRST_TRANSACTION, TRANSACTIONS_PER_FILE)
}

/// The names of the files of `pg_multixact/offsets` for all multixacts from `oldest` to the one before `next`. Numbers
/// wrap around.
pub fn multixact_offset_files(
    major: MajorVersion,
    oldest: u32,
    next: u32,
) -> impl Iterator<Item = String> {
    // An offset has 4 bytes, and 8 since 19.
    let per_page = if major.as_u32() >= 19 { 1024 } else { 2048 };
    files(oldest, next, FIRST_MULTIXACT, per_page * PAGES_PER_FILE)
}

fn files(oldest: u32, next: u32, first: u32, per_file: u32) -> impl Iterator<Item = String> {
    let oldest = oldest.max(first);
    let empty = oldest == next.max(first);
    // Behind the highest number comes `first`.
    let last = if next <= first { u32::MAX } else { next - 1 };
    let count = u32::MAX / per_file + 1;
    let (begin, end) = (oldest / per_file, last / per_file);
    let steps = if empty {
        0
    } else if begin == end && last < oldest {
        // All the way around.
        count
    } else {
        (end + count - begin) % count + 1
    };
    (0..steps).map(move |step| format!("{:04X}", (begin + step) % count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(oldest: u32, next: u32) -> Vec<String> {
        transaction_status_files(oldest, next).collect()
    }

    #[test]
    fn a_range_of_transactions_has_its_files() {
        assert_eq!(names(3, 3), [""; 0]);
        assert_eq!(names(3, 4), ["0000"]);
        assert_eq!(names(722, 1 << 20), ["0000"]);
        assert_eq!(names(722, (1 << 20) + 1), ["0000", "0001"]);
        assert_eq!(names(3 << 20, (5 << 20) + 7), ["0003", "0004", "0005"]);
        assert_eq!(names(3 << 20, 3 << 20), [""; 0]);
    }

    #[test]
    fn numbers_wrap_around() {
        assert_eq!(names(u32::MAX - 5, 3), ["0FFF"]);
        assert_eq!(names(u32::MAX - 5, 4), ["0FFF", "0000"]);
        assert_eq!(names(4094 << 20, 1 << 20), ["0FFE", "0FFF", "0000"]);
        assert_eq!(names(4094 << 20, 1 << 20).len(), 3);
        assert_eq!(names(100, 99).len(), 4096);
    }

    #[test]
    fn multixacts_lie_closer_since_19() {
        let names = |major: u32, oldest, next| {
            let major = MajorVersion::from_u32(major).expect("a version");
            multixact_offset_files(major, oldest, next).collect::<Vec<_>>()
        };
        assert_eq!(names(18, 1, 1), [""; 0]);
        assert_eq!(names(18, 1, 65536), ["0000"]);
        assert_eq!(names(18, 1, 65537), ["0000", "0001"]);
        assert_eq!(names(19, 1, 65537), ["0000", "0001", "0002"]);
        assert_eq!(names(19, u32::MAX, 2), ["1FFFF", "0000"]);
        assert_eq!(names(18, u32::MAX, 1), ["FFFF"]);
        assert_eq!(names(18, u32::MAX, 2), ["FFFF", "0000"]);
    }
}

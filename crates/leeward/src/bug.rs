//! Panics: one line that says where, and an exit code like any failure's.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::output;

/// Runs `command`; a panic in it is told once, in one line, and becomes `failed`.
pub fn guard(failed: ExitCode, command: impl FnOnce() -> ExitCode) -> ExitCode {
    static TOLD: AtomicBool = AtomicBool::new(false);
    std::panic::set_hook(Box::new(|panic| {
        // A panic of one thread often makes others panic.
        if TOLD.swap(true, Ordering::Relaxed) {
            return;
        }
        output::say(&describe(panic));
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            output::say(&backtrace.to_string());
        }
    }));
    std::panic::catch_unwind(AssertUnwindSafe(command)).unwrap_or(failed)
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let place = panic.location().map_or_else(
        || "an unknown place".to_owned(),
        |place| format!("{}:{}", place.file(), place.line()),
    );
    let message = panic.payload_as_str().unwrap_or("no message");
    format!(
        "error: a mistake in leeward {}: panicked at {place}: {}. Please report this line and the command to the maintainers of leeward.",
        env!("CARGO_PKG_VERSION"),
        output::escaped(message)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::{Arc, Mutex};

    #[test]
    fn a_panic_is_a_failure_that_is_described_in_one_line() {
        let code = |code: ExitCode| format!("{code:?}");
        let panicked = guard(ExitCode::from(128), || {
            std::thread::spawn(|| panic!("in a thread"))
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        assert_eq!(code(panicked), code(ExitCode::from(128)));
        assert_eq!(
            code(guard(ExitCode::from(1), || ExitCode::from(4))),
            code(ExitCode::from(4))
        );

        let told = Arc::new(Mutex::new(String::new()));
        let telling = Arc::clone(&told);
        std::panic::set_hook(Box::new(move |panic| {
            *telling.lock().expect("a lock") = describe(panic);
        }));
        let _panic = std::panic::catch_unwind(|| panic!("page {}\n\u{1b}[2J", 7));
        let _hook = std::panic::take_hook();
        let told = told.lock().expect("a lock").clone();
        assert!(
            told.contains("panicked at crates/leeward/src/bug.rs:"),
            "{told}"
        );
        assert!(
            told.contains("page 7\\n\\u{1b}[2J. Please report"),
            "{told}"
        );
        assert_eq!(told.lines().count(), 1);
    }
}

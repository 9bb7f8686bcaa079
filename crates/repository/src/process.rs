//! Which process this is, in terms that outlive it: a process id alone is used again.

use std::fs;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// A process, told apart from every other one of this host, before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The host's name.
    pub host: String,
    /// Linux's identifier of this run of the kernel; empty where there is none.
    pub boot_id: String,
    /// The number space that the process id belongs to (containers have their own); empty where unknown.
    #[serde(default)]
    pub pid_namespace: String,
    /// The process id.
    pub pid: u32,
    /// When the process started, in clock ticks since boot (`/proc/<pid>/stat`, field 22); 0 where unknown.
    pub process_start_ticks: u64,
}

impl ProcessIdentity {
    /// This process.
    pub fn current() -> ProcessIdentity {
        static CURRENT: OnceLock<ProcessIdentity> = OnceLock::new();
        CURRENT
            .get_or_init(|| {
                let pid = std::process::id();
                ProcessIdentity {
                    host: rustix::system::uname()
                        .nodename()
                        .to_string_lossy()
                        .into_owned(),
                    boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")
                        .map(|id| id.trim().to_owned())
                        .unwrap_or_default(),
                    pid_namespace: fs::read_link("/proc/self/ns/pid")
                        .map(|link| link.to_string_lossy().into_owned())
                        .unwrap_or_default(),
                    pid,
                    process_start_ticks: stat(pid).map_or(0, |stat| stat.start_ticks),
                }
            })
            .clone()
    }

    /// Whether the process is known to be gone. `false` also when that cannot be told from here: another host, another
    /// container, a system without `/proc`.
    pub fn is_known_dead(&self) -> bool {
        let here = ProcessIdentity::current();
        if self.boot_id.is_empty() || self.boot_id != here.boot_id {
            // Another boot id on a host of the same name may be a host that was restarted, or a namesake.
            return false;
        }
        if self.pid_namespace.is_empty() || self.pid_namespace != here.pid_namespace {
            return false;
        }
        // Signal 0 asks the kernel itself: /proc may hide other users' processes (hidepid), and then looks empty.
        let Some(pid) = i32::try_from(self.pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        else {
            return false;
        };
        if rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
            return true;
        }
        match stat(self.pid) {
            None => false,
            // A zombie writes nothing any more.
            Some(Stat {
                state: 'Z' | 'X', ..
            }) => true,
            Some(Stat { start_ticks, .. }) => {
                self.process_start_ticks != 0 && start_ticks != self.process_start_ticks
            }
        }
    }
}

struct Stat {
    state: char,
    start_ticks: u64,
}

/// The parts of `/proc/<pid>/stat` that matter here (proc_pid_stat(5)).
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in parentheses and may hold anything, so count from the last one. What follows
    // begins with field 3, the state; field 22 is the start.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_ticks = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start_ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_its_namesakes_do_not() {
        let this = ProcessIdentity::current();
        assert!(!this.is_known_dead());
        assert!(this.process_start_ticks > 0);

        let namesake = ProcessIdentity {
            process_start_ticks: this.process_start_ticks - 1,
            ..this.clone()
        };
        assert!(
            namesake.is_known_dead(),
            "the process id is used again by somebody else"
        );
        let elsewhere = ProcessIdentity {
            boot_id: "another".into(),
            ..namesake.clone()
        };
        assert!(
            !elsewhere.is_known_dead(),
            "another host cannot be judged from here"
        );
        let container = ProcessIdentity {
            pid_namespace: "pid:[1]".into(),
            ..namesake
        };
        assert!(
            !container.is_known_dead(),
            "another container cannot be judged from here"
        );
    }

    #[test]
    fn an_ended_process_is_dead() {
        let mut child = std::process::Command::new("true")
            .spawn()
            .expect("true starts");
        let pid = child.id();
        child.wait().expect("true ends");
        let dead = ProcessIdentity {
            pid,
            process_start_ticks: 0,
            ..ProcessIdentity::current()
        };
        assert!(dead.is_known_dead());
    }
}

//! Opening a session: to one address step by step, to several by libpq's own loop.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::{ConnectFailure, Error};
use crate::libpq::{Progress, Session};
use crate::target::ResolvedTarget;

/// Opens the session. libpq tells the SQLSTATE of a refused connection in its verbose text only, and that can be asked
/// for only by driving the connection step by step; libpq's own loop is needed where it has several addresses to try,
/// each with a timeout of its own.
pub(crate) fn open(target: &ResolvedTarget) -> Result<Session, Error> {
    let parameters: Vec<(&str, &str)> = target
        .parameters
        .iter()
        .map(|(keyword, value)| (keyword.as_str(), value.as_str()))
        .collect();
    let nul = |_| Error::InvalidConninfo {
        reason: "it holds a NUL byte".to_owned(),
    };
    let mut late = None;
    let mut session = if has_one_address(&target.host) {
        let mut session = Session::start(&parameters).map_err(nul)?;
        session.set_verbose_errors(true);
        late = drive(&mut session, target.connect_timeout);
        session
    } else {
        Session::connect(&parameters).map_err(nul)?
    };
    if late.is_none() && session.is_ok() {
        session.set_verbose_errors(false);
        return Ok(session);
    }
    let (message, sqlstate) = late.map_or_else(
        || read_verbose(&session.error_message()),
        |late| (late, None),
    );
    Err(Error::ConnectFailed(Box::new(ConnectFailure {
        target: describe(&session),
        message,
        sqlstate,
        password_missing: session.needs_password(),
        postmaster: target.postmaster.clone(),
    })))
}

fn has_one_address(host: &str) -> bool {
    let local =
        host.is_empty() || host.starts_with('/') || host.starts_with('@') || host == "localhost";
    (local && !host.contains(',')) || host.parse::<IpAddr>().is_ok()
}

/// Drives a connection until it stands or failed. What is wrong, if the time ran out.
fn drive(session: &mut Session, timeout: Option<Duration>) -> Option<String> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut progress = if session.is_bad() {
        Progress::Failed
    } else {
        Progress::Writing
    };
    loop {
        let flags = match progress {
            Progress::Done | Progress::Failed => return None,
            Progress::Reading => PollFlags::IN,
            Progress::Writing => PollFlags::OUT,
        };
        if let Some(socket) = session.socket()
            && !wait_for(socket, flags, deadline)
        {
            return Some(format!(
                "no answer within {} s",
                timeout.unwrap_or_default().as_secs()
            ));
        }
        progress = session.poll_connect();
    }
}

/// Waits until a socket is ready (or broken). `false` at the deadline.
pub(crate) fn wait_for(
    socket: BorrowedFd<'_>,
    flags: PollFlags,
    deadline: Option<Instant>,
) -> bool {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let mut descriptors = [PollFd::from_borrowed_fd(socket, flags)];
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(0) => return false,
            Err(Errno::INTR) => {}
            // A broken descriptor is found out by whoever reads it.
            Ok(_) | Err(_) => return true,
        }
    }
}

pub(crate) fn describe(session: &Session) -> String {
    let [host, port, database, user] = session.address();
    [
        ("host", host),
        ("port", port),
        ("dbname", database),
        ("user", user),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(keyword, value)| format!("{keyword}={value}"))
    .collect::<Vec<_>>()
    .join(" ")
}

/// Takes the SQLSTATE and the source location out of libpq's verbose text, which has the form
/// `connection to server on socket "..." failed: FATAL:  28P01: message` + `LOCATION:  function, file:line`.
fn read_verbose(message: &str) -> (String, Option<String>) {
    let mut sqlstate = None;
    let mut lines: Vec<String> = Vec::new();
    for line in message.lines() {
        if line.starts_with("LOCATION:  ") {
            continue;
        }
        let code = line.match_indices(":  ").find_map(|(at, gap)| {
            let code = line.get(at + gap.len()..at + gap.len() + 5)?;
            let is_code = code
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
                && line[at + gap.len() + 5..].starts_with(": ");
            is_code.then_some((at + gap.len(), code))
        });
        match code {
            Some((at, code)) => {
                sqlstate = Some(code.to_owned());
                lines.push(format!(
                    "{}{}",
                    line[..at].replace(":  ", ": "),
                    &line[at + 7..]
                ));
            }
            None => lines.push(line.trim().to_owned()),
        }
    }
    (lines.join("; "), sqlstate)
}

pub(crate) fn one_line(message: &str) -> String {
    message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sqlstate_is_taken_out_of_the_text() {
        let verbose = "connection to server on socket \"/tmp/.s.PGSQL.5432\" failed: FATAL:  28P01: password \
                       authentication failed for user \"x\"\nLOCATION:  auth_failed, auth.c:338";
        let (message, sqlstate) = read_verbose(verbose);
        assert_eq!(sqlstate.as_deref(), Some("28P01"));
        assert_eq!(
            message,
            "connection to server on socket \"/tmp/.s.PGSQL.5432\" failed: FATAL: password authentication failed \
             for user \"x\""
        );
    }

    #[test]
    fn libpqs_own_text_has_none() {
        let plain = "connection to server at \"::1\", port 1 failed: Connection refused\n\tIs the server running?";
        let (message, sqlstate) = read_verbose(plain);
        assert_eq!(sqlstate, None);
        assert_eq!(
            message,
            "connection to server at \"::1\", port 1 failed: Connection refused; Is the server running?"
        );
    }

    #[test]
    fn only_a_single_address_is_driven_step_by_step() {
        for host in ["", "/tmp", "@abstract", "localhost", "127.0.0.1", "::1"] {
            assert!(has_one_address(host), "{host}");
        }
        for host in [
            "/tmp,/var/run",
            "db.example.com",
            "127.0.0.1,127.0.0.2",
            "localhost,other",
        ] {
            assert!(!has_one_address(host), "{host}");
        }
    }
}

//! The crate against real servers. Programs are looked for in `LEEWARD_TEST_PG_BIN_<major>`, in `.leeward-work/pg<major>`
//! of the project, and where packages put them; `scripts/test` installs them.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed, and says why"
)]

mod backup;
mod cluster;
mod connecting;
mod privileges;
mod queries;
mod tls;

//! The kit the stories are told with: real PostgreSQL servers of every installed major version, load on them, the
//! `leeward` program run as a user runs it, and ways to hold what it restored against what the servers say.
//!
//! Nothing here is part of the product, and nothing here uses the product's own code to judge it: SQL goes through
//! `psql`, servers are started as plain processes, and the truth about a stop LSN comes from PostgreSQL's own
//! point-in-time recovery ([`reference`]).
//!
//! Everything panics on failure, with what was done and what came back: these are tests.

pub mod archive;
pub mod clock;
pub mod contents;
pub mod damage;
pub mod dataset;
pub mod deadline;
pub mod faults;
pub mod history;
pub mod installation;
pub mod judgement;
pub mod leeward;
pub mod load;
pub mod oracle;
pub mod pair;
pub mod processes;
pub mod reference;
pub mod s3;
pub mod server;
pub mod session;
pub mod story;
pub mod targets;
pub mod timelines;
pub mod tls;
pub mod tools;
pub mod wal;

//! A bucket behind a bad line: requests fail, stall and break off, and the backup and its restore are whole all the
//! same.

use leeward_tests::contents::fingerprint;
use leeward_tests::dataset;
use leeward_tests::faults::{Fault, FaultProxy};
use leeward_tests::judgement::assert_sound;
use leeward_tests::leeward::Leeward;
use leeward_tests::pair::Pair;
use leeward_tests::s3::S3Server;
use leeward_tests::server::Initdb;
use leeward_tests::story::Story;

const FAULTS: &[Fault] = &[Fault::CutBefore, Fault::CutAfterEffect, Fault::CutBody];

fn check(major: u32) {
    let story = Story::begin(major);
    let mut pair = Pair::with(&story, &Initdb::default(), |primary| {
        dataset::fill(primary, 2)
    });
    pair.stop_primary();
    let truth = fingerprint(&pair.standby);
    let s3 = S3Server::start();
    let line = FaultProxy::start(s3.address());
    let leeward = Leeward::over(&story, &s3.repository("bad-line"), &line.endpoint());
    line.set_random(25, 20, FAULTS);
    let backup = leeward.back_up(&pair.standby, &["--compression", "none"]);
    let restored = leeward.restored("latest", "restored", &[]);
    assert!(
        line.injected() > 5,
        "only {} of {} requests were disturbed",
        line.injected(),
        line.requests()
    );
    let mut restored = restored;
    assert_sound(&story, &mut restored, &backup, &truth);
}

#[test]
fn postgres_15() {
    check(15);
}

#[test]
fn postgres_19() {
    check(19);
}

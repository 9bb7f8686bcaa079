//! What the fuzzer has learned (see `fuzz/README.md`): every input of its corpus, given to its targets again.

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::panic;
use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut inputs = 0;
    let mut failed = Vec::new();
    for entry in fs::read_dir(&corpus).expect("the corpus") {
        let path = entry.expect("an input").path();
        let input = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        inputs += 1;
        if panic::catch_unwind(|| run(&input)).is_err() {
            failed.push(path);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
    assert!(inputs > 50, "{} holds {inputs} inputs", corpus.display());
}

#[test]
fn any_pages() {
    replay("encode", fuzz::encode);
}

#[test]
fn any_bytes() {
    replay("decode", fuzz::decode);
}

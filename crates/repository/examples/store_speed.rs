//! How fast a store takes and gives: `store_speed [local|s3] [DIRECTORY]` writes packs of 128 MiB, durably, and reads
//! them back in ranges of 1 MiB by four threads. The S3 server is the tests' own, on loopback.
#![expect(clippy::print_stdout, reason = "it reports to a person")]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leeward_repository::store::local::LocalStore;
use leeward_repository::store::{self, Key, Secret, Store, StoreOptions};
use leeward_tests::s3::{ACCESS_KEY_ID, S3Server, SECRET_ACCESS_KEY};

const PACKS: u64 = 8;
const PACK_BYTES: u64 = 128 << 20;
const PIECE: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().unwrap_or_default();
    if kind == "s3" {
        let server = S3Server::start();
        let options = StoreOptions {
            endpoint: Some(server.endpoint()),
            access_key_id: Some(Secret::new(ACCESS_KEY_ID)),
            secret_access_key: Some(Secret::new(SECRET_ACCESS_KEY)),
            ..StoreOptions::default()
        };
        measure(&store::open(
            &server.repository("speed").parse()?,
            &options,
        )?)
    } else {
        let parent = arguments.next().unwrap_or_else(|| ".".to_owned());
        let folder = tempfile::tempdir_in(parent)?;
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().to_owned()));
        measure(&store)
    }
}

fn measure(store: &Arc<dyn Store>) -> Result<(), Box<dyn Error>> {
    let piece: Vec<u8> = (0..PIECE)
        .map(|n| (n.wrapping_mul(0x9e37_79b9) >> 13) as u8)
        .collect();
    let begun = Instant::now();
    let mut finishing = Duration::ZERO;
    for pack in 0..PACKS {
        let mut upload = store.upload(&Key::new(format!("packs/{pack}.pack"))?)?;
        for _ in 0..PACK_BYTES / PIECE {
            upload.write(&piece)?;
        }
        let last = Instant::now();
        upload.finish()?;
        finishing += last.elapsed();
    }
    report("write", begun.elapsed());
    println!("of which waiting in finish(): {finishing:.2?}");

    let begun = Instant::now();
    std::thread::scope(|scope| {
        for reader in 0..4 {
            scope.spawn(move || -> Result<(), store::StoreError> {
                for number in (reader..PACKS * (PACK_BYTES / PIECE)).step_by(4) {
                    let key = Key::new(format!("packs/{}.pack", number % PACKS))?;
                    let offset = number / PACKS * PIECE;
                    store.get_range(&key, offset..offset + PIECE)?;
                }
                Ok(())
            });
        }
    });
    report("read", begun.elapsed());
    Ok(())
}

fn report(what: &str, time: Duration) {
    let megabytes = (PACKS * PACK_BYTES) as f64 / 1e6;
    println!(
        "{what}: {:.0} MB/s ({megabytes:.0} MB in {time:.2?})",
        megabytes / time.as_secs_f64()
    );
}

//! Walks whole WAL segments, in the order given, and says what they hold and how fast that went:
//!
//!     cargo run --release -p leeward-pgformat --example scan_wal -- [--events] SEGMENT...
#![expect(
    clippy::print_stdout,
    reason = "a program whose output is what it is for"
)]

use std::error::Error;
use std::time::Instant;

use leeward_pgformat::{WalLongHeader, WalScanner};

fn main() -> Result<(), Box<dyn Error>> {
    let mut paths: Vec<String> = std::env::args().skip(1).collect();
    let tell = paths.first().is_some_and(|first| first == "--events");
    if tell {
        paths.remove(0);
    }
    let segments = paths
        .iter()
        .map(std::fs::read)
        .collect::<Result<Vec<_>, _>>()?;
    let header = WalLongHeader::parse(segments.first().ok_or("which segments?")?)?;
    let mut scanner = WalScanner::new(header.page_address, header.segment_size);
    let started = Instant::now();
    for segment in &segments {
        scanner.feed(segment, &mut |event| {
            if tell {
                println!("{event:?}");
            }
        })?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let megabytes = segments.iter().map(Vec::len).sum::<usize>() as f64 / 1e6;
    println!("{:#?}", scanner.contents());
    println!(
        "valid up to {}, {}; {megabytes:.0} MB in {:.1} ms: {:.2} GB/s",
        scanner.end_of_valid(),
        match scanner.expect_complete() {
            Ok(()) => "complete".to_owned(),
            Err(end) => format!("then {}", end.problem),
        },
        seconds * 1e3,
        megabytes / 1e3 / seconds
    );
    Ok(())
}

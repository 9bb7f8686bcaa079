//! How small and how fast frames of real files become, by every way there is of storing them. [`HELP`] says more.
#![expect(clippy::print_stdout, reason = "a program that reports")]

mod files;
mod measure;
mod way;

use std::error::Error;
use std::path::PathBuf;

use serde_json::json;

use crate::files::{Kind, kinds};
use crate::measure::{Measured, measure};
use crate::way::Way;

const HELP: &str = "\
usage: page_speed [--json] [--by-type] [--rounds N] [--ways WAY,WAY,...] FOLDER...

Each FOLDER is one kind of data: files as they lie in a data directory (base/5/16384 and so on; scripts/bench pages makes
such folders), or any others. Frames are cut as a backup cuts them, and each is compared with what comes back. MB are 10^6
plain bytes; speeds are CPU time of one thread, the median of all rounds; \"times\" is the median of each round's ratio.

  --by-type   frames of one type of page each: heap, btree, gin, ...
  --rounds    default 5; in each the ways take turns on a few frames at a time
  --ways      the first is what the others are compared with
                library:zstd:N  zstd's own level N
                codec:C         leeward's codec: zstd, zstd:N, lz4, none
                pages:C         the same behind the page transform, and nothing else
                frame:C         all that a frame takes: the codec and the hashes of plain and stored bytes; with pages,
                                pages+zstd:N and pages+lz4 pages taken apart, put together again and compared
              default library:zstd:3,library:zstd:1,library:zstd:9,pages:zstd:1,pages:zstd:3,frame:zstd:3,frame:pages";
const WAYS: &str = "library:zstd:3,library:zstd:1,library:zstd:9,pages:zstd:1,pages:zstd:3,frame:zstd:3,frame:pages";

struct Asked {
    json: bool,
    by_type: bool,
    rounds: usize,
    ways: Vec<String>,
    folders: Vec<PathBuf>,
}

fn arguments() -> Result<Asked, Box<dyn Error>> {
    let mut asked = Asked {
        json: false,
        by_type: false,
        rounds: 5,
        ways: WAYS.split(',').map(str::to_owned).collect(),
        folders: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(HELP);
        match argument.as_str() {
            "--json" => asked.json = true,
            "--by-type" => asked.by_type = true,
            "--rounds" => asked.rounds = value()?.parse()?,
            "--ways" => asked.ways = value()?.split(',').map(str::to_owned).collect(),
            _ if argument.starts_with('-') => return Err(HELP.into()),
            _ => asked.folders.push(argument.into()),
        }
    }
    if asked.folders.is_empty() || asked.rounds == 0 {
        return Err(HELP.into());
    }
    Ok(asked)
}

fn print_table(title: &str, ways: &[String], measured: &[Measured]) {
    println!("{title}");
    println!(
        "  {:<18}{:>12}{:>7}{:>15}{:>7}{:>17}{:>7}",
        "way", "stored MB", "times", "compress MB/s", "times", "decompress MB/s", "times"
    );
    let first = &measured[0];
    for (way, one) in ways.iter().zip(measured) {
        println!(
            "  {way:<18}{:>12.3}{:>7.3}{:>15.0}{:>7.2}{:>17.0}{:>7.2}",
            one.stored_bytes as f64 / 1e6,
            one.stored_bytes as f64 / first.stored_bytes as f64,
            one.plain_bytes as f64 / 1e6 / measure::median(one.compress_s.clone()),
            measure::median_ratio(&first.compress_s, &one.compress_s),
            one.plain_bytes as f64 / 1e6 / measure::median(one.decompress_s.clone()),
            measure::median_ratio(&first.decompress_s, &one.decompress_s),
        );
    }
}

fn title(kind: &Kind) -> String {
    format!(
        "{}: {:.1} MB, {} files, {} frames; {} pages, the checksum of {} of them right",
        kind.name,
        kind.bytes() as f64 / 1e6,
        kind.files,
        kind.frames.len(),
        kind.pages(),
        kind.proven_pages()
    )
}

fn main() -> Result<(), Box<dyn Error>> {
    let asked = arguments()?;
    let mut report = Vec::new();
    let mut total: Option<Vec<Measured>> = None;
    for folder in &asked.folders {
        for kind in kinds(folder, asked.by_type)? {
            // New ones for each: nothing is carried from one kind to the next.
            let ways: Result<Vec<Way>, _> = asked.ways.iter().map(|way| Way::new(way)).collect();
            let measured = measure(&kind.frames, &mut ways?, asked.rounds)?;
            if asked.json {
                let ways = asked.ways.iter().zip(&measured).map(|(way, one)| {
                    json!({"way": way, "stored_bytes": one.stored_bytes, "compress_s": one.compress_s,
                           "decompress_s": one.decompress_s})
                });
                report.push(json!({"kind": kind.name, "bytes": kind.bytes(), "files": kind.files,
                                   "frames": kind.frames.len(), "pages": kind.pages(),
                                   "proven_pages": kind.proven_pages(), "ways": ways.collect::<Vec<_>>()}));
            } else {
                print_table(&title(&kind), &asked.ways, &measured);
            }
            match &mut total {
                None => total = Some(measured),
                Some(total) => total.iter_mut().zip(&measured).for_each(|(t, m)| t.add(m)),
            }
        }
    }
    if asked.json {
        println!("{}", json!({"rounds": asked.rounds, "kinds": report}));
    } else if let Some(total) = total {
        let title = format!("total: {:.1} MB", total[0].plain_bytes as f64 / 1e6);
        print_table(&title, &asked.ways, &total);
    }
    Ok(())
}

//! How fast and how small frames of real files become: `frame_speed COMPRESSION FILE...`. Files share frames as small
//! relations do in a backup. Prints one line for each kind of work, in CPU time of one thread, best of five passes.
#![expect(clippy::print_stdout, reason = "a program that reports")]

use std::error::Error;

use leeward_repository::codec::{Compression, Compressor, Decompressor};
use leeward_repository::frame::{FRAME_BYTES, FrameEntry, decode_frame_into, encode_frame};
use leeward_repository::hash::Hash;
use rustix::time::{ClockId, clock_gettime};

fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Best of five.
fn best_s(mut work: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = cpu_s();
        work()?;
        best = best.min(cpu_s() - start);
    }
    Ok(best)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let compression: Compression = arguments
        .next()
        .ok_or("usage: frame_speed COMPRESSION FILE...")?
        .parse()?;
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for file in arguments {
        let bytes = std::fs::read(file)?;
        match frames.last_mut() {
            Some(frame) if frame.len() + bytes.len() <= FRAME_BYTES => {
                frame.extend_from_slice(&bytes)
            }
            _ => frames.extend(bytes.chunks(FRAME_BYTES).map(<[u8]>::to_vec)),
        }
    }
    let plain_bytes: usize = frames.iter().map(Vec::len).sum();

    let mut compressor = Compressor::new(compression);
    let mut encoded = Vec::new();
    let encode_s = best_s(|| {
        encoded.clear();
        for frame in &frames {
            encoded.push(encode_frame(&mut compressor, frame, 8192)?);
        }
        Ok(())
    })?;
    let hash_s = best_s(|| {
        for frame in &frames {
            std::hint::black_box(Hash::of(frame));
        }
        Ok(())
    })?;
    let stored_bytes: usize = encoded.iter().map(|frame| frame.stored.len()).sum();
    let entries: Vec<FrameEntry> = encoded
        .iter()
        .map(|frame| FrameEntry {
            offset: 0,
            stored_length: frame.stored.len() as u32,
            transformed_length: frame.transformed_length,
            plain_length: frame.plain_length,
            page_size: frame.page_size,
            compression: frame.compression as u8,
            transform: frame.transform,
            sealing: frame.sealing,
            plain_hash: frame.plain_hash,
            stored_hash: frame.stored_hash,
            pieces: Vec::new(),
        })
        .collect();
    let mut decompressor = Decompressor::new();
    let mut plain = Vec::new();
    let decode_s = best_s(|| {
        for (entry, frame) in entries.iter().zip(&encoded) {
            decode_frame_into(entry, &frame.stored, &mut decompressor, &mut plain)?;
        }
        Ok(())
    })?;
    let mb = plain_bytes as f64 / 1e6;
    println!(
        "{compression:>8} {mb:7.1} MB, {} frames: stored {:.3} MB, ratio {:.2}; encode {:.0} MB/s (of it one hash {:.0} MB/s), decode {:.0} MB/s",
        frames.len(),
        stored_bytes as f64 / 1e6,
        plain_bytes as f64 / stored_bytes as f64,
        mb / encode_s,
        mb / hash_s,
        mb / decode_s,
    );
    Ok(())
}

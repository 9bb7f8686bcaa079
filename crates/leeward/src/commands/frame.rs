//! `leeward frame ...`: recovery by hand.

use std::io::{ErrorKind as IoErrorKind, IsTerminal, Write, stdout};
use std::process::ExitCode;

use leeward_engine::error::{Error, ErrorKind};
use leeward_engine::event::Event;
use leeward_engine::pack::OpenPack;
use leeward_pgformat::page_transform::PAGE_TRANSFORM;
use leeward_repository::codec::CompressionUsed;
use leeward_repository::frame::{FrameEntry, Piece, blocks_of_piece};
use leeward_repository::pack::PackIndex;
use serde_json::{Value, json};

use crate::args::{Frame, Global};
use crate::config::Config;
use crate::failure::Failure;
use crate::table::{Align, table};
use crate::{json, output};

pub fn run(global: &Global, config: &Config, frame: &Frame) -> Result<ExitCode, Failure> {
    let (backup, pack) = match frame {
        Frame::List { backup, pack } | Frame::Cat { backup, pack, .. } => (backup, *pack),
    };
    if matches!(frame, Frame::Cat { .. }) {
        check_output(global)?;
    }
    let tell = |event: Event<'_>| {
        if let Event::Notice(text) = event {
            output::say(&output::escaped(&text));
        }
    };
    let store = config.store()?;
    let pack = OpenPack::open(&store, config.cluster.as_deref(), backup, pack, &tell)?;
    match frame {
        Frame::List { .. } if global.json => json::print(&as_json(&pack)),
        Frame::List { .. } => output::data(&text(pack.index())),
        Frame::Cat { frame, .. } => write(&pack.frame(*frame)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Pages are for files and pipes.
fn check_output(global: &Global) -> Result<(), Error> {
    if global.json {
        return Err(Error::new(
            ErrorKind::Usage,
            "--json and a frame's bytes both want standard output",
        ));
    }
    if stdout().is_terminal() {
        return Err(
            Error::new(ErrorKind::Usage, "a frame's bytes do not go to a terminal")
                .hint("Redirect them: leeward frame cat BACKUP PACK FRAME > FILE"),
        );
    }
    Ok(())
}

fn write(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        // A reader that wanted the beginning only.
        Err(e) if e.kind() == IoErrorKind::BrokenPipe => Ok(()),
        written => {
            written.map_err(|e| Error::failed("could not write to standard output").because(e))
        }
    }
}

/// A row for each piece, with its frame's facts beside the first.
fn text(index: &PackIndex) -> String {
    let mut rows = Vec::new();
    for (number, frame) in index.frames.iter().enumerate() {
        let mut facts = [
            frame.offset.to_string(),
            frame.stored_length.to_string(),
            frame.plain_length.to_string(),
            compression(frame),
            transform(frame),
        ];
        for (piece, at) in pieces(frame) {
            let mut row = vec![number.to_string()];
            row.extend(facts.iter_mut().map(std::mem::take));
            row.extend([at.to_string(), holds(index, piece)]);
            rows.push(row);
        }
    }
    let titles = [
        ("FRAME", Align::Right),
        ("OFFSET", Align::Right),
        ("STORED", Align::Right),
        ("PLAIN", Align::Right),
        ("COMPRESSION", Align::Left),
        ("TRANSFORM", Align::Left),
        ("AT", Align::Right),
        ("HOLDS", Align::Left),
    ];
    table(&titles, &rows)
}

/// The pieces of a frame, each with where it begins in the frame's plain bytes.
fn pieces(frame: &FrameEntry) -> impl Iterator<Item = (&Piece, u64)> {
    let mut at = 0;
    frame.pieces.iter().map(move |piece| {
        let begin = at;
        at += u64::from(piece.length);
        (piece, begin)
    })
}

/// The first and the last block of a piece that holds pages.
fn blocks(index: &PackIndex, piece: &Piece) -> Option<(u32, u32)> {
    let file = index.files.get(piece.file as usize)?;
    let blocks = blocks_of_piece(file, piece.offset, piece.length)?;
    (!blocks.is_empty()).then(|| (blocks.start, blocks.end - 1))
}

fn path(index: &PackIndex, piece: &Piece) -> String {
    let file = index.files.get(piece.file as usize);
    file.map(ToString::to_string).unwrap_or_default()
}

fn holds(index: &PackIndex, piece: &Piece) -> String {
    let path = path(index, piece);
    match blocks(index, piece) {
        Some((first, last)) => format!("{path} blocks {first} to {last}"),
        None => format!(
            "{path} bytes {} to {}",
            piece.offset,
            (piece.offset + u64::from(piece.length)).saturating_sub(1)
        ),
    }
}

fn compression(frame: &FrameEntry) -> String {
    match CompressionUsed::from_u8(frame.compression) {
        Some(CompressionUsed::None) => "none".to_owned(),
        Some(CompressionUsed::Zstd) => "zstd".to_owned(),
        Some(CompressionUsed::Lz4) => "lz4".to_owned(),
        None => frame.compression.to_string(),
    }
}

fn transform(frame: &FrameEntry) -> String {
    match frame.transform {
        0 => "none".to_owned(),
        PAGE_TRANSFORM => "pages".to_owned(),
        newer => newer.to_string(),
    }
}

fn as_json(pack: &OpenPack) -> Value {
    let index = pack.index();
    let frames = index.frames.iter().enumerate().map(|(number, frame)| {
        let holds = pieces(frame).map(|(piece, at)| {
            let (first, last) = blocks(index, piece).unzip();
            json!({
                "path": path(index, piece), "at": at, "offset": piece.offset, "length": piece.length,
                "first_block": first, "last_block": last,
            })
        });
        json!({
            "frame": number,
            "offset": frame.offset,
            "stored_bytes": frame.stored_length,
            "transformed_bytes": frame.transformed_length,
            "plain_bytes": frame.plain_length,
            "compression": compression(frame),
            "transform": transform(frame),
            "plain_hash": frame.plain_hash.to_string(),
            "holds": holds.collect::<Vec<_>>(),
        })
    });
    json!({
        "id": pack.backup().as_str(),
        "pack": index.number(),
        "frames": frames.collect::<Vec<_>>(),
    })
}

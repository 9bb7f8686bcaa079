//! The contents frame of a WAL object: what the records in it say, in few bytes, before the tail.

use leeward_pgformat::{Lsn, RecordPart, RestorePoint, TimestampTz, WalContents};

use super::SKIPPABLE_MAGIC;
use crate::fields::Fields;
use crate::hash::Hash;

const BEGIN_MAGIC: [u8; 8] = *b"LWWALCON";
const END_MAGIC: [u8; 8] = *b"LWWALCND";
const VERSION: u16 = 2;
const FIXED_BYTES: usize = 128;
/// Short hash, length and magic: how the frame is found and proven from its end.
const END_BYTES: usize = 28;
/// The longest frame.
pub(super) const CONTENTS_LIMIT: usize = 4096;

const HAS_TIMES: u16 = 1;
const HAS_XIDS: u16 = 2;
const HAS_CHECKPOINT: u16 = 4;
const MORE_RESTORE_POINTS: u16 = 8;
const HAS_TAIL: u16 = 16;
const HAS_OPEN: u16 = 32;
const OVERWRITES: u16 = 64;
const HAS_REQUIREMENTS: u16 = 128;

/// The frame drawn in `docs/format.md`.
pub(super) fn encode(contents: &WalContents) -> Vec<u8> {
    let mut parts = Vec::new();
    if let Some(tail) = &contents.tail {
        encode_part(tail, &mut parts);
    }
    if let Some((begin, open)) = &contents.open {
        parts.extend_from_slice(&begin.0.to_le_bytes());
        encode_part(open, &mut parts);
    }
    let mut points = Vec::new();
    let mut count = 0_u32;
    let mut more = contents.more_restore_points;
    for point in &contents.restore_points {
        let Some(length) = u8::try_from(point.name.len()).ok().filter(|length| {
            FIXED_BYTES + parts.len() + points.len() + 17 + usize::from(*length) + END_BYTES
                <= CONTENTS_LIMIT
        }) else {
            more = true;
            break;
        };
        points.extend_from_slice(&point.lsn.0.to_le_bytes());
        points.extend_from_slice(&point.time.0.to_le_bytes());
        points.push(length);
        points.extend_from_slice(point.name.as_bytes());
        count += 1;
    }
    let times = contents.first_time.zip(contents.last_time);
    let flag = |set: bool, flag| if set { flag } else { 0 };
    let flags = flag(times.is_some(), HAS_TIMES)
        | flag(contents.xids.is_some(), HAS_XIDS)
        | flag(contents.checkpoint_time.is_some(), HAS_CHECKPOINT)
        | flag(more, MORE_RESTORE_POINTS)
        | flag(contents.tail.is_some(), HAS_TAIL)
        | flag(contents.open.is_some(), HAS_OPEN)
        | flag(contents.overwrites, OVERWRITES)
        | flag(contents.has_requirements, HAS_REQUIREMENTS);
    let length = FIXED_BYTES + parts.len() + points.len() + END_BYTES;

    let mut frame = Vec::with_capacity(length);
    frame.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    frame.extend_from_slice(&(length as u32 - 8).to_le_bytes());
    frame.extend_from_slice(&BEGIN_MAGIC);
    frame.extend_from_slice(&VERSION.to_le_bytes());
    frame.extend_from_slice(&flags.to_le_bytes());
    frame.extend_from_slice(&count.to_le_bytes());
    for lsn in [
        contents.first_record,
        contents.last_record,
        contents.end,
        contents.switch,
    ] {
        frame.extend_from_slice(&lsn.unwrap_or(Lsn::INVALID).0.to_le_bytes());
    }
    frame.extend_from_slice(&contents.commits.to_le_bytes());
    frame.extend_from_slice(&contents.aborts.to_le_bytes());
    for time in [
        times.map(|(first, _)| first),
        times.map(|(_, last)| last),
        contents.checkpoint_time,
    ] {
        frame.extend_from_slice(&time.unwrap_or(TimestampTz(0)).0.to_le_bytes());
    }
    let (least, greatest) = contents.xids.unwrap_or((0, 0));
    frame.extend_from_slice(&least.to_le_bytes());
    frame.extend_from_slice(&greatest.to_le_bytes());
    let previous = contents.previous_record.unwrap_or(Lsn::INVALID);
    frame.extend_from_slice(&previous.0.to_le_bytes());
    frame.extend_from_slice(&contents.custom_managers.to_le_bytes());
    frame.extend_from_slice(&parts);
    frame.extend_from_slice(&points);
    frame.extend_from_slice(&Hash::of(&frame).short().0);
    frame.extend_from_slice(&(length as u32).to_le_bytes());
    frame.extend_from_slice(&END_MAGIC);
    frame
}

fn encode_part(part: &RecordPart, to: &mut Vec<u8>) {
    to.extend_from_slice(&part.length.to_le_bytes());
    to.extend_from_slice(&part.checksum.to_le_bytes());
    to.push(part.head.len() as u8);
    to.extend_from_slice(&part.head);
}

fn decode_part(fields: &mut Fields<'_>) -> Option<RecordPart> {
    let length = fields.u64()?;
    let checksum = fields.u32()?;
    let kept = usize::from(fields.u8()?);
    let head = fields.bytes(kept)?.to_vec();
    let sound = kept as u64 == length.min(RecordPart::HEAD_LIMIT as u64);
    sound.then_some(RecordPart {
        length,
        head,
        checksum,
    })
}

/// The contents whose frame these bytes end with; `None` when they end with no such frame, or with one of a newer
/// version: the WAL itself says the same.
///
/// # Errors
/// What is wrong with the frame.
pub(super) fn decode_at_end(bytes: &[u8]) -> Result<Option<WalContents>, &'static str> {
    let Some((rest, end)) = bytes.split_last_chunk::<END_BYTES>() else {
        return Ok(None);
    };
    let mut fields = Fields(end);
    let (Some(hash), Some(length), Some(magic)) =
        (fields.take::<16>(), fields.u32(), fields.take::<8>())
    else {
        return Ok(None);
    };
    if magic != END_MAGIC {
        return Ok(None);
    }
    let length = length as usize;
    let hashed = length
        .checked_sub(END_BYTES)
        .filter(|hashed| (FIXED_BYTES..=CONTENTS_LIMIT - END_BYTES).contains(hashed))
        .and_then(|hashed| rest.get(rest.len().checked_sub(hashed)?..))
        .ok_or("impossible length")?;
    if Hash::of(hashed).short().0 != hash {
        return Err("its bytes are not those that were written");
    }
    let mut fields = Fields(hashed);
    if fields.u32() != Some(SKIPPABLE_MAGIC)
        || fields.u32() != Some(length as u32 - 8)
        || fields.take::<8>() != Some(BEGIN_MAGIC)
    {
        return Err("does not begin as one");
    }
    if fields.u16() != Some(VERSION) {
        return Ok(None);
    }
    decode_fields(&mut fields).ok_or("too short").map(Some)
}

fn decode_fields(fields: &mut Fields<'_>) -> Option<WalContents> {
    let flags = fields.u16()?;
    let count = fields.u32()?;
    let mut lsn = || {
        fields
            .u64()
            .map(|lsn| Some(Lsn(lsn)).filter(|lsn| lsn.is_valid()))
    };
    let (first_record, last_record, end, switch) = (lsn()?, lsn()?, lsn()?, lsn()?);
    let (commits, aborts) = (fields.u64()?, fields.u64()?);
    let mut time = |flag: u16| {
        fields
            .u64()
            .map(|time| (flags & flag != 0).then_some(TimestampTz(time.cast_signed())))
    };
    let (first_time, last_time) = (time(HAS_TIMES)?, time(HAS_TIMES)?);
    let checkpoint_time = time(HAS_CHECKPOINT)?;
    let xids = (fields.u32()?, fields.u32()?);
    let previous_record = Some(Lsn(fields.u64()?)).filter(|lsn| lsn.is_valid());
    let custom_managers = u128::from_le_bytes(fields.take::<16>()?);
    let tail = match flags & HAS_TAIL {
        0 => None,
        _ => Some(decode_part(fields)?),
    };
    let open = match flags & HAS_OPEN {
        0 => None,
        _ => Some((Lsn(fields.u64()?), decode_part(fields)?)),
    };
    let mut restore_points = Vec::new();
    for _ in 0..count {
        let lsn = Lsn(fields.u64()?);
        let time = TimestampTz(fields.u64()?.cast_signed());
        let length = fields.u8()?;
        let name = String::from_utf8_lossy(fields.bytes(length.into())?).into_owned();
        restore_points.push(RestorePoint { name, time, lsn });
    }
    Some(WalContents {
        first_record,
        previous_record,
        tail,
        open,
        overwrites: flags & OVERWRITES != 0,
        last_record,
        end,
        switch,
        commits,
        aborts,
        first_time,
        last_time,
        xids: (flags & HAS_XIDS != 0).then_some(xids),
        checkpoint_time,
        restore_points,
        more_restore_points: flags & MORE_RESTORE_POINTS != 0,
        has_requirements: flags & HAS_REQUIREMENTS != 0,
        custom_managers,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full() -> WalContents {
        let part = |length: u64| RecordPart {
            length,
            head: vec![7; length.min(128) as usize],
            checksum: 0x1234_5678,
        };
        WalContents {
            first_record: Some(Lsn(0x0100_0028)),
            previous_record: Some(Lsn(0x00FF_FFA0)),
            tail: Some(part(5)),
            open: Some((Lsn(0x01FF_FF30), part(77_777))),
            overwrites: true,
            last_record: Some(Lsn(0x01FF_FF00)),
            end: Some(Lsn(0x01FF_FF30)),
            switch: Some(Lsn(0x01FF_FF30)),
            commits: 12_345,
            aborts: 67,
            first_time: Some(TimestampTz(-5)),
            last_time: Some(TimestampTz(848_705_771_679_389)),
            xids: Some((3, u32::MAX)),
            checkpoint_time: Some(TimestampTz(848_705_728_000_000)),
            restore_points: ["before", "", "nachts um drei, Größe"]
                .map(|name| RestorePoint {
                    name: name.to_owned(),
                    time: TimestampTz(7),
                    lsn: Lsn(0x0100_1000),
                })
                .to_vec(),
            more_restore_points: false,
            has_requirements: true,
            custom_managers: 1 << 127 | 1,
        }
    }

    #[test]
    fn contents_come_back() {
        for contents in [WalContents::default(), full()] {
            let frame = encode(&contents);
            assert_eq!(decode_at_end(&frame), Ok(Some(contents.clone())));
            let behind = [b"zstd bytes", frame.as_slice()].concat();
            assert_eq!(decode_at_end(&behind), Ok(Some(contents)));
        }
    }

    #[test]
    fn the_frame_is_as_drawn() {
        let frame = encode(&full());
        let u64_at = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().expect("8 bytes"));
        assert_eq!(&frame[8..20], b"LWWALCON\x02\x00\xF7\x00");
        assert_eq!((u64_at(24), u64_at(104)), (0x0100_0028, 0x00FF_FFA0));
        assert_eq!((u64_at(112), u64_at(120)), (1, 1 << 63));
        // The tail: five bytes. The open record: more than is kept.
        assert_eq!(&frame[128..141], b"\x05\0\0\0\0\0\0\0\x78\x56\x34\x12\x05");
        assert_eq!((u64_at(146), u64_at(154)), (0x01FF_FF30, 77_777));
        assert_eq!(
            (frame[166], frame.len() - 28),
            (128, 167 + 128 + 3 * 17 + 6 + 23)
        );
    }

    #[test]
    fn restore_points_that_do_not_fit_are_cut_off_and_that_is_told() {
        let mut contents = full();
        contents.restore_points = vec![
            RestorePoint {
                name: "x".repeat(255),
                time: TimestampTz(1),
                lsn: Lsn(1),
            };
            20
        ];
        let frame = encode(&contents);
        assert!(frame.len() <= CONTENTS_LIMIT);
        let found = decode_at_end(&frame).expect("sound").expect("contents");
        assert_eq!(found.restore_points.len(), 13);
        assert!(found.more_restore_points);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let frame = encode(&full());
        for at in 0..frame.len() {
            for bit in 0..8 {
                let mut damaged = frame.clone();
                damaged[at] ^= 1 << bit;
                let found = decode_at_end(&damaged);
                // Without its last eight bytes it is no such frame.
                let expected = if at >= frame.len() - 8 {
                    matches!(found, Ok(None))
                } else {
                    found.is_err()
                };
                assert!(expected, "byte {at}, bit {bit}: {found:?}");
            }
        }
    }

    #[test]
    fn another_version_is_left_alone() {
        let mut frame = encode(&full());
        frame[16] = 3;
        let hashed = frame.len() - END_BYTES;
        let hash = Hash::of(&frame[..hashed]).short().0;
        frame[hashed..hashed + 16].copy_from_slice(&hash);
        assert_eq!(decode_at_end(&frame), Ok(None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode_at_end(&bytes);
            let mut ends = bytes;
            ends.extend_from_slice(&END_MAGIC);
            prop_assert!(!matches!(decode_at_end(&ends), Ok(Some(_))));
        }
    }
}

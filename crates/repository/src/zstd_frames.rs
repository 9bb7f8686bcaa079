//! zstd frames, one buffer each, with parameters for what PostgreSQL writes.
//!
//! The measurements are in `docs/decisions/0003-repository-format.md`, for WAL in `0005-wal-archive.md`, and for level 1 in
//! `0007-page-transform.md`.

use zstd::zstd_safe::{self, CCtx, CParameter, Strategy};

use crate::codec::CompressionError;

/// Compresses buffers one after the other; keep one per worker thread.
pub(crate) struct ZstdFrames {
    level: i32,
    table_log: u32,
    /// For ordinary data; made when first used.
    ordinary: Option<CCtx<'static>>,
    /// For data that looks random.
    accelerated: Option<CCtx<'static>>,
}

impl ZstdFrames {
    /// With zstd's own parameters for `level`, but for two. Level 3: one hash table of 2^`table_log` places that fits the
    /// processor's first caches and matches of five bytes and more make pages and WAL both smaller and quicker than
    /// zstd's two tables do. Level 1: half of zstd's table fits the first cache of all, for half a percent of size.
    pub(crate) const fn new(level: i32, table_log: u32) -> Self {
        Self {
            level,
            table_log,
            ordinary: None,
            accelerated: None,
        }
    }

    /// Replaces `out` by a frame of `plain` that declares its content size and has no checksum.
    ///
    /// # Errors
    /// Only when the library has no memory.
    pub(crate) fn compress(
        &mut self,
        plain: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CompressionError> {
        let failed = |reason: &str| CompressionError {
            length: plain.len(),
            reason: reason.to_owned(),
        };
        out.clear();
        out.reserve(zstd_safe::compress_bound(plain.len()));
        let (level, table_log) = (self.level, self.table_log);
        let context = if looks_random(plain) {
            // Step quickly, leave literals alone. It still finds the holes between rows and anything that comes twice.
            context(&mut self.accelerated, level, || one_table(table_log, 2))
        } else {
            context(&mut self.ordinary, level, || match level {
                1 => vec![CParameter::HashLog(13)],
                3 => one_table(table_log, 0),
                _ => Vec::new(),
            })
        };
        context
            .map_err(failed)?
            .compress2(out, plain)
            .map_err(|code| failed(zstd_safe::get_error_name(code)))?;
        Ok(())
    }
}

/// One hash table of 2^`table_log` places, and matches of five bytes and more; `step`: how quickly zstd goes on where it finds
/// nothing.
fn one_table(table_log: u32, step: u32) -> Vec<CParameter> {
    vec![
        CParameter::WindowLog(20),
        CParameter::HashLog(table_log),
        CParameter::ChainLog(14),
        CParameter::MinMatch(5),
        CParameter::TargetLength(step),
        CParameter::Strategy(Strategy::ZSTD_fast),
    ]
}

/// The context, made when there is none yet, with the level's parameters but for our `own`. They stay with it.
fn context<'a>(
    slot: &'a mut Option<CCtx<'static>>,
    level: i32,
    own: impl FnOnce() -> Vec<CParameter>,
) -> Result<&'a mut CCtx<'static>, &'static str> {
    if slot.is_none() {
        let mut parameters = vec![
            CParameter::CompressionLevel(level),
            CParameter::ContentSizeFlag(true),
            CParameter::ChecksumFlag(false),
            CParameter::DictIdFlag(false),
        ];
        parameters.extend(own());
        let mut context = CCtx::try_create().ok_or("out of memory")?;
        for parameter in parameters {
            context
                .set_parameter(parameter)
                .map_err(zstd_safe::get_error_name)?;
        }
        *slot = Some(context);
    }
    slot.as_mut().ok_or("out of memory")
}

const SAMPLES: usize = 16;
const SAMPLE_BYTES: usize = 512;
/// Bits a byte from which all samples together count as random; 8 KiB of truly random bytes have 7.97.
const RANDOM_BITS: f32 = 7.8;
/// Bits a byte below which the first quarter of the samples settles it; 2 KiB of truly random bytes have 7.9.
const ORDINARY_BITS: f32 = 7.0;

/// Whether the bytes look random: the entropy of single bytes in samples from all over, zeroes left out since a page
/// of random rows has holes. A wrong answer costs a little size or time, no more.
fn looks_random(plain: &[u8]) -> bool {
    let stride = plain.len() / SAMPLES;
    if stride < 4 * SAMPLE_BYTES {
        return false;
    }
    // Two tables, so that runs of one byte do not wait for each other.
    let mut counts = [[0_u32; 256]; 2];
    let mut count = |samples: &[usize]| {
        for sample in samples {
            // Not at the same place of each page.
            let start = sample * stride + (sample * 1_237) % (stride - SAMPLE_BYTES);
            for pair in plain[start..start + SAMPLE_BYTES].chunks_exact(2) {
                counts[0][usize::from(pair[0])] += 1;
                counts[1][usize::from(pair[1])] += 1;
            }
        }
        entropy_bits(&counts)
    };
    count(&[0, 5, 10, 15]) >= ORDINARY_BITS
        && count(&[1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14]) >= RANDOM_BITS
}

/// Bits a byte of the bytes that are not zero; 0 where these are less than half.
fn entropy_bits(counts: &[[u32; 256]; 2]) -> f32 {
    let sums = || counts[0].iter().zip(&counts[1]).map(|(a, b)| a + b);
    let total: u32 = sums().skip(1).sum();
    if total < sums().next().unwrap_or(0) {
        return 0.0;
    }
    let weighted: f32 = sums()
        .skip(1)
        .filter(|count| *count > 0)
        .map(|count| count as f32 * (count as f32).log2())
        .sum();
    (total as f32).log2() - weighted / total as f32
}

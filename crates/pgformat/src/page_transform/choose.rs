//! Choosing how a frame is written, from samples of its rows: the shapes of columns, and which words and numbers gain by which
//! form.

use std::sync::LazyLock;

use super::anatomy::{Item, Kind, examine, stored};
use super::schema::{Column, Row, SCHEMAS, Schema};
use super::words::{Class, Mode, Plan, widened};
use super::{Choice, heap, index, infer};
use crate::{BlockNumber, PAGE_SIZE};

/// Pages looked at in a stretch of one relation.
const PAGES: usize = 12;
/// Rows of a class taken from one page, one behind the other, as they are written.
const ROWS_OF_PAGE: usize = 32;
/// Rows of a class that are enough.
const ROWS: usize = 256;

/// Relations in one frame whose rows are searched for a schema in vain, before no more are.
const FAILURES: usize = 3;

/// In a row with values of variable length, a word of more than this share of its 64 bits is text, or is moved about by
/// the text before it.
const TEXT_SHARE: f32 = 0.42;

/// How to write these pages; schemas of `known` are taken over where rows have them.
pub(super) fn choose(
    pages: &[[u8; PAGE_SIZE]],
    blocks: &[BlockNumber],
    known: Option<&Choice>,
    items: &mut Vec<Item>,
) -> Choice {
    let known = known.map_or(&[][..], |choice| &choice.schemas);
    let mut schemas: Vec<Schema> = Vec::new();
    let mut samples: [Vec<&[u8]>; 4] = Default::default();
    let mut failures = 0;
    for pages in stretches(pages, blocks) {
        let mut rows: Vec<Row<'_>> = Vec::new();
        let mut few: Vec<Row<'_>> = Vec::new();
        let step = pages.len().div_ceil(PAGES).max(1);
        let rows_of_page = infer::ROWS.div_ceil(pages.len().div_ceil(step));
        // Not the first page: it may be the root of an index, or older than the others.
        for page in pages.iter().skip(step / 2).step_by(step) {
            let kind = examine(page, items).kind;
            let tuples = || stored(items).map(|(_, item)| &page[item.start()..item.end()]);
            let before = samples.each_ref().map(Vec::len);
            let mut sample = |class: Class, row| {
                let rows = &mut samples[class as usize];
                if rows.len() < ROWS && rows.len() - before[class as usize] < ROWS_OF_PAGE {
                    rows.push(row);
                }
            };
            match kind {
                Kind::Heap => {
                    tuples().for_each(|tuple| sample(heap::class(tuple), heap::row(tuple).bytes));
                    few.extend(tuples().map(heap::row).take(rows_of_page));
                    rows.extend(tuples().map(heap::row).take(ROWS - rows.len()));
                }
                Kind::Index => tuples()
                    .map(index::key)
                    .for_each(|(class, key)| sample(class, key)),
                Kind::Zero | Kind::Raw | Kind::Items => {}
            }
        }
        few.truncate(infer::ROWS);
        let fits = |schema: &Schema| {
            let found = few.iter().filter(|row| schema.walk(row, |_, _| {})).count();
            found * 8 >= few.len() * 7
        };
        if few.is_empty() || schemas.len() == SCHEMAS || schemas.iter().any(fits) {
            continue;
        }
        if let Some(schema) = known.iter().find(|schema| fits(schema)) {
            schemas.push(schema.clone());
        } else if failures < FAILURES {
            match infer::shapes(&few) {
                Some(shapes) => schemas.push(schema(&shapes, &rows)),
                None => failures += 1,
            }
        }
    }
    let plans = Class::ALL.map(|class| plan(class, &samples[class as usize]));
    Choice {
        plans,
        schemas,
        rows: samples.iter().map(Vec::len).sum(),
    }
}

/// How many of these blocks, from the first on, lie one behind the other: in one relation, as far as can be seen.
pub(super) fn stretch(blocks: &[BlockNumber]) -> usize {
    let next = |pair: &&[BlockNumber]| pair[0].0.wrapping_add(1) == pair[1].0;
    let follow = blocks.windows(2).take_while(next).count();
    blocks.len().min(1) + follow
}

/// The pages of each stretch.
fn stretches<'a>(
    mut pages: &'a [[u8; PAGE_SIZE]],
    mut blocks: &'a [BlockNumber],
) -> impl Iterator<Item = &'a [[u8; PAGE_SIZE]]> {
    std::iter::from_fn(move || {
        let length = stretch(blocks);
        let (first, rest) = pages.split_at(length);
        (pages, blocks) = (rest, &blocks[length..]);
        (length > 0).then_some(first)
    })
}

/// The columns of these shapes, each in the form in which its values are smallest.
fn schema(shapes: &[u8], rows: &[Row<'_>]) -> Schema {
    let mut schema = Schema {
        columns: shapes
            .iter()
            .filter_map(|number| Column::new(*number))
            .collect(),
    };
    let mut values = vec![Vec::new(); shapes.len()];
    for row in rows.iter().filter(|row| schema.walk(row, |_, _| {})) {
        schema.walk(row, |column, span| {
            if matches!(schema.columns[column].shape.length, 2 | 4 | 8) {
                values[column].push(widened(&row.bytes[span]));
            }
        });
    }
    for (column, values) in schema.columns.iter_mut().zip(&values) {
        let length = column.shape.length;
        if let Some((_, mode)) = best(values, Mode::of_length(length), length) {
            column.mode = mode;
        }
    }
    schema
}

fn plan(class: Class, rows: &[&[u8]]) -> Plan {
    let mut plan = Plan::NONE;
    let fixed = matches!(class, Class::HeapFixed | Class::IndexFixed);
    for (word, slot) in plan.modes.iter_mut().enumerate().take(class.words()) {
        let values: Vec<u64> = rows.iter().filter_map(|row| word_at(row, word)).collect();
        // Too few rows have it: it is behind the end of most.
        if values.len() < 4 || values.len() * 2 < rows.len() {
            break;
        }
        let Some((least, mode)) = best(&values, Mode::WORDS, 8) else {
            break;
        };
        if !fixed && least > TEXT_SHARE * 64.0 {
            break;
        }
        *slot = mode;
        // Constant words at the end are left to the rest of the row: there they cost nothing either.
        if least > 0.0 {
            plan.count = word as u8 + 1;
        }
    }
    plan
}

fn word_at(row: &[u8], word: usize) -> Option<u64> {
    let (words, _) = row.as_chunks::<8>();
    words.get(word).map(|bytes| u64::from_le_bytes(*bytes))
}

/// The form in which these values take the fewest bits, and how many each.
fn best(
    values: &[u64],
    modes: impl IntoIterator<Item = Mode>,
    length: usize,
) -> Option<(f32, Mode)> {
    let first = values.first()?;
    if values.iter().all(|value| value == first) {
        return Some((bits(values, Mode::Plain, length), Mode::Plain));
    }
    // Numbers of which none has a whole one without its point are none with decimals.
    let few = &values[..values.len().min(8)];
    let possible = |mode: &Mode| {
        few.iter()
            .any(|value| mode.encode(*value, *value, length).is_some())
    };
    modes
        .into_iter()
        .filter(possible)
        .map(|mode| (bits(values, mode, length), mode))
        .min_by(|(a, _), (b, _)| a.total_cmp(b))
}

/// Bits a value in this form, as if each of its planes were coded by how often each byte occurs. A sample shows fewer different
/// bytes than there are; the second term makes up for some (Miller and Madow).
fn bits(values: &[u64], mode: Mode, length: usize) -> f32 {
    let mut counts = [[0_u16; 256]; 8];
    // Over all planes: each count times its logarithm, and how many different bytes there are.
    let (mut weighted, mut different) = (0.0, 0);
    let steps = &*STEPS;
    let mut before = values[0];
    let mut exceptions = 0_u16;
    for value in values {
        let coded = mode.encode(*value, before, length).unwrap_or_else(|| {
            exceptions += 1;
            Mode::EXCEPTION
        });
        for (plane, byte) in counts.iter_mut().zip(coded.to_le_bytes()).take(length) {
            let count = &mut plane[usize::from(byte)];
            weighted += steps[usize::from(*count)];
            different += usize::from(*count == 0);
            *count += 1;
        }
        before = *value;
    }
    let total = values.len() as f32;
    let unseen = (different - length) as f32 / (2.0 * total * std::f32::consts::LN_2);
    length as f32 * total.log2() - weighted / total + unseen + 64.0 * f32::from(exceptions) / total
}

/// By how much a count times its logarithm to the base of 2 grows when the count does by 1.
static STEPS: LazyLock<[f32; ROWS]> = LazyLock::new(|| {
    let weighted = |count: usize| count as f32 * (count as f32).log2();
    std::array::from_fn(|count| {
        if count > 0 {
            weighted(count + 1) - weighted(count)
        } else {
            0.0
        }
    })
});

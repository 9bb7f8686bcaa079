//! Rows: values of one column, one behind the other.

use super::TransformDamage;
use super::anatomy::Item;
use super::columns::{LENGTH, put_run, take_run};
use super::schema::{COLUMNS, Presence, Schema};
use super::streams::{Source, Stream, Streams};
use super::words::{Class, Plan, Words};
use crate::PAGE_SIZE;

/// The schemas of a frame, and the values before of each; for rows that have none of them, the words before.
///
/// The rows of a page are collected, and then written or filled column by column: what a column is has to be asked only
/// once.
pub(super) struct Rows<'a> {
    plans: &'a [Plan; 4],
    words: Words,
    relations: Vec<Relation<'a>>,
    /// The schema of the rows before.
    current: usize,
    rows: Vec<RowSpan>,
    /// What is left of each row while it is written.
    left: Vec<RowSpan>,
    lengths: Vec<usize>,
    starts: Vec<u16>,
}

/// A schema, and what is known of its columns.
struct Relation<'a> {
    schema: &'a Schema,
    /// The first stream of each column, and the one behind the last.
    streams: Vec<usize>,
    before: [u64; COLUMNS],
}

/// Where the values of a row are on their page, or those of them that are left.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowSpan {
    /// As in [`Row`](super::schema::Row).
    pub present: u64,
    pub columns: u16,
    pub start: u16,
    pub end: u16,
    pub class: Class,
}

impl RowSpan {
    pub(super) const NONE: Self = Self {
        present: 0,
        columns: 0,
        start: 0,
        end: 0,
        class: Class::HeapFixed,
    };

    /// Such a row in this item, behind a header of so many bytes.
    #[inline]
    pub(super) fn of(self, item: Item, header: usize) -> Self {
        Self {
            start: item.offset() + header as u16,
            end: item.offset() + item.length(),
            ..self
        }
    }

    #[inline]
    pub(super) fn has(&self, column: usize) -> bool {
        self.present >> column & 1 == 1
    }

    #[inline]
    fn span(&self) -> std::ops::Range<usize> {
        usize::from(self.start)..usize::from(self.end)
    }
}

impl<'a> Rows<'a> {
    pub(super) fn new(plans: &'a [Plan; 4], schemas: &'a [Schema]) -> Self {
        let mut next = 0;
        let relation = |schema: &'a Schema| {
            let mut streams = vec![next];
            for column in &schema.columns {
                next += column.streams();
                streams.push(next);
            }
            Relation {
                schema,
                streams,
                before: [0; COLUMNS],
            }
        };
        Self {
            plans,
            words: Words::new(Stream::HeapWords),
            relations: schemas.iter().map(relation).collect(),
            current: 0,
            rows: Vec::new(),
            left: Vec::new(),
            lengths: Vec::new(),
            starts: Vec::new(),
        }
    }

    /// Collects a row.
    #[inline]
    pub(super) fn add(&mut self, row: RowSpan) {
        self.rows.push(row);
    }

    /// Puts the rows collected into the streams of their columns, and which schema they have.
    pub(super) fn put(&mut self, page: &[u8; PAGE_SIZE], streams: &mut Streams) {
        let mut rows = std::mem::take(&mut self.rows);
        let current = self.current;
        let others = (0..self.relations.len()).filter(|other| *other != current);
        let mut schemas = std::iter::once(current).chain(others);
        // On nearly every page all rows have the same one.
        let whole = schemas.find(|schema| self.put_columns(*schema, &rows, page, streams));
        match whole {
            Some(schema) => {
                self.current = schema;
                let number = schema as u8 + 1;
                streams.put_bytes(Stream::RowSchema, rows.iter().map(|_| number));
            }
            None => rows.iter().for_each(|row| self.put_row(row, page, streams)),
        }
        rows.clear();
        self.rows = rows;
    }

    /// Puts a row by itself.
    fn put_row(&mut self, row: &RowSpan, page: &[u8; PAGE_SIZE], streams: &mut Streams) {
        let rows = std::slice::from_ref(row);
        let mut schemas = 0..self.relations.len();
        let schema = schemas.find(|schema| self.put_columns(*schema, rows, page, streams));
        let number = schema.map_or(0, |schema| schema as u8 + 1);
        streams.put_byte(Stream::RowSchema, number);
        if schema.is_none() {
            let plan = &self.plans[row.class as usize];
            let rest = self.words.put(plan, &page[row.span()], streams);
            streams.put(Stream::HeapRest, rest);
        }
    }

    /// Puts the values of rows that all have this schema into the streams of its columns; `false`: not all have it, and nothing
    /// was put.
    fn put_columns(
        &mut self,
        schema: usize,
        rows: &[RowSpan],
        page: &[u8; PAGE_SIZE],
        streams: &mut Streams,
    ) -> bool {
        let Some(relation) = self.relations.get_mut(schema) else {
            return false;
        };
        let Some(presence) = presence(rows, relation.schema) else {
            return false;
        };
        let [first, .., end] = relation.streams[..] else {
            return rows.iter().all(|row| row.span().is_empty());
        };
        let streams = &mut streams.column(first)[..end - first];
        self.lengths.clear();
        self.lengths.extend(streams.iter().map(Vec::len));
        self.left.clear();
        self.left.extend_from_slice(rows);
        let mut before = relation.before;
        let put = relation.schema.runs(&presence).all(|run| {
            let columns = run.columns.clone();
            let streams = &mut streams[relation.streams[columns.start] - first..];
            let columns = relation.schema.columns[columns.clone()]
                .iter()
                .zip(&mut before[columns]);
            put_run(
                &run,
                columns,
                &mut self.left,
                page,
                &mut self.starts,
                streams,
            )
        });
        if put && self.left.iter().all(|row| row.start == row.end) {
            relation.before = before;
            return true;
        }
        for (stream, length) in streams.iter_mut().zip(&self.lengths) {
            stream.truncate(*length);
        }
        false
    }

    /// Fills the rows collected.
    pub(super) fn take_columns(
        &mut self,
        page: &mut [u8; PAGE_SIZE],
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        let mut rows = std::mem::take(&mut self.rows);
        let numbers = source.bytes(Stream::RowSchema, rows.len())?;
        let mut left = &mut rows[..];
        for numbers in numbers.chunk_by(|number, next| number == next) {
            let (rows, rest) = std::mem::take(&mut left).split_at_mut(numbers.len());
            left = rest;
            match usize::from(numbers[0]).checked_sub(1) {
                Some(schema) => self.take_rows(schema, rows, page, source)?,
                None => {
                    for row in rows {
                        let plan = &self.plans[row.class as usize];
                        let rest = self.words.take(plan, &mut page[row.span()], source)?;
                        rest.copy_from_slice(source.bytes(Stream::HeapRest, rest.len())?);
                    }
                }
            }
        }
        rows.clear();
        self.rows = rows;
        Ok(())
    }

    /// Fills rows that have this schema.
    fn take_rows(
        &mut self,
        schema: usize,
        rows: &mut [RowSpan],
        page: &mut [u8; PAGE_SIZE],
        source: &mut Source<'_>,
    ) -> Result<(), TransformDamage> {
        const UNKNOWN: TransformDamage = TransformDamage("a row's schema is impossible");
        let relation = self.relations.get_mut(schema).ok_or(UNKNOWN)?;
        let presence = presence(rows, relation.schema).ok_or(UNKNOWN)?;
        for run in relation.schema.runs(&presence) {
            let columns = run.columns.clone();
            let stream = relation.streams[columns.start];
            let columns = relation.schema.columns[columns.clone()]
                .iter()
                .zip(&mut relation.before[columns]);
            take_run(&run, columns, rows, page, &mut self.starts, stream, source)?;
        }
        if rows.iter().any(|row| row.start != row.end) {
            return Err(LENGTH);
        }
        Ok(())
    }
}

/// Which columns the rows have; `None`: one has more than the schema.
fn presence(rows: &[RowSpan], schema: &Schema) -> Option<Presence> {
    let (mut columns, mut starts) = (0, 8);
    let mut presence = Presence {
        every: u64::MAX,
        some: 0,
        align: 0,
    };
    for row in rows {
        columns = row.columns.max(columns);
        starts |= row.start;
        presence.every &= row.present;
        presence.some |= row.present;
    }
    presence.align = 1 << starts.trailing_zeros();
    (usize::from(columns) <= schema.columns.len()).then_some(presence)
}

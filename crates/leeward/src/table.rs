//! Tables that align, and lists of names and values.

use crate::output::escaped;

/// How a column is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a line of titles, two spaces apart.
pub fn table(titles: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| escaped(cell).into_owned()).collect())
        .collect();
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .max()
            .unwrap_or(0)
            .max(titles[column].0.chars().count())
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for ((cell, width), (_, align)) in cells.zip(&widths).zip(titles) {
            let pad = " ".repeat(width - cell.chars().count());
            match align {
                Align::Left => text.push_str(&format!("{cell}{pad}  ")),
                Align::Right => text.push_str(&format!("{pad}{cell}  ")),
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    };
    let mut out = line(&mut titles.iter().map(|(title, _)| *title));
    for row in &rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

/// Names and values, one a line, the values aligned.
pub fn facts(rows: &[(&str, String)]) -> String {
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    rows.iter()
        .map(|(name, value)| {
            format!("  {name:<width$}  {}", escaped(value))
                .trim_end()
                .to_owned()
                + "\n"
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let rows = vec![
            vec!["a".to_owned(), "1".to_owned()],
            vec!["long".to_owned(), "100".to_owned()],
        ];
        assert_eq!(
            table(&[("NAME", Align::Left), ("N", Align::Right)], &rows),
            "NAME    N\na       1\nlong  100\n"
        );
    }

    #[test]
    fn cells_and_values_stay_in_their_places() {
        let rows = vec![vec!["a\nb".to_owned(), "\u{1b}[2J".to_owned()]];
        assert_eq!(
            table(&[("NAME", Align::Left), ("N", Align::Left)], &rows),
            "NAME  N\na\\nb  \\u{1b}[2J\n"
        );
        assert_eq!(facts(&[("host", "x\n  y".to_owned())]), "  host  x\\n  y\n");
    }
}

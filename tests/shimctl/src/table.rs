//! Aligned columns for a terminal.

use std::io::{self, Write};

/// Prints the rows, each column as wide as its widest cell; `left` names the columns of text.
pub(crate) fn print(rows: &[Vec<String>], left: &[usize]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut stdout = io::stdout().lock();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let cell = if left.contains(&column) {
                format!("{cell:<width$}  ")
            } else {
                format!("{cell:>width$}  ")
            };
            line.push_str(&cell);
        }
        // A reader that has seen enough, as `head` has, is no reason to complain.
        if writeln!(stdout, "{}", line.trim_end()).is_err() {
            return;
        }
    }
}

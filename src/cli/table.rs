//! Columns for people.

/// Rows of cells below a heading, each column as wide as its widest cell.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    /// How many columns are words, aligned to the left; numbers follow.
    words: usize,
}

impl Table {
    /// A table with these headings, the first `words` of which are above words.
    pub(crate) fn new(headings: &[&str], words: usize) -> Self {
        Self {
            rows: vec![headings.iter().map(ToString::to_string).collect()],
            words,
        }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The text of it.
    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let wide = |column| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let widths = cells.map(|cell: &String| cell.chars().count());
            widths.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(wide).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).enumerate();
            let padded = cells.map(|(column, (cell, width))| {
                if column < self.words {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
            let line = padded.collect::<Vec<_>>().join("  ");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_aligned_to_the_left_and_numbers_to_the_right() {
        let mut table = Table::new(&["queue", "ready", "done"], 1);
        table.row(vec!["default".into(), "7".into(), "1234567".into()]);
        table.row(vec!["ü".into(), "10".into(), "0".into()]);
        assert_eq!(
            table.text(),
            "queue    ready     done\n\
             default      7  1234567\n\
             ü           10        0\n"
        );
    }
}

//! Tables of text for a terminal.

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Words.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

impl Column {
    fn name(self) -> &'static str {
        match self {
            Self::Left(name) | Self::Right(name) => name,
        }
    }
}

/// A table with a head; columns are two spaces apart, and no line ends in spaces.
pub fn table(columns: &[Column], rows: &[Vec<String>]) -> String {
    let head: Vec<_> = columns.iter().map(|column| column.name().to_owned()).collect();
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
    let all = || std::iter::once(&head).chain(&rows);
    let widths: Vec<_> = (0..columns.len())
        .map(|at| all().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in all() {
        let mut line = String::new();
        for ((cell, column), width) in row.iter().zip(columns).zip(&widths) {
            let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
            match column {
                Column::Left(_) => line.extend([cell.as_str(), &gap]),
                Column::Right(_) => line.extend([&gap, cell.as_str()]),
            }
            line.push_str("  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A text without characters that could steer a terminal: it may come from a client or from the store.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Bytes in binary units: `0`, `512 B`, `12.0 KiB`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return if count == 0 { "0".to_owned() } else { format!("{count} B") };
    }
    let mut value = count as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while value >= 1000.0
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = Some(next);
    }
    let unit = unit.unwrap_or(&"KiB");
    if value < 100.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            [vec!["pg1".to_owned(), "7".to_owned()], vec!["a-long-name".to_owned(), "1234567".to_owned()]];
        let text = table(&[Column::Left("MEMBER"), Column::Right("LAG")], &rows);
        assert_eq!(text, "MEMBER           LAG\npg1                7\na-long-name  1234567\n");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(clean("a\u{1b}[31mb\nc"), "a\u{fffd}[31mb\u{fffd}c");
    }

    #[test]
    fn bytes_have_three_digits() {
        for (count, text) in
            [(0, "0"), (512, "512 B"), (12_288, "12.0 KiB"), (5 << 20, "5.0 MiB"), (u64::MAX, "16.0 EiB")]
        {
            assert_eq!(bytes(count), text);
        }
    }
}

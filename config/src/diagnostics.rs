//! What is wrong with a file: every error at once, each with its place, the text underlined, and what to
//! write instead. A secret that somebody wrote into the file is never shown again.

use std::{cmp::Ordering, fmt, ops::Range, string::FromUtf8Error, sync::Arc};

use crate::choice::choice;

choice!(
    /// How bad it is.
    Severity {
        /// The file cannot be used.
        Error = "error",
        /// The file can be used, but it probably does not say what was meant.
        Warning = "warning",
    }
);

/// One thing that is wrong. `Display` is several lines of plain text without a line break at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    severity: Severity,
    file: Arc<str>,
    message: String,
    help: String,
    place: Option<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    line: usize,
    column: usize,
    /// The line as it is shown: secrets masked, one column for each character.
    shown: String,
    /// Columns of `shown` to underline, counted from zero; never empty.
    underlined: Range<usize>,
}

impl Diagnostic {
    /// Without a place: about the file as a whole.
    pub(crate) fn whole_file(severity: Severity, file: &Arc<str>, message: String, help: String) -> Self {
        Self { severity, file: file.clone(), message, help, place: None }
    }

    /// About the bytes `span` of the source.
    pub(crate) fn at(mut self, lines: &Lines<'_>, span: Range<usize>) -> Self {
        self.place = Some(Place::find(lines, span));
        self
    }

    /// Error or warning.
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// What is wrong, in one sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to write instead.
    pub fn help(&self) -> &str {
        &self.help
    }

    /// Line and column, both counted from 1, columns in characters; `None`: the file as a whole.
    pub fn line_column(&self) -> Option<(usize, usize)> {
        self.place.as_ref().map(|place| (place.line, place.column))
    }

    /// The order in which people read a file; what concerns the whole file comes last.
    pub(crate) fn by_place(&self, other: &Self) -> Ordering {
        match (self.line_column(), other.line_column()) {
            (Some(a), Some(b)) => a.cmp(&b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        }
    }
}

/// A source with the places of its lines, so that thousands of errors do not each count them.
pub(crate) struct Lines<'a> {
    source: &'a str,
    /// Where each line starts; the first is 0.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(source: &'a str) -> Self {
        let after_breaks = source.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        Self { source, starts: std::iter::once(0).chain(after_breaks).collect() }
    }

    /// The line of a byte, counted from 1.
    pub(crate) fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }
}

impl Place {
    fn find(lines: &Lines<'_>, span: Range<usize>) -> Self {
        let source = lines.source;
        let start = floor_boundary(source, span.start);
        let end = floor_boundary(source, span.end).max(start);
        let line = lines.line(start);
        let line_start = lines.starts.get(line - 1).copied().unwrap_or(0);
        let line_end = lines.starts.get(line).map_or(source.len(), |next| next - 1);
        let text = source.get(line_start..line_end).unwrap_or_default();
        let text = text.strip_suffix('\r').unwrap_or(text);
        let column = source.get(line_start..start).map_or(0, |text| text.chars().count());
        let length = source.get(start..end.min(line_end)).map_or(0, |text| text.trim_end().chars().count());
        Self {
            line,
            column: column + 1,
            shown: mask_secrets(text).chars().map(printable).collect(),
            underlined: column..column + length.max(1),
        }
    }
}

fn floor_boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|index| text.is_char_boundary(*index)).unwrap_or(0)
}

/// One column on every terminal, and no control sequences from a file to the terminal.
fn printable(character: char) -> char {
    match character {
        '\t' => ' ',
        other if other.is_control() => '\u{fffd}',
        other => other,
    }
}

/// Puts stars over values that look like secrets: `password = "..."`, `://user:password@`.
fn mask_secrets(line: &str) -> String {
    let mut shown: Vec<char> = line.chars().collect();
    let characters = shown.clone();
    for (equals, _) in characters.iter().enumerate().filter(|(_, c)| **c == '=') {
        let (before, after) = characters.split_at(equals);
        if is_secret_key(&last_word(before)) {
            let value = value_columns(after.get(1..).unwrap_or_default());
            cover(&mut shown, equals + 1 + value.start..equals + 1 + value.end);
        }
    }
    let text: String = shown.into_iter().collect();
    mask_user_info(&text)
}

fn cover(shown: &mut [char], columns: Range<usize>) {
    for character in shown.get_mut(columns).unwrap_or_default() {
        *character = '*';
    }
}

fn last_word(before: &[char]) -> String {
    let outside = |c: &&char| c.is_whitespace() || matches!(c, '"' | '\'');
    let inside = |c: &&char| c.is_alphanumeric() || matches!(c, '_' | '-');
    let word: Vec<char> = before.iter().rev().skip_while(outside).take_while(inside).copied().collect();
    word.into_iter().rev().collect()
}

fn is_secret_key(key: &str) -> bool {
    let key = key.to_lowercase();
    let place = ["_file", "_env"].iter().any(|end| key.ends_with(end));
    let word = ["pass", "pwd", "secret", "token"].iter().any(|word| key.contains(word));
    !place && (word || crate::suggest::distance(&key, "password") <= 2)
}

/// The columns of a value, without its quotes, in the text after an equals sign.
fn value_columns(after: &[char]) -> Range<usize> {
    let start = after.iter().position(|c| !c.is_whitespace()).unwrap_or(after.len());
    let rest = after.get(start..).unwrap_or_default();
    let Some(quote @ ('"' | '\'')) = rest.first() else {
        let end = rest.iter().position(|c| matches!(c, ',' | '}' | '#')).unwrap_or(rest.len());
        return start..start + end;
    };
    let quotes = rest.iter().take_while(|c| c == &quote).count();
    if quotes == 2 {
        return start..start;
    }
    let body = rest.get(quotes..).unwrap_or_default();
    let mut escaped = false;
    let length = body.iter().position(|c| {
        let end = c == quote && !escaped;
        escaped = *c == '\\' && !escaped && *quote == '"';
        end
    });
    start + quotes..start + quotes + length.unwrap_or(body.len())
}

/// Puts stars over what stands in front of an `@`, back to the `//`, the quote or the blank before it.
pub(crate) fn mask_user_info(text: &str) -> String {
    let mut shown: Vec<char> = text.chars().collect();
    let characters = shown.clone();
    for (at, _) in characters.iter().enumerate().filter(|(_, c)| **c == '@') {
        let before = characters.get(..at).unwrap_or_default();
        let quote = before.iter().rposition(|c| matches!(c, '"' | '\'') || c.is_whitespace());
        let slashes = before.windows(3).rposition(|three| three == [':', '/', '/']).map(|index| index + 2);
        cover(&mut shown, quote.max(slashes).map_or(0, |index| index + 1)..at);
    }
    shown.into_iter().collect()
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.severity, self.message)?;
        let Some(place) = &self.place else {
            return write!(f, " --> {}\n  = help: {}", self.file, self.help);
        };
        let margin = place.line.to_string().len();
        let (skip, length) = (place.underlined.start, place.underlined.len());
        writeln!(f, "{:margin$}--> {}:{}:{}", "", self.file, place.line, place.column)?;
        writeln!(f, "{:margin$} |", "")?;
        writeln!(f, "{} | {}", place.line, place.shown.trim_end())?;
        // Not by format width, which ends at 65535.
        writeln!(f, "{:margin$} | {}{}", "", " ".repeat(skip), "^".repeat(length))?;
        write!(f, "{:margin$} = help: {}", "", self.help)
    }
}

/// Every error of a file, in the order of the file; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    pub(crate) fn new(mut list: Vec<Diagnostic>) -> Self {
        list.sort_by(Diagnostic::by_place);
        Self { list }
    }

    /// The file as a whole cannot be used.
    pub(crate) fn of_file(file_name: &str, message: String, help: &str) -> Self {
        let file = Arc::from(file_name);
        Self::new(vec![Diagnostic::whole_file(Severity::Error, &file, message, help.to_owned())])
    }

    /// The file is not UTF-8.
    pub(crate) fn not_text(file_name: &str, error: &FromUtf8Error) -> Self {
        let file = Arc::from(file_name);
        let message = "this byte is not UTF-8 text".to_owned();
        let help = "save the file as UTF-8".to_owned();
        let valid = error.utf8_error().valid_up_to();
        // The place is the same in the repaired text: everything before the first bad byte is kept as it is.
        let source = String::from_utf8_lossy(error.as_bytes());
        Self::new(vec![
            Diagnostic::whole_file(Severity::Error, &file, message, help)
                .at(&Lines::new(&source), valid..valid + 1),
        ])
    }

    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Never true for a failed read; here because `len` is.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in self {
            writeln!(f, "{diagnostic}\n")?;
        }
        let errors = self.len();
        write!(f, "{errors} {}", if errors == 1 { "error" } else { "errors" })
    }
}

impl std::error::Error for Diagnostics {}

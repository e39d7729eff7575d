//! Reads the parsed TOML tree and records what is wrong with it, instead of stopping at the first error.
//!
//! A [`Table`] knows which keys it was asked for: what is left over at [`Table::finish`] is unknown, and what
//! it was asked for is the list of valid keys. After an error the reader goes on with the default; that is
//! safe because a file with any error never becomes a `Config`.

use std::{
    cell::RefCell,
    fmt::Write as _,
    ops::{Range, RangeInclusive},
    path::{Path, PathBuf},
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    Bytes, Host,
    choice::Choice,
    diagnostics::{Lines, Severity, mask_user_info},
    suggest::nearest,
    units::{parse_bytes, parse_duration, write_duration},
};

/// Bytes of the source.
pub(crate) type Span = Range<usize>;

/// What is wrong with one value, and what to write instead.
pub(crate) struct Problem {
    pub(crate) message: String,
    pub(crate) help: String,
}

impl Problem {
    pub(crate) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into() }
    }
}

/// One recorded problem; without a span it is about the file as a whole.
pub(crate) struct Found {
    pub(crate) severity: Severity,
    pub(crate) span: Option<Span>,
    pub(crate) problem: Problem,
}

/// What all readers of one file share.
pub(crate) struct Context<'a> {
    pub(crate) host: &'a dyn Host,
    pub(crate) source: &'a str,
    lines: &'a Lines<'a>,
    base_dir: &'a Path,
    found: RefCell<Vec<Found>>,
    /// Every `table.key` that was asked for, for the test of the documentation.
    #[cfg(test)]
    pub(crate) asked: RefCell<std::collections::BTreeSet<String>>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(host: &'a dyn Host, source: &'a str, lines: &'a Lines<'a>, base_dir: &'a Path) -> Self {
        Self {
            host,
            source,
            lines,
            base_dir,
            found: RefCell::default(),
            #[cfg(test)]
            asked: RefCell::default(),
        }
    }

    fn push(&self, severity: Severity, span: Option<Span>, problem: Problem) {
        self.found.borrow_mut().push(Found { severity, span, problem });
    }

    pub(crate) fn error(&self, span: &Span, message: impl Into<String>, help: impl Into<String>) {
        self.push(Severity::Error, Some(span.clone()), Problem::new(message, help));
    }

    pub(crate) fn warning(&self, span: &Span, message: impl Into<String>, help: impl Into<String>) {
        self.push(Severity::Warning, Some(span.clone()), Problem::new(message, help));
    }

    pub(crate) fn error_in_file(&self, message: impl Into<String>, help: impl Into<String>) {
        self.push(Severity::Error, None, Problem::new(message, help));
    }

    pub(crate) fn into_found(self) -> Vec<Found> {
        self.found.into_inner()
    }

    /// The line of a span, counted from 1, to name it in another message.
    pub(crate) fn line(&self, span: &Span) -> usize {
        self.lines.line(span.start)
    }

    /// A path of the file: relative ones start at the file's own directory.
    pub(crate) fn resolve(&self, path: &str) -> PathBuf {
        self.base_dir.join(path)
    }
}

/// A text from the file inside a message: short, printable, without passwords in URLs.
pub(crate) fn quote(text: &str) -> String {
    let masked = mask_user_info(text);
    let mut shown: String = masked.chars().take(60).flat_map(char::escape_debug).collect();
    if masked.chars().nth(60).is_some() {
        shown.push_str("...");
    }
    if shown.is_empty() {
        shown.push_str("\"\"");
    }
    format!("`{}`", shown.replace("\\\"", "\"").replace("\\'", "'"))
}

/// `a`, `b` or `c`.
pub(crate) fn one_of<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    let words: Vec<&str> = words.into_iter().collect();
    let mut text = String::new();
    for (index, word) in words.iter().enumerate() {
        let between = match words.len() - index {
            _ if index == 0 => "",
            1 => " or ",
            _ => ", ",
        };
        // Writing to a String cannot fail.
        let _ = write!(text, "{between}`{word}`");
    }
    text
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// One value of the file, with its place and the key it belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Value<'a> {
    pub(crate) cx: &'a Context<'a>,
    pub(crate) key: &'a str,
    node: &'a Spanned<DeValue<'a>>,
    /// True for one of a list.
    in_list: bool,
}

impl<'a> Value<'a> {
    pub(crate) fn span(&self) -> Span {
        self.node.span()
    }

    pub(crate) fn error(&self, message: impl Into<String>, help: impl Into<String>) {
        self.cx.error(&self.span(), message, help);
    }

    pub(crate) fn report(&self, problem: Problem) {
        self.error(problem.message, problem.help);
    }

    pub(crate) fn is_table(&self) -> bool {
        self.node.get_ref().is_table()
    }

    /// True for an empty list or table.
    pub(crate) fn is_empty(&self) -> bool {
        let node = self.node.get_ref();
        node.as_array().is_some_and(|array| array.is_empty())
            || node.as_table().is_some_and(DeTable::is_empty)
    }

    pub(crate) fn is_string(&self) -> bool {
        self.node.get_ref().is_str()
    }

    pub(crate) fn is_integer(&self) -> bool {
        self.node.get_ref().is_integer()
    }

    /// Reports a value of another type; `example` is how a right one is written.
    pub(crate) fn wrong_type(&self, expected: &str, example: &str) {
        let found = type_name(self.node.get_ref());
        let key = self.key;
        if self.in_list {
            let example =
                example.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(example);
            self.error(
                format!("each of `{key}` must be {expected}, not {found}"),
                format!("write {example}"),
            );
        } else {
            self.error(
                format!("`{key}` must be {expected}, not {found}"),
                format!("write {key} = {example}"),
            );
        }
    }

    pub(crate) fn string(&self, example: &str) -> Option<&'a str> {
        let text = self.node.get_ref().as_str();
        if text.is_none() {
            self.wrong_type("a string", example);
        }
        text
    }

    /// A string that is not empty.
    pub(crate) fn text(&self, example: &str) -> Option<&'a str> {
        let text = self.string(example)?;
        if text.trim().is_empty() || text.contains(char::is_control) {
            let what = if text.trim().is_empty() { "is empty" } else { "holds control characters" };
            self.error(format!("`{}` {what}", self.key), format!("write {} = {example}", self.key));
            return None;
        }
        Some(text)
    }

    /// A string that `read` understands.
    pub(crate) fn parse<T>(&self, example: &str, read: impl FnOnce(&str) -> Result<T, Problem>) -> Option<T> {
        match read(self.string(example)?) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.report(problem);
                None
            }
        }
    }

    pub(crate) fn boolean(&self) -> Option<bool> {
        let value = self.node.get_ref().as_bool();
        if value.is_none() {
            self.wrong_type("true or false", "true");
        }
        value
    }

    pub(crate) fn integer(&self, range: &RangeInclusive<u32>) -> Option<u32> {
        let (low, high) = (range.start(), range.end());
        let Some(integer) = self.node.get_ref().as_integer() else {
            let found = type_name(self.node.get_ref());
            let message = format!("`{}` must be an integer, not {found}", self.key);
            self.error(message, format!("write a number from {low} to {high}, without quotes"));
            return None;
        };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.and_then(|number| u32::try_from(number).ok()).filter(|n| range.contains(n));
        if number.is_none() {
            let written = self.cx.source.get(self.span()).unwrap_or(integer.as_str());
            let message = format!("`{}` cannot be {}", self.key, quote(written));
            let to = if high - low == 1 { "or" } else { "to" };
            let from = if high - low == 1 { "write" } else { "write a number from" };
            self.error(message, format!("{from} {low} {to} {high}"));
        }
        number
    }

    /// An integer of any size, for values that have their own checks.
    pub(crate) fn signed(&self) -> Option<i64> {
        let integer = self.node.get_ref().as_integer()?;
        i64::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    pub(crate) fn choice<C: Choice>(&self) -> Option<C> {
        let first = C::WORDS.first().map_or("", |(word, _)| word);
        let written = self.string(&format!("{first:?}"))?;
        let found = C::WORDS.iter().find(|(word, _)| *word == written);
        if found.is_none() {
            self.unknown_word(written, C::WORDS.iter().map(|(word, _)| *word));
        }
        found.map(|(_, value)| *value)
    }

    /// Reports a word that is none of the possible ones.
    pub(crate) fn unknown_word(&self, written: &str, words: impl Iterator<Item = &'static str> + Clone) {
        let all = one_of(words.clone());
        let help = match nearest(written, words) {
            Some(word) => format!("did you mean \"{word}\"? It can be {all}"),
            None => format!("it can be {all}"),
        };
        self.error(format!("`{}` cannot be {}", self.key, quote(written)), help);
    }

    pub(crate) fn duration(&self, range: &RangeInclusive<Duration>, example: &str) -> Option<Duration> {
        let key = self.key;
        if self.is_integer() {
            let number = self.signed().unwrap_or(30);
            self.error(
                format!("`{key}` has no unit"),
                format!("write {key} = \"{number}s\" or \"{number}ms\""),
            );
            return None;
        }
        let written = self.string(example)?;
        let Some(duration) = parse_duration(written) else {
            let message = format!("`{key}` cannot be {}", quote(written));
            self.error(message, "write a whole number and a unit, as in \"500ms\", \"30s\", \"5m\", \"1h\"");
            return None;
        };
        if !range.contains(&duration) {
            let message = format!("`{key}` cannot be {}", quote(written));
            let (low, high) = (write_duration(*range.start()), write_duration(*range.end()));
            self.error(message, format!("write a time from \"{low}\" to \"{high}\""));
            return None;
        }
        Some(duration)
    }

    pub(crate) fn bytes(&self) -> Option<Bytes> {
        let key = self.key;
        if self.is_integer() {
            let number = self.signed().unwrap_or(16);
            self.error(
                format!("`{key}` has no unit"),
                format!("write {key} = \"{number}MiB\" or \"{number}B\""),
            );
            return None;
        }
        let written = self.string("\"16MiB\"")?;
        let bytes = parse_bytes(written).filter(|bytes| bytes.0 > 0);
        if bytes.is_none() {
            self.error(
                format!("`{key}` cannot be {}", quote(written)),
                "write a whole number above zero and a unit, as in \"512KiB\", \"16MiB\", \"1GiB\"; leave the key out for no limit",
            );
        }
        bytes
    }

    pub(crate) fn list(&self, example: &str) -> Option<Vec<Value<'a>>> {
        let Some(array) = self.node.get_ref().as_array() else {
            self.wrong_type("a list", example);
            return None;
        };
        Some(array.iter().map(|node| self.item(node)).collect())
    }

    fn item(&self, node: &'a Spanned<DeValue<'a>>) -> Self {
        Self { cx: self.cx, key: self.key, node, in_list: true }
    }

    /// A list, or one value without brackets.
    pub(crate) fn one_or_more(&self) -> Vec<Value<'a>> {
        match self.node.get_ref().as_array() {
            Some(array) => array.iter().map(|node| self.item(node)).collect(),
            None => vec![*self],
        }
    }

    /// A table. `schema` is its path with `*` for names, `title` how messages call it.
    pub(crate) fn table(&self, schema: &'static str, title: String, example: &str) -> Option<Table<'a>> {
        let Some(entries) = self.node.get_ref().as_table() else {
            self.wrong_type("a table", example);
            return None;
        };
        Some(Table { cx: self.cx, entries, span: self.span(), schema, title, asked: Vec::new() })
    }

    /// Keys and values of a table in which people choose the keys.
    pub(crate) fn entries(&self, example: &str) -> Vec<(Span, Value<'a>)> {
        let Some(entries) = self.node.get_ref().as_table() else {
            self.wrong_type("a table", example);
            return Vec::new();
        };
        let value = |key: &'a Spanned<_>, node| {
            (key.span(), Value { cx: self.cx, key: as_text(key), node, in_list: false })
        };
        entries.iter().map(|(key, node)| value(key, node)).collect()
    }
}

fn as_text<'a>(key: &'a Spanned<std::borrow::Cow<'a, str>>) -> &'a str {
    key.get_ref()
}

/// One table of the file.
pub(crate) struct Table<'a> {
    pub(crate) cx: &'a Context<'a>,
    entries: &'a DeTable<'a>,
    span: Span,
    #[cfg_attr(not(test), expect(dead_code, reason = "read by the test of the documentation only"))]
    schema: &'static str,
    title: String,
    asked: Vec<&'static str>,
}

impl<'a> Table<'a> {
    /// The whole document.
    pub(crate) fn root(cx: &'a Context<'a>, entries: &'a DeTable<'a>) -> Self {
        Self { cx, entries, span: 0..0, schema: "", title: "the file".to_owned(), asked: Vec::new() }
    }

    /// The table's header, or all of an inline table.
    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// The value of a key. Every key that is valid here must be asked for on every path.
    pub(crate) fn get(&mut self, key: &'static str) -> Option<Value<'a>> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
            #[cfg(test)]
            self.cx.asked.borrow_mut().insert(format!("{}/{key}", self.schema));
        }
        self.entries.get(key).map(|node| Value { cx: self.cx, key, node, in_list: false })
    }

    /// The value of a key that must be there.
    pub(crate) fn required(&mut self, key: &'static str, example: &str) -> Option<Value<'a>> {
        let value = self.get(key);
        if value.is_none() {
            let message = format!("{} has no `{key}`", self.title);
            self.cx.error(&self.span, message, format!("write {key} = {example}"));
        }
        value
    }

    pub(crate) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        self.get(key).and_then(|value| value.boolean()).unwrap_or(default)
    }

    pub(crate) fn choice<C: Choice>(&mut self, key: &'static str, default: C) -> C {
        self.get(key).and_then(|value| value.choice()).unwrap_or(default)
    }

    pub(crate) fn integer(&mut self, key: &'static str, range: RangeInclusive<u32>, default: u32) -> u32 {
        self.get(key).and_then(|value| value.integer(&range)).unwrap_or(default)
    }

    pub(crate) fn text(&mut self, key: &'static str, example: &str) -> Option<String> {
        self.get(key).and_then(|value| value.text(example)).map(str::to_owned)
    }

    pub(crate) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let example = format!("\"{}\"", write_duration(default));
        self.get(key).and_then(|value| value.duration(&range, &example)).unwrap_or(default)
    }

    /// Keys and values of a table in which people choose the keys.
    pub(crate) fn entries(&mut self, key: &'static str, example: &str) -> Vec<(Span, Value<'a>)> {
        self.get(key).map(|value| value.entries(example)).unwrap_or_default()
    }

    /// The tables of `[[key]]`.
    pub(crate) fn tables(&mut self, key: &'static str, example: &str) -> Vec<Table<'a>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        if value.is_table() {
            value.error(
                format!("`{key}` can be there several times"),
                format!("write [[{key}]] instead of [{key}]"),
            );
            return Vec::new();
        }
        let items = value.list(example).unwrap_or_default();
        let title = || format!("[[{key}]]");
        items.into_iter().filter_map(|item| item.table(key, title(), example)).collect()
    }

    /// Reports every key that nobody asked for.
    pub(crate) fn finish(self) {
        for (key, value) in self.entries {
            let written = as_text(key);
            if self.asked.contains(&written) {
                continue;
            }
            let all = one_of(self.asked.iter().copied());
            let file = format!("{written}_file");
            let help = match nearest(written, self.asked.iter().copied()) {
                _ if self.asked.contains(&file.as_str()) => {
                    format!("secrets are not written in this file: write {file} = \"...\"")
                }
                Some(word) => format!("did you mean `{word}`?"),
                None if self.asked.is_empty() => "remove it".to_owned(),
                None => format!("it can be {all}"),
            };
            let span = if key.span().is_empty() { value.span() } else { key.span() };
            self.cx.error(&span, format!("unknown key {} in {}", quote(written), self.title), help);
        }
    }
}

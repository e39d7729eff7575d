//! From the TOML tree to a [`Config`]. One module for each part of the file; what concerns several parts
//! (names that must exist, addresses that must not overlap) is checked in [`cross`].

mod cluster;
mod cross;
mod listener;
mod process;
mod shared;
mod track;
mod vip;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, path::Path, sync::Arc};

use toml::de::DeTable;

use crate::{
    Config, Diagnostic, Diagnostics, Host, NodeName,
    diagnostics::{Lines, Severity},
    read::shared::Binds,
    reader::{Context, Found, Span, Table, quote},
    units::minutes,
};

/// Everything that was read, before what concerns several parts has been checked.
struct Draft<'a> {
    clusters: Vec<cluster::Draft<'a>>,
    listeners: Vec<listener::Draft>,
    binds: Binds,
    has_vips: bool,
    /// The keys are there with something in them, however wrong.
    has_clusters: bool,
    has_listeners: bool,
}

/// Reads a whole file.
pub(crate) fn read(host: &dyn Host, source: &str, file: &str, base: &Path) -> Result<Config, Diagnostics> {
    let file: Arc<str> = Arc::from(file);
    let lines = Lines::new(source);
    let (tree, errors) = DeTable::parse_recoverable(source);
    if !errors.is_empty() {
        return Err(Diagnostics::new(syntax_errors(&file, &lines, &errors)));
    }
    let cx = Context::new(host, source, &lines, base);
    let config = read_tree(&cx, tree.get_ref());
    let found = cx.into_found().into_iter().map(|found| diagnostic(&file, &lines, found));
    let (errors, mut warnings): (Vec<_>, Vec<_>) =
        found.partition(|found| found.severity() == Severity::Error);
    match config {
        Some(config) if errors.is_empty() => {
            warnings.sort_by(Diagnostic::by_place);
            Ok(Config { warnings, ..config })
        }
        // Beside errors warnings are noise, and some would only be echoes of them.
        _ => Err(Diagnostics::new(errors)),
    }
}

fn diagnostic(file: &Arc<str>, lines: &Lines<'_>, found: Found) -> Diagnostic {
    let Found { severity, span, problem } = found;
    let diagnostic = Diagnostic::whole_file(severity, file, problem.message, problem.help);
    match span {
        Some(span) => diagnostic.at(lines, span),
        None => diagnostic,
    }
}

/// The parser's own errors. One for each line: what follows on the same line is mostly an echo.
fn syntax_errors(file: &Arc<str>, lines: &Lines<'_>, errors: &[toml::de::Error]) -> Vec<Diagnostic> {
    let mut seen: BTreeSet<Option<usize>> = BTreeSet::new();
    let mut list: Vec<Diagnostic> = Vec::new();
    for error in errors {
        let message = format!("this is not TOML: {}", error.message());
        let help = syntax_help(error.message()).to_owned();
        let mut diagnostic = Diagnostic::whole_file(Severity::Error, file, message, help);
        if let Some(span) = error.span() {
            diagnostic = diagnostic.at(lines, span);
        }
        if seen.insert(diagnostic.line_column().map(|(line, _)| line)) {
            list.push(diagnostic);
        }
    }
    list
}

fn syntax_help(message: &str) -> &'static str {
    if message.contains("unclosed") {
        "close it with `]`, or `}` for an inline table"
    } else if message.contains("invalid basic string") {
        "close the text with a double quote on the same line"
    } else if message.contains("duplicate key") {
        "write each key once; tables that may be there several times have double brackets, as in [[listeners]]"
    } else if message.contains("string values must be quoted") || message.contains("quote") {
        "write texts in double quotes: key = \"value\""
    } else {
        "write key = value, with texts in double quotes: hold = \"60s\""
    }
}

fn read_tree<'a>(cx: &'a Context<'a>, tree: &'a DeTable<'a>) -> Option<Config> {
    let mut root = Table::root(cx, tree);
    let node = node(&mut root);
    let state_dir = shared::path(&mut root, "state_dir", "/var/lib/pointsman");
    let mut draft = Draft {
        clusters: cluster::read_all(&mut root),
        listeners: listener::read_all(&mut root),
        binds: Binds::default(),
        has_vips: false,
        has_clusters: false,
        has_listeners: false,
    };
    let (admin, admin_binds) = process::admin(&mut root);
    draft.binds.extend(draft.listeners.iter().flat_map(|listener| listener.binds.iter().cloned()));
    draft.binds.extend(admin_binds);
    let relay = process::relay(&mut root);
    let log = process::log(&mut root);
    let shutdown = process::shutdown(&mut root);
    let (vrrp, vips) = vip::read_all(&mut root, node.as_ref(), &mut draft.binds, &admin.socket);
    draft.has_vips = vrrp.is_some();
    draft.has_clusters = root.get("clusters").is_some_and(|value| !value.is_empty());
    draft.has_listeners = root.get("listeners").is_some_and(|value| !value.is_empty());
    root.finish();

    draft.binds.check(cx);
    cross::check(cx, &mut draft);
    Some(Config {
        node: node?,
        state_dir,
        clusters: draft.clusters.into_iter().map(|draft| draft.cluster).collect::<Option<_>>()?,
        listeners: draft.listeners.into_iter().map(listener::Draft::finish).collect::<Option<_>>()?,
        admin,
        vrrp,
        vips,
        relay,
        log,
        shutdown,
        warnings: Vec::new(),
    })
}

/// `node`, or the host name. A fully qualified host name counts with its first label only.
fn node(root: &mut Table<'_>) -> Option<NodeName> {
    if let Some(value) = root.get("node") {
        return value.parse("\"lb1\"", shared::name);
    }
    let host_name = root.cx.host.host_name();
    let label = host_name.as_deref().and_then(|name| name.split('.').next());
    let node = label.and_then(|label| NodeName::new(label).ok());
    if node.is_none() {
        let name = host_name.unwrap_or_default();
        let message = format!("the host name {} cannot be the name of this node", quote(&name));
        root.cx.error_in_file(message, "write node = \"lb1\" at the top of the file");
    }
    node
}

/// A name that was already used, with the place of its first use.
fn report_twice(cx: &Context<'_>, span: &Span, what: &str, first: &Span, help: &str) {
    cx.error(span, format!("{what} is there twice, first in line {}", cx.line(first)), help);
}

/// The longest time that anything may take, where no better bound is known.
const A_DAY: std::time::Duration = minutes(24 * 60);

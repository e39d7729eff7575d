//! The reference page names every key that the reader knows, and no other.

use std::{collections::BTreeSet, path::Path};

use toml::de::DeTable;

use crate::{System, diagnostics::Lines, reader::Context};

/// Every table of the grammar at least once. Whether the values are right does not matter here.
const EVERY_TABLE: &str = r#"
admin = { users = [{}] }
relay = {}
log = {}
shutdown = {}
vrrp = {}
vips = [{ auth = {}, track = {} }]
[[listeners]]
keepalive = {}
tls = { mode = "terminate" }
server_tls = {}
[clusters.a]
sql = {}
rest = { tls = {} }
discovery = { etcd = { tls = {} }, consul = { tls = {} }, patroni = {}, static = { members = [{}] } }
"#;

/// The keys that the reader asks for in such a file.
fn asked(source: &str) -> BTreeSet<String> {
    let tree = DeTable::parse(source).unwrap();
    let lines = Lines::new(source);
    let cx = Context::new(&System, source, &lines, Path::new("/nowhere"));
    super::read_tree(&cx, tree.get_ref());
    cx.asked.into_inner()
}

/// The keys of the page: first column of the tables, under headings that name the table's path.
fn documented(page: &str) -> BTreeSet<String> {
    let mut paths: Vec<String> = Vec::new();
    let mut keys = BTreeSet::new();
    let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    for line in page.lines() {
        if line.starts_with('#') {
            let path = |path: String| path.trim_matches(['[', ']']).replace("NAME", "*");
            paths = quoted(line).into_iter().map(path).collect();
            if line.contains("Top level") {
                paths = vec![String::new()];
            }
        } else if let Some(row) = line.strip_prefix("| `") {
            let key = row.split('`').next().unwrap_or_default();
            keys.extend(paths.iter().map(|path| format!("{path}/{key}")));
        }
    }
    keys
}

#[test]
fn the_reference_names_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let documented = documented(&std::fs::read_to_string(path).unwrap());
    let known = asked(EVERY_TABLE);
    assert!(known.len() > 90, "{known:#?}");
    let missing: Vec<_> = known.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&known).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "missing: {missing:#?}\nnot in the grammar: {invented:#?}"
    );
}

/// The committed file with every key, on which other tests stand, really has every key.
#[test]
fn every_key_is_in_the_file_of_every_key() {
    let source = include_str!("../../tests/diagnostics/every-key.toml");
    let words: BTreeSet<&str> = source.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    let keys = asked(EVERY_TABLE);
    let missing: Vec<_> =
        keys.iter().filter(|key| !key.rsplit('/').next().is_some_and(|key| words.contains(key))).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    assert_eq!(asked(source), keys, "every table is there");
}

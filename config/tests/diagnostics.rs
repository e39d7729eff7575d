//! Wrong files and exactly what is said about them: `diagnostics/NAME.toml` and `diagnostics/NAME.txt`.
//! `BLESS=1 cargo test -p pointsman-config --test diagnostics` rewrites the expected texts; read the diff.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use pointsman_config::Config;
use support::{BASE, Pretend};

/// What is said about a text, errors and warnings alike.
fn said(name: &str, source: &str) -> String {
    match Config::parse_on(&Pretend::default(), source, name, Path::new(BASE)) {
        Err(diagnostics) => format!("{diagnostics}\n"),
        Ok(config) => {
            let warnings: Vec<String> = config.warnings.iter().map(|w| format!("{w}\n\n")).collect();
            format!("{}no errors\n", warnings.concat())
        }
    }
}

/// The lines that differ, with what was expected in front.
fn difference(expected: &str, said: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), said.lines().collect());
    let line = |index: usize| match (old.get(index), new.get(index)) {
        (a, b) if a == b => None,
        (a, b) => Some(format!("{:4} - {}\n     + {}\n", index + 1, a.unwrap_or(&""), b.unwrap_or(&""))),
    };
    (0..old.len().max(new.len())).filter_map(line).take(20).collect()
}

fn cases() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/diagnostics");
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    cases.sort();
    cases
}

#[test]
fn wrong_files_are_explained_exactly() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut failures: Vec<String> = Vec::new();
    let cases = cases();
    assert!(cases.len() >= 20, "only {} cases found", cases.len());
    for case in cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let said = said(&name, &fs::read_to_string(&case).unwrap());
        let text = case.with_extension("txt");
        if bless {
            fs::write(&text, &said).unwrap();
        }
        let expected = fs::read_to_string(&text).unwrap_or_default();
        if expected != said {
            failures.push(format!("{name}\n{}", difference(&expected, &said)));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn every_error_has_a_place_and_a_help() {
    for case in cases() {
        let source = fs::read_to_string(&case).unwrap();
        let lines = source.lines().count().max(1);
        let Err(diagnostics) = Config::parse_on(&Pretend::default(), &source, "x", Path::new(BASE)) else {
            continue;
        };
        assert!(!diagnostics.is_empty());
        for diagnostic in &diagnostics {
            assert!(!diagnostic.message().is_empty() && !diagnostic.help().is_empty(), "{diagnostic}");
            if let Some((line, column)) = diagnostic.line_column() {
                assert!((1..=lines + 1).contains(&line) && column >= 1, "{diagnostic}");
            }
        }
    }
}

#[test]
fn secrets_in_the_file_are_never_repeated() {
    for line in [
        "password = \"hunter2\"",
        "passwrod = 'hunter2' # typo",
        "\"password\" = \"hunter2\"",
        "sql = { user = \"x\", password = \"a\\\"hunter2\" }",
        "token = \"\"\"hunter2\"\"\"",
        "users = [{ name = \"a\", password_hash = \"hunter2\" }]",
        "password = hunter2",
        "password = \"hunter2",
        "discovery = { etcd = { endpoints = [\"http://root:hunter2@10.0.0.1:2379\"] } }",
        "discovery = { etcd = { endpoints = [\"ftp://root:hunter2@10.0.0.1:2379/x\"] } }",
        "discovery = { patroni = { members = [\"root:hunter2@10.0.0.1\"] } }",
    ] {
        for header in ["[clusters.main]", "[admin]", "[clusters.main.discovery.etcd]"] {
            let said = said("x", &format!("{header}\n{line}\n"));
            assert!(said.contains(" = help: "), "nothing is wrong with {line}");
            assert!(!said.contains("hunter2"), "{line}\n{said}");
        }
    }
}

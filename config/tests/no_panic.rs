//! Whatever the file holds, reading it ends in a configuration or in at least one printable error.

mod support;

use std::{fmt::Write as _, path::Path};

use pointsman_config::Config;
use proptest::{prelude::*, sample::Index};
use support::{BASE, Pretend};

const EXAMPLES: [&str; 7] = [
    include_str!("diagnostics/every-key.toml"),
    include_str!("../examples/1-patroni-etcd-vip.toml"),
    include_str!("../examples/2-patroni-consul.toml"),
    include_str!("../examples/3-cloud-balancer.toml"),
    include_str!("../examples/4-multi-master.toml"),
    include_str!("../examples/4b-repmgr.toml"),
    include_str!("../examples/5-laptop.toml"),
];

/// Pieces that an almost right file is made of.
const PIECES: [&str; 44] = [
    "[clusters.main]\n",
    "[clusters]\n",
    "[[clusters]]\n",
    "[[listeners]]\n",
    "[listeners]\n",
    "[admin]\n",
    "[[admin]]\n",
    "[vrrp]\n",
    "[[vips]]\n",
    "[relay]\n",
    "[log]\n",
    "[shutdown]\n",
    "[clusters.main.sql]\n",
    "[clusters.main.discovery.etcd]\n",
    "[clusters.main.discovery.static]\n",
    "[listeners.tls]\n",
    "bind = ",
    "target = ",
    "discovery = ",
    "hold = ",
    "priority = ",
    "addresses = ",
    "members = ",
    "tls = ",
    "endpoints = ",
    "users = ",
    "track = ",
    "password_file = ",
    "max_lag = ",
    "node = ",
    "\"\"\n",
    "\"0.0.0.0:5000\"\n",
    "[]\n",
    "{}\n",
    "[{}]\n",
    "0\n",
    "-1\n",
    "99999999999999999999\n",
    "1.5\n",
    "true\n",
    "\"primary\"\n",
    "{ etcd = { endpoints = [\"http://a:1\"] } }\n",
    "1979-05-27\n",
    "\"60s\"\n",
];

fn check(source: &str) -> Result<(), TestCaseError> {
    match Config::parse_on(&Pretend::default(), source, "any.toml", Path::new(BASE)) {
        Ok(config) => {
            let shown = format!("{config:?}");
            prop_assert!(!shown.contains("reader's password") && !shown.contains("b1gs33cr3t"));
        }
        Err(diagnostics) => {
            prop_assert!(!diagnostics.is_empty());
            let shown = diagnostics.to_string();
            prop_assert!(shown.ends_with("error") || shown.ends_with("errors"));
            let control = shown.chars().find(|c| c.is_control() && *c != '\n');
            prop_assert_eq!(control, None, "{}", shown);
        }
    }
    Ok(())
}

/// Deletes, doubles, replaces or cuts somewhere.
fn mutate(source: &str, mutations: &[(Index, u8, String)]) -> String {
    let mut characters: Vec<char> = source.chars().collect();
    for (index, kind, text) in mutations {
        let at = index.index(characters.len() + 1);
        let end = (at + 1 + usize::from(*kind) / 5).min(characters.len());
        match kind % 5 {
            0 => drop(characters.drain(at..end)),
            1 => drop(characters.splice(at..end, text.chars())),
            2 => drop(characters.splice(at..at, text.chars())),
            3 => drop(characters.splice(at..at, characters[at..end].to_vec())),
            _ => characters.truncate(at.max(characters.len() / 2)),
        }
    }
    characters.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text(source in any::<String>()) {
        check(&source)?;
    }

    #[test]
    fn any_pieces(picks in prop::collection::vec(any::<Index>(), 0..24)) {
        let mut source = String::new();
        for pick in picks {
            write!(source, "{}", pick.get::<&str>(&PIECES)).unwrap();
        }
        check(&source)?;
    }

    #[test]
    fn mutated_examples(
        example in any::<Index>(),
        mutations in prop::collection::vec((any::<Index>(), any::<u8>(), "\\PC{0,4}|[\"\\[\\]{}=.\n0-9-]{1,4}"), 1..8),
    ) {
        check(&mutate(example.get::<&str>(&EXAMPLES), &mutations))?;
    }

    /// Every value of a right file in turn becomes something else of TOML.
    #[test]
    fn other_values(example in any::<Index>(), line in any::<Index>(), piece in 30..PIECES.len()) {
        let source = example.get::<&str>(&EXAMPLES);
        let with_value: Vec<usize> =
            source.lines().enumerate().filter(|(_, l)| l.contains(" = ")).map(|(i, _)| i).collect();
        let chosen = *line.get(&with_value);
        let replace = |(i, line): (usize, &str)| match line.split_once(" = ") {
            Some((key, _)) if i == chosen => format!("{key} = {}", PIECES[piece]),
            _ => format!("{line}\n"),
        };
        check(&source.lines().enumerate().map(replace).collect::<String>())?;
    }
}

#[test]
fn deep_nesting_ends() {
    for (open, close) in [("[", "]"), ("{ a = ", "}")] {
        let source = format!("clusters = {}{}", open.repeat(100_000), close.repeat(100_000));
        check(&source).unwrap();
    }
    check(&format!("{} = 1", vec!["a"; 100_000].join("."))).unwrap();
    check(&"[[listeners]]\n".repeat(5000)).unwrap();
}

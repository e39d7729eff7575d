//! "Did you mean": the nearest of the words that are possible.

/// Words that people bring from HAProxy, keepalived and older Patroni.
const OTHER_WORDS: [(&str, &str); 10] = [
    ("master", "primary"),
    ("leader", "primary"),
    ("slave", "replicas"),
    ("standby", "replicas"),
    ("warning", "warn"),
    ("backend", "cluster"),
    ("vrid", "router_id"),
    ("virtual_router_id", "router_id"),
    ("virtual_ipaddress", "addresses"),
    ("zookeeper", "patroni"),
];

/// The possible word that `written` most likely stands for.
pub(crate) fn nearest<'a>(written: &str, possible: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = normal(written);
    let meant = OTHER_WORDS.iter().find(|(other, _)| normal(other) == written).map(|(_, ours)| *ours);
    let rank = |word: &'a str| {
        let candidate = normal(word);
        if Some(word) == meant || candidate == written {
            return Some((0, word));
        }
        let steps = distance(&written, &candidate);
        let long = written.chars().count();
        let prefix = long >= 4 && candidate.starts_with(&written);
        (prefix || steps <= (long / 3).max(1)).then_some((steps, word))
    };
    possible.into_iter().filter_map(rank).min_by_key(|(steps, _)| *steps).map(|(_, word)| word)
}

fn normal(word: &str) -> String {
    // No key is longer; a text of a megabyte must not cost a megabyte squared.
    word.chars().filter(char::is_ascii_alphanumeric).take(40).collect::<String>().to_ascii_lowercase()
}

/// Edits (insert, delete, replace, swap two neighbours) from one word to the other: the optimal string
/// alignment distance. Words are cut at 40 characters.
pub(crate) fn distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.chars().take(40).collect();
    let to: Vec<char> = to.chars().take(40).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX - 1);
            let replace = at(&last, j) + usize::from(a != b);
            let mut best = replace.min(at(&last, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && from.get(i - 1) == Some(b) && to.get(j - 1) == Some(a);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (from, to, steps) in
            [("", "", 0), ("", "abc", 3), ("bnd", "bind", 1), ("bidn", "bind", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(from, to), steps, "{from} {to}");
            assert_eq!(distance(to, from), steps, "{to} {from}");
        }
    }

    #[test]
    fn suggestions() {
        let words = ["round-robin", "least-connections", "primary", "replicas", "max_connections", "any"];
        for (written, meant) in [
            ("roundrobin", Some("round-robin")),
            ("leastconn", Some("least-connections")),
            ("maxconn", Some("max_connections")),
            ("Primary", Some("primary")),
            ("replica", Some("replicas")),
            ("master", Some("primary")),
            ("fish", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, words), meant, "{written}");
        }
    }
}

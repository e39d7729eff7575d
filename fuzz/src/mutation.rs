//! The corpus of the fuzz targets, and random mutations of it, for the tests that feed the checks on a stable toolchain. No
//! part of the fuzz targets themselves, which mutate better.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

/// The files of a target with their names, in order.
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    assert!(files.len() >= 10, "the corpus of {target} is missing");
    files
}

#[derive(Clone, Debug)]
enum Mutation {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    /// Repeats the end from there on.
    Repeat(prop::sample::Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let byte = prop_oneof![Just(0u8), Just(8), Just(0xff), any::<u8>()];
    prop_oneof![
        3 => (any::<prop::sample::Index>(), byte).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        1 => any::<prop::sample::Index>().prop_map(Mutation::Cut),
        1 => (any::<prop::sample::Index>(), proptest::collection::vec(any::<u8>(), 1..20))
            .prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        1 => any::<prop::sample::Index>().prop_map(Mutation::Repeat),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    if bytes.is_empty() {
        return;
    }
    match mutation {
        Mutation::Set(at, byte) => *at.get_mut(bytes) = *byte,
        Mutation::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Mutation::Insert(at, more) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, more.iter().copied());
        }
        Mutation::Repeat(at) => bytes.extend_from_within(at.index(bytes.len())..),
    }
}

/// A file of the target's corpus with a few changes.
pub fn mutated(target: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let files: Vec<_> = corpus(target).into_iter().map(|(_, bytes)| bytes).collect();
    (prop::sample::select(files), proptest::collection::vec(mutation(), 0..6)).prop_map(
        |(mut bytes, mutations)| {
            for mutation in &mutations {
                mutate(&mut bytes, mutation);
            }
            bytes
        },
    )
}

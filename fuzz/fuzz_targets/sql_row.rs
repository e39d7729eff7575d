//! The row that a server answers over SQL: columns between tabs, `\N` for null.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pointsman_fuzz::checks::sql_row(data));

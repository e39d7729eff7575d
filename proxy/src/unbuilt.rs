//! temporary
/// x
pub fn unbuilt(_: &pointsman_config::Config) -> Vec<String> { vec![] }

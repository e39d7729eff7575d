//! temporary
/// x
pub struct Logging;
impl Logging {
    /// x
    pub fn set_level(&self, _: pointsman_config::LogLevel) {}
}

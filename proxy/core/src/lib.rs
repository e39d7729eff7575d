//! The decisions of Pointsman.

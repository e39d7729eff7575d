//! Pointsman's configuration file.

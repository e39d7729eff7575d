//! Test clusters made of real servers.

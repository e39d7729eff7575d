//! Load generators and side-by-side comparison.

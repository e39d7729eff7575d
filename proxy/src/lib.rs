//! The I/O shell of the proxy.

//! The listener from outside: real sockets on loopback, fake servers, routes published by hand.

mod bytes;
mod holding;
mod lab;
mod life;
mod starting;

//! Sessions through a listener, with fake servers behind it: every test runs on both backends of the relay engine.

macro_rules! on {
    ($name:ident, $backend:ident) => {
        #[path = "."]
        mod $name {
            const BACKEND: pointsman_config::Engine = pointsman_config::Engine::$backend;
            #[path = "bytes.rs"]
            mod bytes;
            #[path = "holding.rs"]
            mod holding;
            #[path = "lab.rs"]
            mod lab;
            #[path = "life.rs"]
            mod life;
            #[path = "starting.rs"]
            mod starting;
        }
    };
}

on!(epoll, Epoll);
on!(io_uring, IoUring);

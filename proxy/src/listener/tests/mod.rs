//! Sessions through a listener, with fake servers behind it: every test runs on both backends of the relay engine, and on both of them
//! again with a driver that injects faults.

#![expect(clippy::duplicate_mod, reason = "the same tests for each driver")]

use crate::engine::{Engine, EngineError};
use pointsman_config::Engine::{Epoll, IoUring};

mod random;

macro_rules! on {
    ($name:ident, $engine:expr, rough) => {
        #[path = "."]
        #[expect(dead_code, reason = "most tests ask for what a kernel in a bad hour does not give")]
        mod $name {
            const FAULTY: bool = true;
            const ROUGH: bool = true;
            fn engine() -> crate::engine::Engine {
                $engine.unwrap()
            }
            #[path = "ends.rs"]
            mod ends;
            #[path = "lab.rs"]
            mod lab;
        }
    };
    ($name:ident, $engine:expr, faulty: $faulty:expr) => {
        #[path = "."]
        mod $name {
            const FAULTY: bool = $faulty;
            const ROUGH: bool = false;
            fn engine() -> crate::engine::Engine {
                $engine.unwrap()
            }
            #[path = "bytes.rs"]
            mod bytes;
            #[path = "ends.rs"]
            mod ends;
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

fn real(engine: pointsman_config::Engine) -> Result<Engine, EngineError> {
    Engine::start(&pointsman_config::Relay { engine, threads: Some(2.try_into().unwrap()) })
}

on!(epoll, super::real(super::Epoll), faulty: false);
on!(io_uring, super::real(super::IoUring), faulty: false);
on!(faulty_epoll, super::Engine::start_faulty::<false>(super::Epoll), faulty: true);
on!(faulty_io_uring, super::Engine::start_faulty::<false>(super::IoUring), faulty: true);
on!(rough_epoll, super::Engine::start_faulty::<true>(super::Epoll), rough);
on!(rough_io_uring, super::Engine::start_faulty::<true>(super::IoUring), rough);

/// Tests that have a process to themselves: they count descriptors and memory, or change limits.
#[path = "."]
#[expect(dead_code, reason = "these tests need a part of what the others share")]
mod alone {
    const FAULTY: bool = false;
    const ROUGH: bool = false;
    fn engine() -> crate::engine::Engine {
        super::real(super::Epoll).unwrap()
    }
    #[path = "crowd.rs"]
    mod crowd;
    #[path = "ends.rs"]
    mod ends;
    #[path = "lab.rs"]
    mod lab;
    #[path = "limits.rs"]
    mod limits;
    #[path = "process.rs"]
    mod process;
    #[path = "soak.rs"]
    mod soak;
}

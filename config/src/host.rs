//! What the configuration asks of the machine it is read on.

use std::{fs, io, io::Read as _, path::Path};

/// No certificate, key or password file is larger; a device or a log given by mistake must not fill memory.
const MAX_FILE: u64 = 1 << 20;

/// The machine as the configuration sees it: its files, its environment, its name.
/// [`System`] is the real one; tests supply their own, so that validation is the same for both.
pub trait Host {
    /// The content of a file, at most 1 MiB.
    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// A variable of the environment, if it is set and UTF-8.
    fn variable(&self, name: &str) -> Option<String>;
    /// The host name, for the default of `node`.
    fn host_name(&self) -> Option<String>;
}

/// The machine that we run on.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Host for System {
    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = fs::File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
        }
        let mut content = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_FILE {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
        }
        Ok(content)
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn host_name(&self) -> Option<String> {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
        Some(name.trim().to_owned()).filter(|name| !name.is_empty())
    }
}

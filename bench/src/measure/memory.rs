//! Memory of processes and of the kernel's sockets, from `/proc` (see proc(5)).

use std::fs;

use anyhow::{Context as _, Result};

use super::processes::Pid;

/// Bytes.
pub type Bytes = u64;

/// Resident memory of `pids` now. What they share is counted for each.
pub fn resident(pids: &[Pid]) -> Bytes {
    sum(pids, "VmRSS:")
}

/// The largest that each has ever been.
pub fn peak(pids: &[Pid]) -> Bytes {
    sum(pids, "VmHWM:")
}

fn sum(pids: &[Pid], field: &str) -> Bytes {
    let read = |pid: &Pid| kilobytes(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, field);
    pids.iter().filter_map(read).sum::<u64>() * 1024
}

/// The kernel's memory that grows with sockets: slabs and the pages of socket buffers. Of the whole machine: only a
/// difference says something, and only when nobody else is busy.
pub fn kernel() -> Result<Bytes> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let slab = kilobytes(&meminfo, "Slab:").context("/proc/meminfo has no line `Slab`")?;
    let sockstat = fs::read_to_string("/proc/net/sockstat").context("cannot read /proc/net/sockstat")?;
    let pages = socket_pages(&sockstat).unwrap_or_default();
    Ok(slab * 1024 + pages * rustix::param::page_size() as u64)
}

fn kilobytes(text: &str, field: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
}

fn socket_pages(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut fields = line.split_whitespace().skip_while(|field| *field != "mem");
    fields.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_status_and_sockstat() {
        let status = "Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t   5124 kB\nVmRSS:\t   4096 kB\n";
        assert_eq!(kilobytes(status, "VmHWM:"), Some(5124));
        assert_eq!(kilobytes(status, "VmRSS:"), Some(4096));
        assert_eq!(kilobytes(status, "VmSwap:"), None);
        let sockstat = "sockets: used 9\nTCP: inuse 5 orphan 0 tw 0 alloc 7 mem 3\nUDP: inuse 0 mem 9\n";
        assert_eq!(socket_pages(sockstat), Some(3));
        assert_eq!(socket_pages(""), None);
    }

    #[test]
    fn a_peak_stays_when_the_memory_is_gone() {
        let me = [std::process::id()];
        let before = resident(&me);
        let mut block = vec![0_u8; 32 << 20];
        block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        assert!(resident(&me) >= before + (24 << 20));
        drop(std::hint::black_box(block));
        assert!(peak(&me) >= before + (24 << 20));
        assert!(kernel().unwrap() > 0);
    }
}

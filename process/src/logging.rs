//! The log: text or JSON lines on standard error.
//!
//! Whoever logs never waits: lines go through a bounded queue to a thread of their own, and a line that finds
//! the queue full is dropped and counted. One event is one line, whatever a client or the store put into it.
//! Under systemd each line says its priority (sd-daemon(3)), and the journal adds the time.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use pointsman_config::{Log, LogFormat, LogLevel};
use rustix::fs::fstat;
use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer, reload};

/// Lines that may wait for the thread.
const QUEUE: usize = 8192;

/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The longest line; the rest of it is cut off.
const LINE: usize = 16 * 1024;

/// The log of this process, for parts of it that are handed nothing: there is one at most.
static LOG: OnceLock<(reload::Handle<Targets, Registry>, Arc<AtomicU64>)> = OnceLock::new();

/// Takes another level from now on (SIGHUP).
pub fn set_level(level: LogLevel) {
    if let Some((handle, _)) = LOG.get()
        && let Err(error) = handle.reload(targets(level))
    {
        tracing::warn!(%error, "the level of the log stays as it was");
    }
}

/// How many lines of this process's log were dropped.
pub fn dropped_lines() -> u64 {
    LOG.get().map_or(0, |(_, dropped)| dropped.load(Ordering::Relaxed))
}

/// The log of the process. Keep it until the end: dropping it writes what is left.
#[derive(Debug)]
pub struct Logging {
    level: reload::Handle<Targets, Registry>,
    dropped: Arc<AtomicU64>,
    queue: Arc<Queue>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Logging {
    /// Starts the log of this process on standard error.
    pub fn start(config: Log) -> Result<Self, TryInitError> {
        let journal = is_journal();
        let (logging, subscriber) = Self::build(config, io::stderr(), journal);
        subscriber.try_init()?;
        let _ = LOG.set((logging.level.clone(), logging.dropped_lines())); // the first one stays
        Ok(logging)
    }

    /// The log on any writer, as a subscriber to install.
    fn build<W: Write + Send + 'static>(
        config: Log,
        out: W,
        journal: bool,
    ) -> (Self, impl tracing::Subscriber + Send + Sync + use<W>) {
        let (sender, receiver) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let queue = Arc::new(Queue {
            sender: std::sync::Mutex::new(Some(sender)),
            dropped: Arc::clone(&dropped),
            priorities: journal,
        });
        let counted = Arc::clone(&dropped);
        let thread = thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_lines(&receiver, out, &counted))
            .ok(); // without the thread every line is dropped, and counted
        let (filter, level) = reload::Layer::new(targets(config.level));
        let lines = tracing_subscriber::fmt::layer().with_writer(Lines(Arc::clone(&queue))).with_ansi(false);
        let lines = match config.format {
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
            // HAProxy's format concerns session lines only; everything else is text.
            LogFormat::Text | LogFormat::Haproxy => {
                lines.with_target(false).with_timer(Clock { silent: journal }).boxed()
            }
        };
        let subscriber = Registry::default().with(filter).with(lines);
        (Self { level, dropped, queue, thread }, subscriber)
    }

    /// Takes another level from now on (SIGHUP).
    pub fn set_level(&self, level: LogLevel) {
        if let Err(error) = self.level.reload(targets(level)) {
            tracing::warn!(%error, "the level of the log stays as it was");
        }
    }

    /// Counts the lines that were dropped.
    pub fn dropped_lines(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.queue.close();
        let deadline = Instant::now() + LAST_LINES;
        let Some(thread) = self.thread.take() else { return };
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            let _ = thread.join(); // else standard error takes nothing: do not wait for it
        }
    }
}

/// Our own level, and the libraries' warnings; their details only where everything was asked for.
fn targets(level: LogLevel) -> Targets {
    let (ours, theirs) = match level {
        LogLevel::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
        LogLevel::Warn => (LevelFilter::WARN, LevelFilter::WARN),
        LogLevel::Info => (LevelFilter::INFO, LevelFilter::WARN),
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::INFO),
        LogLevel::Trace => (LevelFilter::TRACE, LevelFilter::TRACE),
    };
    // `session`: the lines of finished sessions.
    Targets::new().with_default(theirs).with_target("pointsman", ours).with_target("session", ours)
}

/// Whether standard error is the journal: systemd tells its device and inode in `JOURNAL_STREAM`.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(io::stderr()).is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino))
}

/// The time of a line, unless the journal knows it anyway.
#[derive(Clone, Copy, Debug)]
struct Clock {
    silent: bool,
}

impl FormatTime for Clock {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> fmt::Result {
        if self.silent { Ok(()) } else { SystemTime.format_time(w) }
    }
}

#[derive(Debug)]
struct Queue {
    sender: std::sync::Mutex<Option<SyncSender<Vec<u8>>>>,
    dropped: Arc<AtomicU64>,
    priorities: bool,
}

impl Queue {
    fn push(&self, line: Vec<u8>) {
        let sender = self.sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if sender.as_ref().is_none_or(|sender| sender.try_send(line).is_err()) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn close(&self) {
        self.sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }
}

/// Gives every event a line.
#[derive(Clone, Debug)]
struct Lines(Arc<Queue>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { queue: &self.0, text: Vec::new() }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        let text = if self.0.priorities { priority(*metadata.level()).to_vec() } else { Vec::new() };
        Line { queue: &self.0, text }
    }
}

/// `<4>` and its like (sd-daemon(3)): syslog's priorities.
fn priority(level: tracing::Level) -> &'static [u8] {
    match level {
        tracing::Level::ERROR => b"<3>",
        tracing::Level::WARN => b"<4>",
        tracing::Level::INFO => b"<6>",
        _ => b"<7>",
    }
}

/// One line, sent when it is dropped.
#[derive(Debug)]
struct Line<'a> {
    queue: &'a Queue,
    text: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = LINE.saturating_sub(self.text.len());
        self.text.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let mut line = std::mem::take(&mut self.text);
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        // A line break inside would let a client write lines of its own.
        line.iter_mut()
            .filter(|byte| byte.is_ascii_control() && **byte != b'\t')
            .for_each(|byte| *byte = b' ');
        line.push(b'\n');
        self.queue.push(line);
    }
}

/// The thread: ends when the queue is closed and empty.
fn write_lines<W: Write>(queue: &Receiver<Vec<u8>>, mut out: W, dropped: &AtomicU64) {
    let mut reported = 0;
    loop {
        match queue.recv_timeout(Duration::from_secs(1)) {
            // Nowhere to complain about standard error, and no reason to stop the process.
            Ok(line) => drop(out.write_all(&line)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let now = dropped.load(Ordering::Relaxed);
        if now > reported {
            let _ = writeln!(out, "{} log lines were dropped: nobody took them in time", now - reported);
            reported = now;
        }
    }
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use tracing::subscriber::with_default;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn config(format: LogFormat, level: LogLevel) -> Log {
        Log { format, level, sessions: true }
    }

    /// What is written for `events`.
    fn logged(format: LogFormat, level: LogLevel, journal: bool, events: impl FnOnce(&Logging)) -> String {
        let out = Shared::default();
        let (logging, subscriber) = Logging::build(config(format, level), out.clone(), journal);
        with_default(subscriber, || events(&logging));
        drop(logging);
        out.text()
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let text = logged(LogFormat::Text, LogLevel::Info, true, |_| {
            tracing::info!(user = %"eve\n<0>all is well\u{1b}[31m", "a session");
        });
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert!(text.starts_with("<6>") && !text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn priorities_are_those_of_syslog() {
        let text = logged(LogFormat::Text, LogLevel::Debug, true, |_| {
            tracing::error!("e");
            tracing::warn!("w");
            tracing::debug!("d");
        });
        let marks: Vec<_> = text.lines().map(|line| line.get(..3).unwrap().to_owned()).collect();
        assert_eq!(marks, ["<3>", "<4>", "<7>"]);
    }

    #[test]
    fn json_lines_are_json() {
        let text = logged(LogFormat::Json, LogLevel::Info, false, |_| tracing::info!(bytes = 7, "done"));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["message"], &value["bytes"]), (&"done".into(), &7.into()));
    }

    #[test]
    fn the_level_can_change() {
        let text = logged(LogFormat::Text, LogLevel::Warn, false, |logging| {
            tracing::info!("before");
            logging.set_level(LogLevel::Info);
            tracing::info!("after");
            tracing::info!(target: "hyper", "a library's detail");
        });
        assert!(text.contains("after") && !text.contains("before") && !text.contains("library"), "{text:?}");
    }

    #[test]
    fn sessions_are_logged_at_the_usual_level() {
        let text = logged(LogFormat::Text, LogLevel::Info, false, |_| {
            tracing::info!(target: "session", id = 7, "session ended");
        });
        assert!(text.contains("session ended"), "{text:?}");
    }

    #[test]
    fn who_logs_never_waits_and_lost_lines_are_told() {
        /// Takes one line, then nothing until it is told to.
        struct Stuck(Receiver<()>, Shared);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                self.1.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, stuck) = channel();
        let out = Shared::default();
        let config = config(LogFormat::Text, LogLevel::Info);
        let (logging, subscriber) = Logging::build(config, Stuck(stuck, out.clone()), false);
        with_default(subscriber, || {
            (0..QUEUE + 50).for_each(|n| tracing::info!(n, "line"));
        });
        let dropped = logging.dropped_lines().load(Ordering::Relaxed);
        assert!((49..=50).contains(&dropped), "one line is in the writer's hands, or not yet: {dropped}");
        drop(release); // every later write goes through
        drop(logging);
        assert!(out.text().contains(&format!("{dropped} log lines were dropped")));
    }
}

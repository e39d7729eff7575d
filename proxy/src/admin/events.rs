//! `/api/v1/events`: the timeline as a stream of server-sent events (WHATWG HTML, "Server-sent events").
//!
//! Each entry is an event `note` with the entry's number as its id, so that a browser that reconnects gets
//! what it missed. A reader that is too slow gets an event `missed` instead of stopping anybody else.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Frame};
use hyper::{Method, Request, StatusCode};
use pointsman_process::answer::{self, Answer};
use pointsman_process::request;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use super::Context;
use crate::timeline::Entry;

/// Streams at once.
pub(super) const STREAMS: usize = 64;

/// A quiet stream says so, so that nobody on the way takes it for dead.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Events that wait for one reader.
const QUEUE: usize = 16;

/// Starts a stream: after `?since=`, after the header `Last-Event-ID`, or with the next entry.
pub(super) fn stream<B>(context: &Context, request: &Request<B>) -> Answer {
    let Ok(permit) = Arc::clone(&context.streams).try_acquire_owned() else {
        return answer::problem(StatusCode::SERVICE_UNAVAILABLE, "too many event streams are open");
    };
    if request.method() == Method::HEAD {
        return answer::of(StatusCode::OK, "text/event-stream", "");
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (past, live) = context.app.timeline.follow(start(context, request));
    let stop = context.stop.clone();
    context.tasks.spawn(async move {
        let _permit = permit;
        stop.run_until_cancelled(send_all(past, live, sender)).await;
    });
    answer::with_body(StatusCode::OK, "text/event-stream", Events(receiver).boxed())
}

/// The number of the last entry that the reader has.
fn start<B>(context: &Context, request: &Request<B>) -> u64 {
    let header = request.headers().get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let id = header.or_else(|| request::query(request.uri(), "since"));
    id.and_then(|id| id.parse().ok()).unwrap_or_else(|| context.app.timeline.last())
}

/// Ends when the reader is gone, or when `live` does (never: the timeline lives as long as the process).
async fn send_all(
    past: Vec<Arc<Entry>>,
    mut live: broadcast::Receiver<Arc<Entry>>,
    reader: mpsc::Sender<Bytes>,
) {
    if reader.send(Bytes::from_static(b"retry: 1000\n\n")).await.is_err() {
        return;
    }
    for entry in past {
        if reader.send(note(&entry)).await.is_err() {
            return;
        }
    }
    loop {
        let event = tokio::select! {
            entry = live.recv() => match entry {
                Ok(entry) => note(&entry),
                Err(RecvError::Lagged(missed)) => {
                    Bytes::from(format!("event: missed\ndata: {{\"missed\":{missed}}}\n\n"))
                }
                Err(RecvError::Closed) => return,
            },
            () = tokio::time::sleep(HEARTBEAT) => Bytes::from_static(b": still here\n\n"),
            () = reader.closed() => return,
        };
        if reader.send(event).await.is_err() {
            return;
        }
    }
}

fn note(entry: &Entry) -> Bytes {
    let mut event = format!("id: {}\nevent: note\ndata: ", entry.seq);
    // JSON escapes every line break, so the data is one line.
    match serde_json::to_string(entry) {
        Ok(json) => event.push_str(&json),
        Err(error) => drop(write!(event, "{{\"error\":{:?}}}", error.to_string())),
    }
    event.push_str("\n\n");
    Bytes::from(event)
}

/// A body that is as long as its queue lives.
struct Events(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

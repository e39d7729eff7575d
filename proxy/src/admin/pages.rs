//! The dashboard's files, all within the program: a load balancer's host has no way to the Internet.

use hyper::StatusCode;
use pointsman_process::answer::{self, Answer};

use crate::state::App;

const DASHBOARD: &str = include_str!("../../assets/dashboard.html");
const STYLE: &str = include_str!("../../assets/dashboard.css");
const SCRIPT: &str = include_str!("../../assets/dashboard.js");
const ICON: &str = include_str!("../../assets/icon.svg");

pub(super) fn dashboard() -> Answer {
    answer::of(StatusCode::OK, "text/html; charset=utf-8", DASHBOARD)
}

pub(super) fn style() -> Answer {
    answer::of(StatusCode::OK, "text/css; charset=utf-8", STYLE)
}

pub(super) fn script() -> Answer {
    answer::of(StatusCode::OK, "text/javascript; charset=utf-8", SCRIPT)
}

pub(super) fn icon() -> Answer {
    answer::of(StatusCode::OK, "image/svg+xml", ICON)
}

pub(super) fn metrics(app: &App) -> Answer {
    answer::of(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", app.metrics.render(app))
}

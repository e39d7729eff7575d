//! A headless Chromium, driven through its driver by W3C's protocol for that (`goog:` is Chromium's own).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use hyper::Method;
use serde_json::{Value, json};

use crate::process::{RunAs, Server};
use crate::site::Site;
use crate::{http, tools, wait};

const SOON: Duration = Duration::from_secs(30);

/// What the page is shown with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `prefers-color-scheme: light`
    Light,
    /// `prefers-color-scheme: dark`
    Dark,
}

/// One browser with one window. Dropping it ends it; the [`Site`] ends what it started.
#[derive(Debug)]
pub struct Browser {
    driver: SocketAddr,
    session: String,
    server: Server,
}

impl Browser {
    /// Starts chromedriver and Chromium, in a directory of the site.
    pub async fn start(site: &Site) -> Result<Self> {
        let directory = site.directory().join("browser");
        std::fs::create_dir(&directory)?;
        let program = tools::program("chromedriver")?;
        let server = Server::start(site, RunAs::Caller, &directory, &program, ["--port=0"])?;
        let port = wait::until("chromedriver to start", SOON, async || started_on(&directory.join("log")))
            .await
            .with_context(|| server.tail())?;
        let mut browser =
            Self { driver: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), session: String::new(), server };
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
            "goog:chromeOptions": { "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage",
                // Chromium's own business: no test needs it to talk to anybody.
                "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--window-size=1440,1000", format!("--user-data-dir={}", directory.join("profile").display()),
            ] },
        } } });
        let session = browser.call(Method::POST, "/session", &wanted).await?;
        session
            .get("sessionId")
            .and_then(Value::as_str)
            .context("no session")?
            .clone_into(&mut browser.session);
        Ok(browser)
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let answer = http::send_slow(self.driver, method, path, body).await;
        let answer = answer.with_context(|| self.server.tail())?;
        let value = answer.json()?.get("value").cloned().unwrap_or_default();
        ensure!(answer.status == 200, "{path}: {value}");
        Ok(value)
    }

    async fn post(&self, command: &str, body: &Value) -> Result<Value> {
        self.call(Method::POST, &format!("/session/{}/{command}", self.session), body).await
    }

    /// Opens a page.
    pub async fn open(&self, url: &str) -> Result<()> {
        self.post("url", &json!({ "url": url })).await.map(drop)
    }

    /// Runs the body of a function in the page; answers what it returns.
    pub async fn evaluate(&self, script: &str) -> Result<Value> {
        self.post("execute/sync", &json!({ "script": script, "args": [] })).await
    }

    /// What a person would read, in the element that `selector` names.
    pub async fn text(&self, selector: &str) -> Result<String> {
        let script = format!("return document.querySelector({}).innerText", json!(selector));
        Ok(self.evaluate(&script).await?.as_str().context("no text")?.to_owned())
    }

    /// Waits until the element's text contains all of `wanted`, whatever their case.
    pub async fn wait_text(&self, selector: &str, wanted: &[&str]) -> Result<String> {
        wait::until(format!("{selector} to show {wanted:?}"), SOON, async || {
            let text = self.text(selector).await?;
            let lower = text.to_lowercase();
            let missing: Vec<_> =
                wanted.iter().filter(|word| !lower.contains(&word.to_lowercase())).collect();
            ensure!(missing.is_empty(), "no {missing:?} in: {text}");
            Ok(text)
        })
        .await
    }

    /// Chooses the colours, and the size of the window.
    pub async fn show_as(&self, scheme: Scheme, width: u32, height: u32) -> Result<()> {
        let value = if scheme == Scheme::Dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
        self.chromium("Emulation.setEmulatedMedia", &media).await?;
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.chromium("Emulation.setDeviceMetricsOverride", &size).await
    }

    async fn chromium(&self, command: &str, parameters: &Value) -> Result<()> {
        self.post("goog/cdp/execute", &json!({ "cmd": command, "params": parameters })).await.map(drop)
    }

    /// Writes what the window shows to a PNG file.
    pub async fn screenshot(&self, file: &Path) -> Result<()> {
        let parameters = json!({ "cmd": "Page.captureScreenshot", "params": { "format": "png" } });
        let image = self.post("goog/cdp/execute", &parameters).await?;
        let image = image.get("data").cloned().unwrap_or_default();
        let image = base64::engine::general_purpose::STANDARD.decode(image.as_str().context("no image")?)?;
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory)?;
        }
        Ok(std::fs::write(file, image)?)
    }

    /// The console's entries since the last call: scripts' errors, failed requests, violations of the page's policy.
    pub async fn console(&self) -> Result<Vec<String>> {
        let entries = self.post("se/log", &json!({ "type": "browser" })).await?;
        let entries = entries.as_array().cloned().unwrap_or_default();
        Ok(entries.iter().filter_map(|entry| entry.get("message")?.as_str().map(str::to_owned)).collect())
    }

    /// The addresses of everything that was asked of anybody since the last call.
    pub async fn requests(&self) -> Result<Vec<String>> {
        let entries = self.post("se/log", &json!({ "type": "performance" })).await?;
        let entries = entries.as_array().cloned().unwrap_or_default();
        let messages = entries.iter().filter_map(|entry| {
            let message: Value = serde_json::from_str(entry.get("message")?.as_str()?).ok()?;
            let sent = message.pointer("/message/method")? == "Network.requestWillBeSent";
            let url = message.pointer("/message/params/request/url")?.as_str()?;
            // The page of a new window is Chromium's own, out of its own files; `data:` is in the page itself.
            (sent && !url.starts_with("chrome:") && !url.starts_with("data:")).then(|| url.to_owned())
        });
        Ok(messages.collect())
    }
}

/// The port that chromedriver chose.
fn started_on(log: &Path) -> Result<u16> {
    let text = std::fs::read_to_string(log)?;
    let port = text.split_once("started successfully on port ").context("it has not said its port")?.1;
    let digits = port.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    Ok(digits.parse()?)
}
